"""What a model writes that nobody said: outputs far longer than their references, and on silence and noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localgp.corpora.rows import list_tasks
from localgp.evaluation.decode import decode_rows

if TYPE_CHECKING:
    import torch

    from localgp.model import GatedS2T
    from localgp.search.options import DecodeOptions

SECONDS = (1.0, 4.0)
# Amplitude of white noise by kind, full scale 1.
KINDS = {"silence": 0.0, "noise": 0.01}


def over_twice(pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    """By task, the share of outputs with more than twice the letters of their reference; ``average`` over tasks.

    Args:
        pairs: Task name to references and hypotheses.

    Examples:
        >>> over_twice({"de": (["ja", "gut so"], ["ja ja ja", "gut so"])})
        {'de': 0.5, 'average': 0.5}
    """
    shares = {
        task: float(
            np.mean([_letters(h) > 2 * _letters(r) for r, h in zip(references, hypotheses, strict=True)])
        )
        for task, (references, hypotheses) in pairs.items()
        if len(references)
    }
    if shares:
        shares["average"] = float(np.mean(list(shares.values())))
    return {task: round(share, 4) for task, share in shares.items()}


def _letters(text: str) -> int:
    return sum(not c.isspace() for c in text)


def probes(languages: Sequence[str], rate: int, longest: float) -> Any:
    """Rows, as of a prepared split, in which nothing is said: each kind and length for each language."""
    from datasets import Dataset

    rows = []
    for kind, level in KINDS.items():
        for seconds in [s for s in SECONDS if s <= longest]:
            noise = np.random.default_rng(round(seconds)).standard_normal(round(seconds * rate))
            samples = np.clip(32768 * level * noise, -32768, 32767).astype(np.int16)
            for language in languages:
                name = f"{kind}-{seconds:g}s-{language}"
                rows.append(
                    {
                        "utt_id": name,
                        "speaker": name,
                        "samples": samples,
                        "seconds": seconds,
                        "language": language,
                        "asr": True,
                        "transcript": "",
                        "targets": [],
                        "translations": [],
                        "audio_sha1": hashlib.sha1(samples.tobytes() + name.encode()).hexdigest(),
                    }
                )
    return Dataset.from_list(rows)


def written_on_nothing(
    model: GatedS2T, rows: Any, options: DecodeOptions, *, dtype: torch.dtype, contexts: Any
) -> dict[str, float]:
    """By kind of probe, the letters that a model writes on average.

    Args:
        model: In eval mode, on its device.
        rows: `probes`.
        contexts: Of those rows, where the gates see any.
    """

    decoded = decode_rows(
        model, rows, list_tasks(rows), options, dtype=dtype, progress=False, contexts=contexts
    )
    texts = {utt_id: text for found in decoded.text.values() for utt_id, text in found.items()}
    return {
        kind: round(float(np.mean([_letters(t) for u, t in texts.items() if u.startswith(f"{kind}-")])), 2)
        for kind in KINDS
    }
