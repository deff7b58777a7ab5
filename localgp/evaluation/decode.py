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
from tqdm import tqdm

from localgp.contexts.extract import RowContexts, batch_contexts
from localgp.corpora.integrity import read_row
from localgp.corpora.rows import Task, padded_speech
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
    backbone = model.backbone
    tokenizer, device, samples = backbone.tokenizer, backbone.device, model.samples
    encoder, searches = model.packed(dtype, options.budget), TaskSearches(backbone, options, dtype)
    passes: dict[Any, list[Task]] = {}  # of the encoder, with what is decoded of each
    for task in tasks:
        passes.setdefault(task if backbone.is_told else task.row, []).append(task)
    # Utterances of like length decode in like numbers of steps.
    lengths = rows.select_columns(["seconds"])["seconds"]
    order = sorted(passes.values(), key=lambda group: (lengths[group[0].row], group[0].row))
    result = Decoded()
    opened: dict[int, np.ndarray] = {}
    real: dict[int, tuple[int, int]] = {}
    counts: dict[int, int] = {}
    longest = 0  # samples
    modules: list[str] = []
    utt_ids: dict[int, str] = {}
    token_gates = TokenGates(tokenizer.eos, tokenizer.token_list, backbone.part_names("decoder"))
    for begin in tqdm(range(0, len(order), batch), unit="batch", disable=None if progress else True):
        groups = order[begin : begin + batch]
        chunk = [group[0].row for group in groups]
        items = [read_row(rows, index) for index in chunk]
        utt_ids |= {index: item["utt_id"] for index, item in zip(chunk, items, strict=True)}
        speech_BN, signal_B = padded_speech(items, samples)
        given = batch_contexts(contexts, items, samples, backbone.timeline, device)
        began = _now(device)
        primers = primers_of(tokenizer, [group[0] for group in groups]) if backbone.is_told else None
        encoded = encoder.encode(speech_BN.to(device), signal_B.to(device), given, primers)
        result.seconds["encoder"] += _now(device) - began
        if encoded.gates:
            modules = list(encoded.gates[0])
            frames = encoded.x.shape[1]
            mask = torch.stack(
                [
                    torch.stack([layer[name].mask.expand(len(chunk), frames) for name in modules])
                    for layer in encoded.gates
                ]
            )  # (L, M, B, T)
            signal_B2 = torch.stack([torch.zeros_like(signal_B), signal_B], dim=1)
            signalled = backbone.timeline.real(signal_B2, frames).bool() & encoded.own().cpu()
            longest = max(longest, int(model.heard(signal_B).max()))
            for position, index in enumerate(chunk):
                if (
                    index in opened
                ):  # an encoder that is told has a pass for each task; the first one's are kept
                    continue
                opened[index] = mask[:, :, position].cpu().numpy()
                counts[index] = int(encoded.lengths[position])
                where = signalled[position].nonzero().squeeze(1)
                real[index] = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
        owners = [position for position, group in enumerate(groups) for _ in group]
        chunk_tasks = [task for group in groups for task in group]
        began = _now(device)
        gates = partial(model.step_gates, encoded) if model.decoder_policy is not None else None
        found = searches(*encoded.memory(), owners, chunk_tasks, gates=gates)
        result.seconds["decoder"] += _now(device) - began
        for task, written in zip(chunk_tasks, found, strict=True):
            result.text.setdefault(task.name, {})[utt_ids[task.row]] = tokenizer.decode(written.tokens)
            token_gates.add(utt_ids[task.row], task.name, written)
    result.decoder_gates = token_gates.record()
    if opened:
        indices = sorted(opened)
        frames = max(counts.values())
        centres = backbone.timeline.centres(2) / backbone.sample_rate
        result.gates = GateRecord(
            [utt_ids[i] for i in indices],
            modules,
            np.stack([with_frames(opened[i], frames) for i in indices]),
            np.array([real[i] for i in indices]),
            longest / backbone.sample_rate / frames,
            np.array([counts[i] for i in indices]) if model.window.ragged else None,
            (float(centres[0]), float(centres[1] - centres[0])),
        )
    return result


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
