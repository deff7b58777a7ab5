"""Decode prepared rows: one encoder pass per utterance, all its tasks through one batched beam search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from localgp.corpora.integrity import read_row
from localgp.decoder.train import MODULES as DECODER_MODULES
from localgp.evaluation.decoder_gates_file import DecoderGateRecord
from localgp.evaluation.gates_file import GateRecord
from localgp.evaluation.trained import batch_contexts, padded_speech
from localgp.training.data import Task, real_frames


@dataclass
class Decoded:
    """Attributes:
    text: Task name to utterance id to hypothesis.
    gates: Which module ran where; None for a dense encoder.
    decoder_gates: Which decoder module ran for which token of the best hypotheses; None for a dense decoder.
    seconds: Wall time spent in the encoder and in the decoder.
    """

    text: dict[str, dict[str, str]] = field(default_factory=dict)
    gates: GateRecord | None = None
    decoder_gates: DecoderGateRecord | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"encoder": 0.0, "decoder": 0.0})


@dataclass(frozen=True)
class Written:
    """Attributes:
    tokens: Of the best hypothesis, without its prompt; eos may follow.
    open_PLM: Which decoder modules ran in the pass that wrote each of them; None without gates.
    """

    tokens: list[int]
    open_PLM: Tensor | None = None


GatesFor = Callable[[Tensor, Sequence[str], Tensor], Any]
"""``gates(owner_Q, tasks, prompt_Q2)``: the decoder's gates for a call of the search, or None
(`localgp.model.GatedS2T.step_gates` of an encoder output)."""


class TaskSearches:
    """One beam search for transcripts and one for translations.

    OWSM's CTC head writes the transcript whatever the task, so ``ctc_weight`` is used for transcripts alone;
    translations are decoded by attention.

    Args:
        espnet: ``ESPnetS2TModel``.
        tokenizer: `localgp.backbones.owsm.tokens.OwsmTokenizer`.
        options: `localgp.search.options.DecodeOptions`.
        dtype: Arithmetic of the decoder.
    """

    def __init__(self, espnet: Any, tokenizer: Any, options: Any, dtype: torch.dtype) -> None:
        from localgp.decoder.cached import CachedDecoder
        from localgp.search.beam import BeamSearch

        self._espnet, self._tokenizer = espnet, tokenizer
        decoder = CachedDecoder(espnet.decoder, dtype=dtype)
        symbols = {
            "sos": espnet.sos,
            "eos": espnet.eos,
            "notimestamps": tokenizer.notimestamps,
            "first_time": tokenizer.first_time,
            "last_time": tokenizer.last_time,
        }
        ctc = espnet.ctc if options.ctc_weight > 0 else None
        self._transcripts = BeamSearch(decoder, ctc, options=options, **symbols)
        without = replace(options, ctc_weight=0.0)
        self._translations = (
            BeamSearch(decoder, None, options=without, **symbols) if ctc else self._transcripts
        )

    def __call__(
        self,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        owners: Sequence[int],
        tasks: Sequence[Task],
        *,
        timestamps: bool = False,
        gates: GatesFor | None = None,
    ) -> list[Written]:
        """The best hypothesis of each task.

        Args:
            owners: Row of ``memory_BTD`` that each task belongs to.
            timestamps: Predict times too, by attention alone: CTC knows none.
            gates: Where the decoder has gates, what gives them.
        """
        found_of: list[Written] = [Written([])] * len(tasks)
        kinds: dict[int, list[int]] = {}
        for index, task in enumerate(tasks):
            kinds.setdefault(id(self._search_for(task, timestamps)), []).append(index)
        for indices in kinds.values():
            rows = [owners[i] for i in indices]
            prompts = [
                self._tokenizer.prompt(tasks[i].source, tasks[i].target, timestamps=timestamps)
                for i in indices
            ]
            primers = [[self._espnet.sos, *prompt] for prompt in prompts]
            search = self._search_for(tasks[indices[0]], timestamps)
            decide = None
            if gates is not None:
                prompt_Q2 = torch.tensor([prompt[:2] for prompt in prompts], device=memory_BTD.device)
                owner_Q = torch.tensor(rows, device=memory_BTD.device)
                decide = gates(owner_Q, [tasks[i].name for i in indices], prompt_Q2)
            found = search(memory_BTD, lengths_B, primers, decide, rows)
            for index, nbest, primer in zip(indices, found, primers, strict=True):
                if nbest:
                    found_of[index] = Written(nbest[0].tokens[len(primer) :], nbest[0].open_PLM)
        return found_of

    def _search_for(self, task: Task, timestamps: bool) -> Any:
        return self._translations if timestamps or task.source != task.target else self._transcripts


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
    contexts: Any = None,
) -> Decoded:
    """Args:
    model: `localgp.model.GatedS2T`, in eval mode, on its device.
    backbone: Its `Backbone`, for tokenizer and padded length.
    rows: A prepared split.
    tasks: What to decode, of those rows.
    options: `localgp.search.options.DecodeOptions`.
    batch: Utterances encoded together; their tasks are decoded together.
    dtype: Arithmetic of encoder and decoder; features are always fp32.
    contexts: `localgp.contexts.extract.RowContexts` of the rows, where the gates see any.
    """
    espnet, tokenizer = model.espnet, backbone.tokenizer
    device = next(espnet.parameters()).device
    samples = round(backbone.padded_seconds * backbone.sample_rate)
    searches = TaskSearches(espnet, tokenizer, options, dtype)
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
    token_gates = TokenGates(espnet.eos, tokenizer.token_list)
    for begin in tqdm(range(0, len(order), batch), unit="batch", disable=None if progress else True):
        chunk = order[begin : begin + batch]
        items = [read_row(rows, index) for index in chunk]
        utt_ids |= {index: item["utt_id"] for index, item in zip(chunk, items, strict=True)}
        speech_BN, signal_B = padded_speech(items, samples)
        ends_B = signal_B if model.trim else torch.full((len(chunk),), samples)
        given = batch_contexts(contexts, items, samples, device)
        began = _now(device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            encoded = model.encode(speech_BN.to(device), ends_B.to(device), given, path="packed")
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
            signalled = real_frames(signal_B2, frames, samples).bool()
            for position, index in enumerate(chunk):
                opened[index] = mask[:, :, position].cpu().numpy()
                where = signalled[position].nonzero().squeeze(1)
                real[index] = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
        owners = [position for position, index in enumerate(chunk) for _ in by_row[index]]
        chunk_tasks = [task for index in chunk for task in by_row[index]]
        began = _now(device)
        gates = partial(model.step_gates, encoded) if model.decoder_policy is not None else None
        found = searches(encoded.x, encoded.lengths, owners, chunk_tasks, gates=gates)
        result.seconds["decoder"] += _now(device) - began
        for task, written in zip(chunk_tasks, found, strict=True):
            result.text.setdefault(task.name, {})[utt_ids[task.row]] = tokenizer.decode(written.tokens)
            token_gates.add(utt_ids[task.row], task.name, written)
    result.decoder_gates = token_gates.record()
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


class TokenGates:
    """Gathers the decoder's gates of best hypotheses, token by token.

    Args:
        eos: The token that ends a hypothesis; the pass that wrote it is not counted.
        pieces: Tokens by id.
    """

    def __init__(self, eos: int, pieces: Sequence[str]) -> None:
        self._eos, self._pieces = eos, pieces
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
            list(DECODER_MODULES),
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
