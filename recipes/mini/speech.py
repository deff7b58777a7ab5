"""Generated speech as features with frame-wise phones, kept in a working directory.

Features are stored without padding and in 10-ms frames. Digital silence has a constant log-mel vector, so padding
and silence on the left can be put around them afterwards; 20 ms of it is stored at either end, which makes that
exact.

Shape legend: F feature frames (10 ms), M mel bins.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localgp.corpora.mini import LANGUAGES, speakers, synthesize_split
from localgp.corpora.text import normalize_text

HOP, RATE, MELS = 160, 16000, 80
EDGE = 2  # frames of digital silence at either end
SILENCE = float(np.log(1e-10))  # ESPnet's log-mel floor


@dataclass
class SpeechSet:
    """Attributes:
    feats: Log-mel of all utterances, one after the other, (sum of F, M) float16, memory-mapped.
    phones: Phone of each feature frame, (sum of F,) uint8; 0 is silence.
    starts: First frame of each utterance, and the end of the last.
    items: Per utterance ``language``, ``texts`` by language, ``speech`` (first start, last end in seconds).
    symbols: Names of the phones.
    """

    feats: np.ndarray
    phones: np.ndarray
    starts: np.ndarray
    items: list[dict[str, Any]]
    symbols: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def frames(self, index: int) -> int:
        return int(self.starts[index + 1] - self.starts[index])

    @classmethod
    def read(cls, directory: Path) -> SpeechSet:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        starts = np.load(directory / "starts.npy")
        feats = np.memmap(directory / "feats.f16", np.float16, "r", shape=(int(starts[-1]), MELS))
        return cls(feats, np.load(directory / "phones.npy"), starts, meta["items"], meta["symbols"])


def synthesize(
    directory: Path, *, seed: int, group: str, per_language: int, lexicon: str, workers: int
) -> SpeechSet:
    """Makes a set of utterances, or reads it where it has been made."""
    if not (directory / "meta.json").exists():
        staging = directory.with_name(directory.name + ".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        _write(staging, seed, group, per_language, lexicon, workers)
        os.replace(staging, directory)
    return SpeechSet.read(directory)


def _write(directory: Path, seed: int, group: str, per_language: int, lexicon: str, workers: int) -> None:
    log_mel = make_log_mel()
    symbols: dict[str, int] = {"": 0}
    starts, labels, items = [0], [], []
    began = time.perf_counter()
    with (directory / "feats.f16").open("wb") as out:
        for language, utterance in _utterances(seed, group, per_language, lexicon, workers):
            feats = log_mel(np.pad(utterance.samples, EDGE * HOP))
            out.write(feats.astype(np.float16).tobytes())
            starts.append(starts[-1] + len(feats))
            labels.append(_frame_phones(utterance.phones, len(feats), symbols))
            texts = {code: normalize_text(text) for code, text in utterance.texts.items()}
            speech = (utterance.speech[0][0], utterance.speech[-1][1])
            items.append(
                {"language": language, "texts": texts, "speech": speech, "speaker": utterance.speaker}
            )
    np.save(directory / "starts.npy", np.array(starts))
    np.save(directory / "phones.npy", np.concatenate(labels))
    meta = {"items": items, "symbols": list(symbols), "seed": seed, "seconds": time.perf_counter() - began}
    (directory / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


def _utterances(
    seed: int, group: str, per_language: int, lexicon: str, workers: int
) -> Iterator[tuple[str, Any]]:
    for language in LANGUAGES:
        voices = speakers(language, group)
        for utterance in synthesize_split(
            seed, language, voices, per_language, lexicon=lexicon, workers=workers
        ):
            yield language, utterance


def _frame_phones(phones: list[tuple[float, float, str]], frames: int, symbols: dict[str, int]) -> np.ndarray:
    """The phone at the centre of each feature frame; new symbols get the next number."""
    labels = np.zeros(frames, np.uint8)
    for start, end, name in phones:
        first, last = (round(t * RATE / HOP) + EDGE for t in (start, end))
        labels[first:last] = symbols.setdefault(name, len(symbols))
    return labels


def make_log_mel() -> Any:
    """ESPnet's front end as a function of samples; returns (F, M) float32."""
    from localgp.backbones.owsm.components import quiet_espnet

    with quiet_espnet():
        from espnet2.asr.frontend.default import DefaultFrontend

    frontend = DefaultFrontend(fs="16k", n_fft=512, win_length=400, hop_length=HOP).eval()

    @torch.inference_mode()
    def log_mel(samples: np.ndarray) -> np.ndarray:
        speech = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
        feats, _ = frontend(speech, torch.tensor([speech.shape[1]]))
        return feats[0].numpy()

    return log_mel


def write_statistics(speech: SpeechSet, path: Path, limit: int = 1500) -> None:
    """ESPnet's ``feats_stats.npz`` over up to ``limit`` utterances spread over the set."""
    count, total, square = 0, np.zeros(MELS), np.zeros(MELS)
    for index in np.unique(np.linspace(0, len(speech) - 1, limit).astype(int)):
        feats = np.asarray(
            speech.feats[speech.starts[index] + EDGE : speech.starts[index + 1] - EDGE], np.float64
        )
        count, total, square = count + len(feats), total + feats.sum(0), square + (feats**2).sum(0)
    np.savez(path, count=count, sum=total, sum_square=square)
