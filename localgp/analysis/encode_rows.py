"""Encodes utterances of an evaluated run once more.

Shape legend: B batch, N samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_BATCH = 8


def encode_rows(
    model: Any, rows: Any, contexts: Any, samples: int, *, dtype: Any = None, path: str = "packed"
) -> Iterator[Any]:
    """Batch by batch, as an evaluation encodes.

    Args:
        model: `localgp.model.GatedS2T`, in eval mode, on its device.
        rows: A prepared split.
        contexts: `localgp.contexts.extract.RowContexts` of the rows, or None where the gates see none.
        samples: Of a padded utterance.
        dtype: Arithmetic; None for fp32.
        path: Of `localgp.pruning.encoder.encode`.

    Yields:
        `localgp.pruning.encoder.EncoderOutput`.
    """
    import torch

    from localgp.contexts.extract import stack_contexts

    device = next(model.parameters()).device
    for begin in range(0, len(rows), _BATCH):
        items = [rows[i] for i in range(begin, min(begin + _BATCH, len(rows)))]
        speech_BN = np.zeros((len(items), samples), dtype=np.float32)
        for speech_N, item in zip(speech_BN, items, strict=True):
            signal = np.asarray(item["samples"], dtype=np.float32)[:samples] / 32768.0
            speech_N[: len(signal)] = signal
        given = {}
        if contexts is not None:
            stacked = stack_contexts([contexts.of(item, 0, samples) for item in items])
            given = {name: context.to(device) for name, context in stacked.items()}
        lengths_B = torch.full((len(items),), samples, device=device)
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=dtype, enabled=dtype not in (None, torch.float32)),
        ):
            yield model.encode(torch.from_numpy(speech_BN).to(device), lengths_B, given, path=path)
