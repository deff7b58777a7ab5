"""Speaks SPIRAL transcripts with the mini corpus's voices, so that everything runs without the published audio.

Takes any directory in SPIRAL's format, the embedded samples or the published annotations, and writes one in the
same format with the audio and one field more, ``combined.sentence_times``: when each sentence is spoken is known,
and so are the audio tokens that hold the answer.

Every speaker of a transcript has an eSpeak variant of its own, with the pitch and tempo that the variant has in
the mini corpus. Where the source has no hard subset, the hard questions are those whose key sentence begins
after 30 s: what the untouched model cannot hear.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from localgp.corpora.audio import SAMPLE_RATE, write_audio
from localgp.corpora.mini.speakers import GROUPS, Voice, speakers, voice_of
from localgp.corpora.mini.voices import ESPEAK_RATE, speak
from localgp.errors import CorpusError
from localgp.io import filled
from localgp.speechprune.spiral import Question, read

_MARKER = "spoken.json"  # what a directory was made from; also says that it is ours to replace
_WORDS_PER_MINUTE = 145  # SPIRAL's 195 words then last about 85 s, pauses included
_PEAK = 0.7
_PAUSE, _TURN = (0.25, 0.55), (0.5, 0.9)  # seconds between sentences, and where the speaker changes
_EARLY = 30.0  # seconds that the untouched model hears


@dataclass(frozen=True)
class Spoken:
    """Samples (n,) at 16 kHz and the start and end of every sentence in seconds."""

    samples: np.ndarray
    times: list[tuple[float, float]]


def english_voices() -> list[Voice]:
    """The mini corpus's voices, made to speak English."""
    variants = [speaker for group in GROUPS for speaker in speakers("de", group)]
    return [replace(voice_of(name), name=f"en-us+{name.partition('-')[2]}") for name in variants]


def speak_sentences(sentences: Sequence[tuple[str, str]], key: str) -> Spoken:
    """Speaks (speaker, text) pairs one after the other; the same for the same key.

    Examples:
        >>> spoken = speak_sentences([("a", "Good morning."), ("b", "Good evening.")], key="example")
        >>> spoken.times[0][1] < spoken.times[1][0]
        True
    """
    from scipy.signal import resample_poly

    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    voices = english_voices()
    names = list(dict.fromkeys(speaker for speaker, _ in sentences))
    chosen = dict(zip(names, rng.permutation(len(voices))[: len(names)], strict=True))
    ratio = Fraction(SAMPLE_RATE, ESPEAK_RATE)
    pieces, times, position, previous = [], [], 0, None
    for speaker, text in sentences:
        voice = voices[chosen[speaker]]
        pause = rng.uniform(*(_PAUSE if speaker == previous else _TURN))
        made = speak(text, voice.name, round(_WORDS_PER_MINUTE * voice.tempo), voice.pitch, voice.pitch_range)
        sounds = [(start, end) for start, end, name in made.phones if name]
        if not sounds:
            raise CorpusError(f"{key}: nothing to speak in the sentence {text!r}; it needs a word")
        speech = made.samples[sounds[0][0] : sounds[-1][1]]  # eSpeak's own silences would blur the times
        samples = resample_poly(speech.astype(np.float64), ratio.numerator, ratio.denominator)
        position += round(pause * SAMPLE_RATE)
        pieces += [np.zeros(round(pause * SAMPLE_RATE)), samples]
        times.append((position / SAMPLE_RATE, (position + len(samples)) / SAMPLE_RATE))
        position += len(samples)
        previous = speaker
    audio = np.concatenate([*pieces, np.zeros(round(_PAUSE[1] * SAMPLE_RATE))])
    return Spoken((audio * (_PEAK / np.abs(audio).max())).astype(np.float32), times)


def embedded(
    out: Path, limit: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> list[Question]:
    """The samples that come with the package, spoken into ``out`` (once)."""
    with as_file(files("localgp.speechprune") / "samples") as root:
        return spoken(root, out, limit, progress)


def spoken(
    root: Path, out: Path, limit: int | None = None, progress: Callable[[int], None] = lambda done: None
) -> list[Question]:
    """Speaks a corpus into ``out``, unless exactly that is there already, and reads it.

    Args:
        root: Directory with annotations; its audio is not needed.
        out: Directory to write, in the same format.
        limit: First n questions.
        progress: Called with the number of questions spoken.

    Raises:
        CorpusError: The annotations are damaged, or ``out`` is something that was not written here.
    """
    questions = read(root, need_audio=False)[:limit]
    lines = (root / "data.jsonl").read_text("utf-8").split("\n")
    entries = {entry["metadata"]["id"]: entry for entry in map(json.loads, filter(str.strip, lines))}
    has_hard = (root / "data_h.jsonl").is_file()
    fingerprint = _fingerprint(
        [entries[question.id] for question in questions], [q.id for q in questions if q.hard]
    )
    if _is_there(out, fingerprint):
        return read(out)

    try:
        with filled(out) as temporary:
            (temporary / "wavs").mkdir()
            every, hard = [], []
            for done, question in enumerate(questions, 1):
                made = speak_sentences(question.sentences, question.id)
                write_audio(temporary / "wavs" / question.audio.name, made.samples, subtype="PCM_16")
                entry = _with_times(entries[question.id], made.times)
                late = made.times[question.key[0]][0] >= _EARLY
                every.append(entry)
                hard += [entry] if (question.hard if has_hard else late) else []
                progress(done)
            _write_lines(temporary / "data.jsonl", every)
            if hard:
                _write_lines(temporary / "data_h.jsonl", hard)
            (temporary / _MARKER).write_text(json.dumps(fingerprint) + "\n")
    except OSError:  # another process may have finished the same meanwhile
        if not _is_there(out, fingerprint):
            raise
    return read(out)


def _fingerprint(entries: list[dict[str, Any]], hard: list[str]) -> dict[str, Any]:
    import espeakng_loader  # noqa: F401  (so that a missing wheel is reported before anything is written)

    settings = [_WORDS_PER_MINUTE, _PEAK, _PAUSE, _TURN, [str(voice) for voice in english_voices()]]
    text = json.dumps([settings, entries, hard], sort_keys=True)
    return {"questions": len(entries), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _is_there(out: Path, fingerprint: dict[str, Any]) -> bool:
    if not out.exists():
        return False
    if not (out / _MARKER).is_file():
        raise CorpusError(
            f"{out}: exists and was not made from spoken transcripts; remove it, or give another data_dir"
        )
    return json.loads((out / _MARKER).read_text()) == fingerprint


def _with_times(entry: dict[str, Any], times: list[tuple[float, float]]) -> dict[str, Any]:
    combined = {
        **entry["audio_data"]["combined"],
        "audio_folder": "wavs",
        "sentence_times": [[round(start, 4), round(end, 4)] for start, end in times],
    }
    return {**entry, "audio_data": {**entry["audio_data"], "combined": combined}}


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")
