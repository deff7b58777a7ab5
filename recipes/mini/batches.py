"""Training batches for the mini backbone, each a pure function of the seed and the step.

Shape legend: B utterances, F feature frames (10 ms), T encoder frames (40 ms), M mel bins, Q sequences, L tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from speech import EDGE, HOP, MELS, RATE, SILENCE, SpeechSet
from torch import Tensor

from localgp.backbones.owsm.tokens import OwsmTokenizer
from localgp.training.data import pad_tokens

POOL = 24  # batches that are sorted by length together
TEXT_START = 3  # where the text begins: after language, task, and <notimestamps> or the first timestamp
TIMESTAMPS, PREVIOUS = 0.15, 0.1  # share of decoder sequences with timestamps, and with a previous sentence


def encoder_frames(frames: int) -> int:
    """Frames that ESPnet's conv2d subsampling leaves of ``frames``."""
    return ((frames - 1) // 2 - 1) // 2


class Batches:
    """Args:
    speech: The training set.
    tokenizer: For texts and prompts.
    batch_size: B.
    full_seconds: The padded length of the backbone.
    init_silence: Seconds of silence at most on the left.
    """

    def __init__(
        self,
        speech: SpeechSet,
        tokenizer: OwsmTokenizer,
        *,
        batch_size: int,
        full_seconds: float,
        init_silence: float,
        seed: int,
    ) -> None:
        self.speech, self.tokenizer, self.batch_size, self.seed = speech, tokenizer, batch_size, seed
        self.full_frames = round(full_seconds * RATE) // HOP + 1
        self.init_frames = round(init_silence * RATE) // HOP
        self.per_epoch = len(speech) // batch_size
        self._order = lru_cache(maxsize=1)(self._shuffle)
        self.tokens = [
            {code: tokenizer.encode(text) for code, text in item["texts"].items()} for item in speech.items
        ]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """(batches, B) indices; utterances of one batch are of similar length."""
        rng = np.random.default_rng([self.seed, 1, epoch])
        order = rng.permutation(len(self.speech))[: self.per_epoch * self.batch_size]
        lengths = np.diff(self.speech.starts)
        pool = POOL * self.batch_size
        pooled = [order[i : i + pool] for i in range(0, len(order), pool)]
        ordered = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in pooled])
        return rng.permutation(ordered.reshape(self.per_epoch, self.batch_size))

    def batch(self, step: int, *, full: bool, decoder: bool) -> dict[str, Any]:
        """The batch of a step.

        Args:
            full: Pad to the backbone's length; else to the longest utterance.
            decoder: Make decoder sequences too: the transcript and two translations of each utterance.
        """
        epoch, position = divmod(step, self.per_epoch)
        indices = self._order(epoch)[position]
        rng = np.random.default_rng([self.seed, 2, step])
        shifts = rng.integers(0, self.init_frames + 1, len(indices))
        lengths = np.array([self.speech.frames(i) for i in indices])
        shifts = np.minimum(shifts, self.full_frames - lengths)
        frames = self.full_frames if full else int((shifts + lengths).max())
        feats = np.full((len(indices), frames, MELS), SILENCE, np.float32)
        phones = np.zeros((len(indices), frames), np.int64)
        for row, (index, shift, length) in enumerate(zip(indices, shifts, lengths, strict=True)):
            span = slice(self.speech.starts[index], self.speech.starts[index + 1])
            feats[row, shift : shift + length] = self.speech.feats[span]
            phones[row, shift : shift + length] = self.speech.phones[span]
        feats_BFM = warp_and_mask(torch.from_numpy(feats), rng)
        # Encoder frame t sees feature frames 4 t … 4 t + 6: its label is that of the middle one.
        phones_BT = torch.from_numpy(phones[:, 3::4][:, : encoder_frames(frames)].copy())
        batch: dict[str, Any] = {"indices": indices, "feats": feats_BFM, "phones": phones_BT}
        transcripts = [self.tokens[i][self.speech.items[i]["language"]] for i in indices]
        batch["text_ctc"], batch["text_ctc_lengths"] = pad_tokens(transcripts)
        if decoder:
            batch |= self.sequences(indices, shifts, rng)
        return batch

    def sequences(
        self, indices: np.ndarray, shifts: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """Prompts and texts for the decoder: transcript and translations of each utterance, in the order of
        ``tokens``."""
        texts, previous, owners = [], [], []
        tok = self.tokenizer
        for row, (index, shift) in enumerate(zip(indices, shifts, strict=True)):
            item = self.speech.items[index]
            offset = (shift + EDGE) * HOP / RATE
            for target, tokens in self.tokens[index].items():
                timed = rng.random() < TIMESTAMPS
                prompt = tok.prompt(item["language"], target, timestamps=timed)
                if timed:
                    start, end = (tok.timestamp(t + offset) for t in item["speech"])
                    tokens = [start, *tokens, end]
                texts.append([*prompt, *tokens])
                other = int(rng.integers(len(self.speech)))
                previous.append(self.tokens[other][target] if rng.random() < PREVIOUS else [tok.na])
                owners.append(row)
        text, text_lengths = pad_tokens(texts)
        text_prev, text_prev_lengths = pad_tokens(previous)
        return {
            "text": text,
            "text_lengths": text_lengths,
            "text_prev": text_prev,
            "text_prev_lengths": text_prev_lengths,
            "utterance": torch.tensor(owners),
        }


def warp_and_mask(feats_BFM: Tensor, rng: np.random.Generator) -> Tensor:
    """Stretches the mel axis of each utterance by up to 10 %, which stands for other vocal tracts, and masks one
    band and one stretch of time in half of them."""
    batch, frames, mels = feats_BFM.shape
    factor_B1 = torch.from_numpy(rng.uniform(0.9, 1.1, (batch, 1)).astype(np.float32))
    position_BM = (torch.arange(mels) * factor_B1).clamp(max=mels - 1)
    low_BM = position_BM.long().clamp(max=mels - 2)
    weight_BM = position_BM - low_BM
    warp_BMM = torch.zeros(batch, mels, mels)
    warp_BMM.scatter_(1, low_BM[:, None], (1 - weight_BM)[:, None])
    warp_BMM.scatter_add_(1, low_BM[:, None] + 1, weight_BM[:, None])
    feats_BFM = torch.bmm(feats_BFM, warp_BMM)
    for row in np.flatnonzero(rng.random(batch) < 0.5):
        mean = feats_BFM[row].mean()
        band, at = int(rng.integers(1, 13)), int(rng.integers(0, mels - 12))
        feats_BFM[row, :, at : at + band] = mean
        stretch = int(rng.integers(1, 16))
        at = int(rng.integers(0, max(1, frames - stretch)))
        feats_BFM[row, at : at + stretch] = mean
    return feats_BFM
