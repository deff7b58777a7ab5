"""Decode prepared rows: one encoder pass per utterance, all its tasks through one batched beam search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from localgp.evaluation.gates_file import GateRecord
from localgp.training.data import Task, real_frames


@dataclass
class Decoded:
    """Attributes:
    text: Task name to utterance id to hypothesis.
    gates: Which module ran where; None for a dense encoder.
    seconds: Wall time spent in the encoder and in the decoder.
    """

    text: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: GateRecord | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"encoder": 0.0, "decoder": 0.0})


@torch.inference_mode()
def decode_rows(
    model: Any,
    backbone: Any,
    rows: Any,
    tasks: Sequence[Task],
    options: Any,
    *,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Decoded:
    """Args:
    model: `localgp.model.GatedS2T`, in eval mode, on its device.
    backbone: Its `Backbone`, for tokenizer and padded length.
    rows: A prepared split.
    tasks: What to decode, of those rows.
    options: `localgp.decoding.DecodeOptions`.
    batch: Utterances encoded together; their tasks are decoded together.
    dtype: Arithmetic of encoder and decoder; features are always fp32.
    """
    from localgp.decoding.beam import BeamSearch

    espnet, tokenizer = model.espnet, backbone.tokenizer
    device = next(espnet.parameters()).device
    samples = round(backbone.padded_seconds * backbone.sample_rate)
    search = BeamSearch(
        espnet.decoder,
        espnet.ctc if options.ctc_weight > 0 else None,
        sos=espnet.sos,
        eos=espnet.eos,
        notimestamps=tokenizer.notimestamps,
        first_time=tokenizer.first_time,
        last_time=tokenizer.last_time,
        options=options,
    )
    by_row: dict[int, list[Task]] = {}
    for task in tasks:
        by_row.setdefault(task.row, []).append(task)
    # Utterances of like length decode in like numbers of steps.
    lengths = rows.select_columns(["seconds"])["seconds"]
    order = sorted(by_row, key=lambda index: (lengths[index], index))
    result = Decoded()
    opened: dict[int, np.ndarray] = {}
    real: dict[int, tuple[int, int]] = {}
    modules: list[str] = []
    utt_ids: dict[int, str] = {}
    for begin in tqdm(range(0, len(order), batch), unit="batch", disable=None if progress else True):
        chunk = order[begin : begin + batch]
        items = [rows[index] for index in chunk]
        utt_ids |= {index: item["utt_id"] for index, item in zip(chunk, items, strict=True)}
        speech = np.zeros((len(chunk), samples), dtype=np.float32)
        signal = torch.zeros(len(chunk), 2, dtype=torch.long)
        for position, item in enumerate(items):
            samples_in = np.asarray(item["samples"], dtype=np.float32)[:samples] / 32768.0
            speech[position, : len(samples_in)] = samples_in
            signal[position, 1] = len(samples_in)
        began = _now(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = model.encode(
                torch.from_numpy(speech).to(device), torch.full((len(chunk),), samples, device=device)
            )
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
            signalled = real_frames(signal, frames, samples).bool()
            for position, index in enumerate(chunk):
                opened[index] = mask[:, :, position].cpu().numpy()
                where = signalled[position].nonzero().squeeze(1)
                real[index] = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
        sequences = [(position, task) for position, index in enumerate(chunk) for task in by_row[index]]
        owner = torch.tensor([position for position, _ in sequences], device=device)
        primers = [[espnet.sos, *tokenizer.prompt(task.source, task.target)] for _, task in sequences]
        began = _now(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            hypotheses = search(
                encoded.x.index_select(0, owner), encoded.lengths.index_select(0, owner), primers
            )
        result.seconds["decoder"] += _now(device) - began
        for (_, task), nbest, primer in zip(sequences, hypotheses, primers, strict=True):
            tokens = nbest[0].tokens[len(primer) :] if nbest else []
            text = tokenizer.decode(tokens)
            result.text.setdefault(task.name, {})[utt_ids[task.row]] = text
    if opened:
        indices = sorted(opened)
        result.gates = GateRecord(
            [utt_ids[i] for i in indices],
            modules,
            np.stack([opened[i] for i in indices]),
            np.array([real[i] for i in indices]),
            backbone.padded_seconds / next(iter(opened.values())).shape[-1],
        )
    return result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
