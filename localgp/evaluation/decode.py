"""Decode prepared rows: one encoder pass per utterance, or per task where it is told of that, and all tasks through one
batched search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from localgp.contexts.extract import RowContexts, batch_contexts
from localgp.corpora.integrity import read_row
from localgp.corpora.rows import Task, padded_speech
from localgp.encoder.run import EncoderOutput
from localgp.evaluation.decoder_gates_file import DecoderGateRecord
from localgp.evaluation.gates_file import GateRecord, with_frames
from localgp.model import GatedS2T
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches, Written, primers_of


@dataclass
class Decoded:
    """What decoding a split gives.

    Attributes:
        text: Task name to utterance id to hypothesis.
        gates: Which module ran where; None for a dense encoder.
        decoder_gates: Which decoder module ran for which token of the best hypotheses; None for a dense decoder.
        seconds: Wall time spent in the encoder and in the decoder.
    """

    text: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: GateRecord | None = None
    decoder_gates: DecoderGateRecord | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"encoder": 0.0, "decoder": 0.0})


@torch.inference_mode()
def decode_rows(
    model: GatedS2T,
    rows: Any,
    tasks: Sequence[Task],
    options: DecodeOptions,
    *,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    contexts: RowContexts | None = None,
) -> Decoded:
    """Decodes tasks of prepared rows in batches.

    Args:
        model: In eval mode, on its device.
        rows: A prepared split.
        tasks: What to decode, of those rows.
        options: How to decode.
        batch: Utterances encoded together; their tasks are decoded together.
        dtype: Arithmetic of encoder and decoder; features are always fp32.
        contexts: Of the rows, where the gates see any.
    """
    backbone, device = model.backbone, model.backbone.device
    tokenizer = backbone.tokenizer
    encoder, searches = model.packed(dtype, options.budget), TaskSearches(backbone, options, dtype)
    result, frame_gates = Decoded(), FrameGates(model)
    token_gates = TokenGates(tokenizer.eos, tokenizer.token_list, backbone.part_names("decoder"))
    planned = in_batches(model, rows, tasks, batch)
    for passes in tqdm(planned, unit="batch", disable=None if progress else True):
        b = load_batch(model, rows, passes, contexts)
        began = _now(device)
        encoded = encoder.encode(b.speech_BN, b.ends_B, b.contexts, b.primers)
        result.seconds["encoder"] += _now(device) - began
        frame_gates.add(b, encoded)
        began = _now(device)
        gates = partial(model.step_gates, encoded) if model.decoder_policy is not None else None
        written = searches(*encoded.memory(), b.owners, b.tasks, gates=gates)
        result.seconds["decoder"] += _now(device) - began
        for task, owner, one in zip(b.tasks, b.owners, written, strict=True):
            utt_id = b.items[owner]["utt_id"]
            result.text.setdefault(task.name, {})[utt_id] = tokenizer.decode(one.tokens)
            token_gates.add(utt_id, task.name, one)
    result.gates, result.decoder_gates = frame_gates.record(), token_gates.record()
    return result


@dataclass(frozen=True)
class Batch:
    """Utterances that are encoded together, and what is written of them.

    Attributes:
        rows: Their indices in the split; of an encoder that is told, one for each task.
        items: Their prepared rows.
        speech_BN, ends_B, contexts, primers: What the encoder is given (`localgp.model.PackedModel.encode`).
        tasks: What is written.
        owners: The row of the batch that each of these belongs to.
    """

    rows: list[int]
    items: list[dict[str, Any]]
    speech_BN: Tensor
    ends_B: Tensor
    contexts: dict[str, Tensor]
    primers: list[list[int]] | None
    tasks: list[Task]
    owners: list[int]


def in_batches(model: GatedS2T, rows: Any, tasks: Sequence[Task], size: int) -> list[list[list[Task]]]:
    """Tasks by passes of the encoder, and these in batches: utterances of like length decode in like numbers of steps.

    Args:
        size: Passes together.
    """
    passes: dict[Any, list[Task]] = {}
    for task in tasks:
        passes.setdefault(task if model.backbone.is_told else task.row, []).append(task)
    lengths = rows.select_columns(["seconds"])["seconds"]
    order = sorted(passes.values(), key=lambda group: (lengths[group[0].row], group[0].row))
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


def load_batch(
    model: GatedS2T, rows: Any, passes: Sequence[Sequence[Task]], contexts: RowContexts | None
) -> Batch:
    """One of `in_batches`, on the model's device."""
    backbone, device = model.backbone, model.backbone.device
    items = [read_row(rows, group[0].row) for group in passes]
    speech_BN, ends_B = padded_speech(items, model.samples)
    return Batch(
        [group[0].row for group in passes],
        items,
        speech_BN.to(device),
        ends_B.to(device),
        batch_contexts(contexts, items, model.samples, backbone.timeline, device),
        primers_of(backbone.tokenizer, [group[0] for group in passes]) if backbone.is_told else None,
        [task for group in passes for task in group],
        [position for position, group in enumerate(passes) for _ in group],
    )


class FrameGates:
    """Gathers the encoder's gates, utterance by utterance.

    Args:
        model: Whose they are.
    """

    def __init__(self, model: GatedS2T) -> None:
        self._model = model
        self._modules: list[str] = []
        self._longest = 0  # samples
        # Of each index in the split: its utterance, (L, M, T) which is open, frames with signal, all frames
        self._found: dict[int, tuple[str, np.ndarray, tuple[int, int], int]] = {}

    def add(self, batch: Batch, encoded: EncoderOutput) -> None:
        if not encoded.gates:
            return
        self._modules, frames = list(encoded.gates[0]), encoded.x.shape[1]
        mask_LMBT = torch.stack(
            [
                torch.stack([layer[name].mask.expand(len(batch.rows), frames) for name in self._modules])
                for layer in encoded.gates
            ]
        )
        ends_B = batch.ends_B.cpu()
        signal_B2 = torch.stack([torch.zeros_like(ends_B), ends_B], dim=1)
        signalled = self._model.backbone.timeline.real(signal_B2, frames).bool() & encoded.own().cpu()
        self._longest = max(self._longest, int(self._model.heard(ends_B).max()))
        for position, index in enumerate(batch.rows):
            if (
                index in self._found
            ):  # an encoder that is told has a pass for each task; the first one's are kept
                continue
            where = signalled[position].nonzero().squeeze(1)
            real = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
            count = int(encoded.lengths[position])
            # A decision for a whole utterance is for its own frames alone, and not for what pads it here
            opened = mask_LMBT[:, :, position, :count].cpu().numpy()
            self._found[index] = batch.items[position]["utt_id"], opened, real, count

    def record(self) -> GateRecord | None:
        if not self._found:
            return None
        backbone = self._model.backbone
        found = [self._found[index] for index in sorted(self._found)]
        frames = max(count for *_, count in found)
        centres = backbone.timeline.centres(2) / backbone.sample_rate
        return GateRecord(
            [utt_id for utt_id, *_ in found],
            self._modules,
            np.stack([with_frames(opened, frames) for _, opened, _, _ in found]),
            np.array([real for _, _, real, _ in found]),
            self._longest / backbone.sample_rate / frames,
            np.array([count for *_, count in found]) if self._model.window.ragged else None,
            (float(centres[0]), float(centres[1] - centres[0])),
        )


class TokenGates:
    """Gathers the decoder's gates of best hypotheses, token by token.

    Args:
        eos: The token that ends a hypothesis; the pass that wrote it is not counted.
        modules: The decoder's, in the order of ``open_PLM``.
        pieces: Tokens by id.
    """

    def __init__(self, eos: int, pieces: Sequence[str], modules: Sequence[str]) -> None:
        self._eos, self._pieces, self._modules = eos, pieces, list(modules)
        self._found: list[tuple[str, str, list[str], np.ndarray]] = []

    def add(self, utt_id: str, task: str, written: Written) -> None:
        if written.open_PLM is not None:
            tokens = written.tokens
            count = tokens.index(self._eos) if self._eos in tokens else len(tokens)
            pieces = [self._pieces[token] for token in tokens[:count]]
            self._found.append((utt_id, task, pieces, written.open_PLM[:count].numpy()))

    def record(self) -> DecoderGateRecord | None:
        if not self._found:
            return None
        return DecoderGateRecord(
            self._modules,
            np.concatenate([opened for *_, opened in self._found]),
            [piece for _, _, pieces, _ in self._found for piece in pieces],
            [utt_id for utt_id, *_ in self._found],
            [task for _, task, *_ in self._found],
            np.array([len(pieces) for _, _, pieces, _ in self._found]),
        )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
