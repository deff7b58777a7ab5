"""One recorded speech of the mini corpus: a speaker says some sentences into one background noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localgp.corpora.mini.noise import add_noise, draw_noise
from localgp.corpora.mini.utterance import Utterance, draw_utterance, generator, resample
from localgp.corpora.mini.voices import ESPEAK_RATE

# The real corpus's recordings are not at 16 kHz, and some are stereo with one channel that was not connected.
_RATES = {ESPEAK_RATE: 0.8, 32000: 0.1, 44100: 0.1}
_STEREO = 0.15
_BIT_RATE = 64_000
_GRID = 441  # samples: 20 ms, so that the times in the lists are exact with two digits
_TYPOGRAPHY = 0.02  # share of the texts with an apostrophe in which it is typographic, sometimes with spaces


@dataclass(frozen=True)
class SpeechJob:
    """What `make_speech` needs.

    Attributes:
        root: The corpus.
        name: Of the speech and its file.
        key: Of its random choices.
        count: Segments.
        targets: Languages it is translated into.
        left_out: Share of the segments that a direction lacks.
    """

    root: Path
    name: str
    key: str
    language: str
    split: str
    speaker: str
    count: int
    targets: tuple[str, ...]
    left_out: float


@dataclass(frozen=True)
class Spoken:
    """A segment of a speech: its times in the recording, texts, directions that have it, and the truth."""

    speech: str
    start: float
    end: float
    texts: dict[str, str]
    targets: tuple[str, ...]
    truth: dict[str, Any]


def make_speech(job: SpeechJob) -> list[Spoken]:
    """Speaks and writes one recording; returns its segments in order."""
    rng = generator(f"{job.key}/recording")
    noise, snr_db = draw_noise(rng)
    pieces, segments, position = [], [], 0
    for index in range(job.count):
        utterance = draw_utterance(
            f"{job.key}/{index}", job.language, job.speaker, sample_rate=ESPEAK_RATE, noisy=False
        )
        gap = _GRID * int(rng.integers(5, 40))
        padding = -len(utterance.samples) % _GRID
        pieces += [np.zeros(gap), utterance.samples, np.zeros(padding)]
        start = position + gap
        position = start + len(utterance.samples) + padding
        segments.append(_segment(job, utterance, start, position, noise, snr_db, rng))
    samples = np.concatenate([*pieces, np.zeros(_GRID * 25)])
    samples = add_noise(samples, noise, snr_db, ESPEAK_RATE, rng)
    rate = int(rng.choice(list(_RATES), p=list(_RATES.values())))
    samples = np.clip(resample(samples, ESPEAK_RATE, rate), -0.99, 0.99).astype(np.float32)
    if rng.random() < _STEREO:
        silent = np.zeros_like(samples)
        samples = np.stack([samples, silent] if rng.random() < 0.5 else [silent, samples])
    _write_m4a(job.root / job.language / "audios" / f"{job.name}.m4a", samples, rate)
    return segments


def _segment(
    job: SpeechJob,
    utterance: Utterance,
    start: int,
    end: int,
    noise: str,
    snr_db: float,
    rng: np.random.Generator,
) -> Spoken:
    begin, finish = round(start / ESPEAK_RATE, 2), round(end / ESPEAK_RATE, 2)
    kept = tuple(target for target in job.targets if rng.random() >= job.left_out)
    truth = {
        "speech": job.name,
        "start": begin,
        "end": finish,
        "speaker": job.speaker,
        "noise": noise,
        "snr_db": None if np.isinf(snr_db) else round(snr_db, 2),
        "words": [[round(a, 3), round(b, 3), word] for a, b, word in utterance.words],
        "speech_intervals": [[round(a, 3), round(b, 3)] for a, b in utterance.speech],
    }
    texts = {language: _typography(text, rng) for language, text in utterance.texts.items()}
    return Spoken(job.name, begin, finish, texts, kept or job.targets[:1], truth)


def _typography(text: str, rng: np.random.Generator) -> str:
    """Now and then an apostrophe as the real corpus has them: curly, and with spaces around."""
    if "'" not in text or rng.random() >= _TYPOGRAPHY:
        return text
    return text.replace("'", " ’ " if rng.random() < 0.5 else "’")


def _write_m4a(path: Path, samples: np.ndarray, rate: int) -> None:
    """AAC, the same bytes for the same samples: (time,) or (2, time).

    The fast coder takes half the time of FFmpeg's usual one and loses nothing on this material.
    """
    import av
    from av.audio.stream import AudioStream

    channels = np.ascontiguousarray(np.atleast_2d(samples))
    layout = "mono" if len(channels) == 1 else "stereo"
    with av.open(str(path), "w", format="ipod", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=rate, layout=layout, options={"aac_coder": "fast"})
        assert isinstance(stream, AudioStream)
        stream.bit_rate = _BIT_RATE
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.pts = (
            0  # without it there is no edit list, and the encoder's priming samples would delay everything
        )
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
