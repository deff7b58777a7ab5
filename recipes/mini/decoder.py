"""The last phase: the decoder alone, on encoder outputs that are computed once, told where to look.

Left to itself, cross-attention stays unaligned for thousands of updates and the decoder is a language model of the
grammar. `guides` knows the frames of almost every token, so some heads are trained to look there; the guidance
fades out before the end. With the encoder fixed, its outputs are kept in memory after the first epoch.

Shape legend: B utterances, N all utterances, F feature frames, T encoder frames, M mel bins, D size, Q sequences,
L tokens, H heads.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import TEXT_START, Batches, encoder_frames
from guides import Guides, ctc_spans, guide_loss
from speech import MELS, SILENCE
from torch import Tensor

GUIDED_HEADS = 2  # of every decoder layer but the first
WARMUP = 200


class EncodedSpeech:
    """Encoder outputs of utterances padded to the backbone's length, computed when first asked for.

    Each utterance has one silence on the left, drawn from its index, so that its output can be kept.
    """

    def __init__(self, espnet: Any, batches: Batches, dtype: torch.dtype) -> None:
        self._espnet, self._batches, self._dtype = espnet, batches, dtype
        frames = encoder_frames(batches.full_frames)
        shape = (len(batches.speech), frames, espnet.encoder.output_size())
        self._outputs_NTD = np.zeros(shape, np.float16)
        self._spans: dict[int, np.ndarray] = {}

    def shifts(self, indices: np.ndarray) -> np.ndarray:
        """Feature frames of silence on the left of each."""
        room = [self._batches.full_frames - self._batches.speech.frames(i) for i in indices]
        drawn = [
            np.random.default_rng([7, int(i)]).integers(0, self._batches.init_frames + 1) for i in indices
        ]
        return np.minimum(drawn, room)

    @torch.no_grad()
    def outputs(self, indices: np.ndarray) -> tuple[Tensor, list[np.ndarray]]:
        """(B, T, D) float32, and the frames of the transcripts' tokens."""
        new = np.array([i for i in indices if int(i) not in self._spans], int)
        if len(new):
            speech = self._batches.speech
            feats = np.full((len(new), self._batches.full_frames, MELS), SILENCE, np.float32)
            for row, (index, shift) in enumerate(zip(new, self.shifts(new), strict=True)):
                span = slice(speech.starts[index], speech.starts[index + 1])
                feats[row, shift : shift + span.stop - span.start] = speech.feats[span]
            lengths = torch.full((len(new),), feats.shape[1])
            feats_BFM, _ = self._espnet.normalize(torch.from_numpy(feats), lengths)
            with torch.autocast("cpu", self._dtype, enabled=self._dtype != torch.float32):
                encoded, _, _ = self._espnet.encoder(feats_BFM, lengths)
            transcripts = [self._batches.tokens[i][speech.items[i]["language"]] for i in new]
            spans = ctc_spans(self._espnet.ctc.log_softmax(encoded.float()), transcripts)
            self._outputs_NTD[new] = encoded.float().numpy()
            self._spans |= {int(index): span for index, span in zip(new, spans, strict=True)}
        outputs_BTD = torch.from_numpy(self._outputs_NTD[indices].astype(np.float32))
        return outputs_BTD, [self._spans[int(i)] for i in indices]


def guided_frames(
    batches: Batches,
    guides: Guides,
    indices: np.ndarray,
    spans: list[np.ndarray],
    sequences: dict[str, Tensor],
) -> Tensor:
    """(Q, L, 2) frames for every decoder query, that is, for the token it predicts; negative where not guided."""
    previous = sequences["text_prev_lengths"] + 1  # <sop> previous <sos>: the texts begin so much later
    previous[(sequences["text_prev"] == batches.tokenizer.na).any(1)] = 0
    longest = int((previous + sequences["text_lengths"]).max()) + 1
    frames_QL2 = torch.full((len(previous), longest, 2), -1)
    sequence = 0
    for index, span in zip(indices, spans, strict=True):
        for target in batches.tokens[index]:
            known = torch.from_numpy(guides.frames(int(index), target, span))
            begin = int(previous[sequence]) + TEXT_START
            frames_QL2[sequence, begin : begin + len(known)] = known
            sequence += 1
    return frames_QL2


def train_decoder(
    espnet: Any,
    batches: Batches,
    *,
    utterances: int,
    steps: int,
    lr: float,
    dtype: torch.dtype,
    seed: int,
    state: Path,
    save_seconds: float,
) -> float:
    """Trains ``espnet.decoder`` in place; returns the seconds it took, those before an interruption included.

    Args:
        utterances: So many of the training set, spread over it.
        steps: Updates of ``batches.batch_size`` utterances with three sequences each.
        lr: Peak, after `WARMUP` steps; then linear to 0.
        state: Saved here every ``save_seconds``, and gone on from.
    """
    espnet.eval()
    decoder = espnet.decoder.train()
    encoded = EncodedSpeech(espnet, batches, dtype)
    items, tokens = batches.speech.items, batches.tokenizer.token_list
    guides = Guides(
        [item["texts"] for item in items],
        [{code: [tokens[i] for i in ids] for code, ids in texts.items()} for texts in batches.tokens],
        [item["language"] for item in items],
    )
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    begin, before = 0, 0.0
    if state.exists():
        saved_state = torch.load(state, weights_only=True)
        decoder.load_state_dict(saved_state["decoder"])
        optimizer.load_state_dict(saved_state["optimizer"])
        begin, before = saved_state["step"], saved_state["seconds"]
        print(f"resumed at decoder step {begin}", flush=True)
    chosen = np.linspace(0, len(items) - 1, utterances).astype(int)
    size = batches.batch_size
    per_epoch = len(chosen) // size
    began = marked = saved = time.perf_counter()
    counted = begin
    for step in range(begin, steps):
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([seed, 3, epoch]).permutation(chosen)
        indices = order[position * size : (position + 1) * size]
        rng = np.random.default_rng([seed, 4, step])
        memory_BTD, spans = encoded.outputs(indices)
        sequences = batches.sequences(indices, encoded.shifts(indices), rng)
        owner = sequences["utterance"]
        lengths = torch.full((len(indices),), memory_BTD.shape[1])
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / WARMUP, (steps - step) / (steps - WARMUP))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, accuracy, _, _ = espnet._calc_att_loss(
                memory_BTD[owner],
                lengths[owner],
                *(sequences[key] for key in ("text", "text_lengths", "text_prev", "text_prev_lengths")),
            )
        loss = loss.float() * len(owner) / (sequences["text_lengths"].sum() + len(owner))
        attention = torch.cat([layer.src_attn.attn[:, :GUIDED_HEADS] for layer in decoder.decoders[1:]], 1)
        guide = guide_loss(attention, guided_frames(batches, guides, indices, spans, sequences))
        strength = min(
            1.0, max(0.0, (0.8 - step / steps) / 0.3)
        )  # whole to the middle, none in the last fifth
        optimizer.zero_grad()
        (loss + strength * guide).backward()
        norm = torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(f"decoder step {step}: gradient is not finite; lower --lr")
        optimizer.step()
        now = time.perf_counter()
        if (step + 1) % 50 == 0:
            line = {
                "decoder_step": step + 1,
                "attention": loss.item(),
                "guide": guide.item(),
                "accuracy": float(accuracy),
                "steps_per_second": (step + 1 - counted) / (now - marked),
            }
            print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
            marked, counted = now, step + 1
        if now - saved > save_seconds or step + 1 == steps:
            partial = state.with_suffix(".partial")
            seconds = before + now - began
            training = {"optimizer": optimizer.state_dict(), "step": step + 1, "seconds": seconds}
            torch.save({"decoder": decoder.state_dict(), **training}, partial)
            os.replace(partial, state)
            saved = now
    return before + time.perf_counter() - began
