"""One sentence, spoken by one speaker with pauses and noise, and the truth about it."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np

from localgp.corpora.mini.grammar import draw_sentence
from localgp.corpora.mini.noise import add_noise, draw_noise
from localgp.corpora.mini.speakers import voice_of
from localgp.corpora.mini.voices import ESPEAK_RATE, Speech, speak
from localgp.corpora.parallel import no_main_module, processes
from localgp.errors import ConfigError

J = TypeVar("J")
R = TypeVar("R")

_SPEECH_RMS = 0.06  # root mean square of the speech where there is speech: about -24 dBFS
_MIN_GAP_S = 0.1  # a silence at least this long interrupts the intervals of true speech
_MAX_ATTEMPTS = 60
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Utterance:
    """One sentence spoken, in the recording's own pauses and noise.

    Attributes:
        utt_id: Unique within a split drawn with one seed.
        samples: Float32 (time,), mono.
        sample_rate: Of the samples.
        texts: Cased and punctuated, by language; ``texts[language]`` is what is spoken.
        words: ``(start s, end s, word)``.
        phones: ``(start s, end s, eSpeak mnemonic without stress)``; silences are not listed.
        speech: Intervals in which someone speaks, in seconds.
        snr_db: Of the speech against the noise; infinite without noise.
        noise: Its kind.
    """

    utt_id: str
    language: str
    speaker: str
    samples: np.ndarray
    sample_rate: int
    texts: dict[str, str]
    words: list[tuple[float, float, str]]
    phones: list[tuple[float, float, str]]
    speech: list[tuple[float, float]]
    snr_db: float
    noise: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


def draw_utterance(
    key: str,
    language: str,
    speaker: str,
    *,
    lexicon: str = "full",
    sample_rate: int = 16000,
    max_seconds: float = 7.8,
    noisy: bool = True,
) -> Utterance:
    """The utterance that belongs to ``key``; too long ones are drawn again, under a key derived from it.

    Args:
        key: Any text; utterances of different keys are independent.
        noisy: Whether background noise is added.

    Raises:
        ConfigError: ``max_seconds`` is too short for any sentence.
    """
    for attempt in range(_MAX_ATTEMPTS):
        fresh = f"{key}#{attempt}" if attempt else key
        utterance = _draw(fresh, language, speaker, lexicon, sample_rate, noisy)
        if utterance.seconds <= max_seconds:
            return replace(utterance, utt_id=key.replace("/", "-"))
    raise ConfigError(
        f"max_seconds={max_seconds}: none of {_MAX_ATTEMPTS} sentences was that short; 4 and more always work"
    )


def synthesize_split(
    seed: int,
    language: str,
    speakers: Sequence[str],
    count: int,
    *,
    lexicon: str = "full",
    sample_rate: int = 16000,
    max_seconds: float = 7.8,
    workers: int = 1,
) -> Iterator[Utterance]:
    """Utterances ``0 … count - 1`` of a seed, the speakers taking turns.

    With ``lexicon="core"`` the sentences come from three quarters of the words and of the patterns. The i-th
    depends on the arguments and i alone: not on ``count``, ``workers`` or what was made before.
    """
    jobs = [
        (
            f"{seed}/{lexicon}/{language}/{index:06d}",
            language,
            speakers[index % len(speakers)],
            lexicon,
            sample_rate,
            max_seconds,
        )
        for index in range(count)
    ]
    if workers <= 1:
        yield from map(_draw_job, jobs)
        return
    yield from map_in_processes(_draw_job, jobs, workers, chunksize=16)


def map_in_processes(
    function: Callable[[J], R], jobs: Sequence[J], workers: int, chunksize: int = 1
) -> Iterator[R]:
    """``map`` over processes, in order."""
    with processes(workers) as pool:
        with no_main_module():
            results = pool.map(function, jobs, chunksize=chunksize)
        yield from results


def _draw_job(job: tuple[str, str, str, str, int, float]) -> Utterance:
    key, language, speaker, lexicon, sample_rate, max_seconds = job
    return draw_utterance(
        key, language, speaker, lexicon=lexicon, sample_rate=sample_rate, max_seconds=max_seconds
    )


def _draw(key: str, language: str, speaker: str, lexicon: str, sample_rate: int, noisy: bool) -> Utterance:
    rng = generator(key + "/sound")
    texts = draw_sentence(key, lexicon)
    voice = voice_of(speaker)
    speech = speak(
        texts[language],
        voice.name,
        rate=round(rng.uniform(152, 212) * voice.tempo),
        pitch=int(np.clip(voice.pitch + rng.integers(-8, 9), 0, 99)),
        pitch_range=voice.pitch_range,
    )
    speech = _with_pauses(speech, rng)
    samples, scale = resample(speech.samples, ESPEAK_RATE, sample_rate), sample_rate / ESPEAK_RATE
    phones = [(start, end, name) for start, end, name in speech.phones if name]
    intervals = _intervals(phones)
    active = np.concatenate([samples[int(a * scale) : int(b * scale)] for a, b in intervals])
    samples = samples * (_SPEECH_RMS * 10 ** (rng.uniform(-4, 4) / 20) / np.sqrt(np.mean(active**2)))
    noise, snr_db = draw_noise(rng) if noisy else ("clean", float("inf"))
    samples = add_noise(samples, noise, snr_db, sample_rate, rng)
    return Utterance(
        utt_id=key,
        language=language,
        speaker=speaker,
        samples=samples.astype(np.float32),
        sample_rate=sample_rate,
        texts=texts,
        words=_word_times(texts[language], speech, intervals[-1][1]),
        phones=[(_seconds(start), _seconds(end), name) for start, end, name in phones],
        speech=[(_seconds(start), _seconds(end)) for start, end in intervals],
        snr_db=snr_db,
        noise=noise,
    )


def generator(key: str) -> np.random.Generator:
    """Random numbers that belong to ``key``."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))


def _seconds(sample: int) -> float:
    return round(sample / ESPEAK_RATE, 4)


def _with_pauses(speech: Speech, rng: np.random.Generator) -> Speech:
    """Silence before, after, and at some of the pauses inside; the times move along."""
    pauses: dict[int, int] = {0: int(rng.uniform(0.1, 0.8) * ESPEAK_RATE)}
    last = max(end for _, end, name in speech.phones if name)
    for start, end, name in speech.phones:
        if not name and start > 0 and end < last and end - start > 0.04 * ESPEAK_RATE and rng.random() < 0.6:
            pauses[(start + end) // 2] = int(rng.uniform(0.2, 0.6) * ESPEAK_RATE)
    trailing = int(rng.uniform(0.1, 0.8) * ESPEAK_RATE)
    pieces, position = [], 0
    for at, length in sorted(pauses.items()):
        pieces += [speech.samples[position:at], np.zeros(length, np.float32)]
        position = at
    pieces += [speech.samples[position : last + int(0.05 * ESPEAK_RATE)], np.zeros(trailing, np.float32)]

    def moved(sample: int) -> int:
        return sample + sum(length for at, length in pauses.items() if at <= sample)

    return Speech(
        samples=np.concatenate(pieces),
        words=[(moved(start), offset) for start, offset in speech.words],
        phones=[(moved(start), moved(end - 1) + 1, name) for start, end, name in speech.phones],
    )


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Samples (time,) at another rate, float64."""
    if rate == wanted:
        return samples.astype(np.float64)
    from scipy.signal import resample_poly

    ratio = Fraction(wanted, rate)
    return resample_poly(samples.astype(np.float64), ratio.numerator, ratio.denominator)


def _intervals(phones: Sequence[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """Stretches of speech in samples: phones with no gap of ``_MIN_GAP_S`` between them."""
    merged: list[tuple[int, int]] = []
    for start, end, _ in phones:
        if merged and start - merged[-1][1] < _MIN_GAP_S * ESPEAK_RATE:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _word_times(text: str, speech: Speech, end: int) -> list[tuple[float, float, str]]:
    """Times of the written words.

    eSpeak sends an event per word it speaks, placed by its offset in the text. Where it joins words into one, they
    share its time in proportion to their letters.
    """
    matches = [m for m in _WORD.finditer(text) if any(c.isalnum() for c in m[0])]
    starts: dict[int, int] = {}
    for sample, offset in speech.words:
        index = max((i for i, m in enumerate(matches) if m.start() <= offset), default=0)
        starts.setdefault(index, sample)
    known = sorted({0: speech.words[0][0], **starts}.items())
    times = []
    for (index, start), (following, stop) in zip(known, [*known[1:], (len(matches), end)], strict=True):
        spoken = [b for a, b, name in speech.phones if name and start <= a < stop]
        stop = min(stop, max(spoken, default=stop))
        letters = np.array([0.0, *(len(matches[i][0]) for i in range(index, following))]).cumsum()
        edges = start + (stop - start) * letters / letters[-1]
        times += [
            (float(a), float(b), matches[index + i][0]) for i, (a, b) in enumerate(itertools.pairwise(edges))
        ]
    return [(_seconds(round(a)), _seconds(round(b)), word.strip(".,;:?!")) for a, b, word in times]
