"""SPIRAL: four-choice questions about spoken lectures, meetings and talks, in its published annotation format.

A corpus is a directory:

    data.jsonl      one question per line
    data_h.jsonl    the hard subset (SPIRAL-H), the same lines; optional
    wavs/           <id>.wav

A line holds ``transcript`` (turns: speaker, sentences), ``original_key_sentence``, ``test_question`` (question,
choices "A. …" to "D. …", correct_answer), ``metadata`` (id, transcript_type, topics) and ``audio_data``: the key
sentence with ``indices`` [first, last + 1) into ``combined.sentences``, the sentences as they were spoken, and the
audio file. The published files hold no times. `localgp.speechprune.speak` adds
``combined.sentence_times``, [start, end] in seconds for each of ``combined.sentences``.

What a reader must know of the published files: the key sentence is not always literally among the sentences
(89 of 1012: a part of one, or two joined), so ``indices`` are to be trusted, not the text; and the answers are
skewed (B 603, C 271, A 125, D 13), so that answering B always is right in 59.6 % of all and 65.1 % of the hard
questions. `shuffled` moves the choices.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localgp.errors import CorpusError

LETTERS = "ABCD"
SOURCE = "github.com/linyueqian/SPIRAL_Dataset"


@dataclass(frozen=True)
class Question:
    """One audio and its question.

    Attributes:
        id: Unique; also the audio file's stem.
        kind: ``lecture``, ``conversation`` or ``meeting``.
        sentences: As spoken, in order, each with its speaker.
        question: The question alone.
        choices: Four texts without their letters.
        answer: Index of the right one.
        key: Sentences [first, last + 1) that hold the answer.
        times: Start and end of each sentence in seconds, where known.
        audio: The file.
        hard: Whether it belongs to the hard subset.
    """

    id: str
    kind: str
    sentences: tuple[tuple[str, str], ...]
    question: str
    choices: tuple[str, ...]
    answer: int
    key: tuple[int, int]
    times: tuple[tuple[float, float], ...] | None
    audio: Path
    hard: bool = False

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]

    @property
    def key_times(self) -> tuple[float, float] | None:
        """Start and end of the sentences that hold the answer."""
        if self.times is None:
            return None
        return self.times[self.key[0]][0], self.times[self.key[1] - 1][1]

    def prompt(self) -> str:
        """What the user says to the model. The paper does not print its own."""
        listed = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True)
        )
        return f"{self.question}\n{listed}\nAnswer with the letter of the correct choice."


def read(root: str | Path, need_audio: bool = True) -> list[Question]:
    """Reads a corpus directory.

    Args:
        root: Holds ``data.jsonl``.
        need_audio: Check that every audio file is there.

    Raises:
        CorpusError: No such directory or file; a line that does not fit the format (with file, line and field);
            an id twice; a hard id that is not among all; audio that is missing.
    """
    root = Path(root)
    if not (root / "data.jsonl").is_file():
        raise CorpusError(
            f"{root}: no data.jsonl; expected data.jsonl, data_h.jsonl and wavs/ as published at {SOURCE}, or leave "
            "spiral=null for the embedded samples"
        )
    questions = [_parse(root, entry, source) for entry, source in _lines(root / "data.jsonl")]
    twice = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if twice:
        raise CorpusError(f"{root / 'data.jsonl'}: id {twice[0]!r} more than once; ids must be unique")
    hard = _hard_ids(root, {question.id for question in questions})
    questions = [replace(question, hard=question.id in hard) for question in questions]
    missing = [question.audio for question in questions if not question.audio.is_file()]
    if need_audio and missing:
        raise CorpusError(
            f"{root}: {len(missing)} of {len(questions)} audio files are missing, the first is {missing[0]}; fetch the "
            f"audio that {SOURCE} links to into {root / 'wavs'}, or speak the transcripts: "
            f"python -m localgp.speechprune speak=true spiral={root}"
        )
    return questions


def _hard_ids(root: Path, known: set[str]) -> set[str]:
    path = root / "data_h.jsonl"
    if not path.is_file():
        return set()
    hard = {_field(entry, "metadata.id", str, source) for entry, source in _lines(path)}
    if hard - known:
        raise CorpusError(
            f"{path}: id {min(hard - known)!r} is not in data.jsonl; the two files belong to different sets"
        )
    return hard


def _lines(path: Path) -> list[tuple[dict[str, Any], str]]:
    entries = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{source}: not JSON ({error}); the file may be cut off, fetch it again"
            ) from error
        if not isinstance(entry, dict):
            raise CorpusError(
                f"{source}: a JSON {type(entry).__name__}, not an object; one question per line"
            )
        entries.append((entry, source))
    if not entries:
        raise CorpusError(f"{path}: empty; expected one question per line")
    return entries


def _field(entry: dict[str, Any], path: str, kind: type, source: str) -> Any:
    value: Any = entry
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise CorpusError(f"{source}: field {path} is missing; see {SOURCE} for the format")
        value = value[name]
    if not isinstance(value, kind):
        raise CorpusError(f"{source}: field {path} is {value!r}; expected {kind.__name__}")
    return value


def _parse(root: Path, entry: dict[str, Any], source: str) -> Question:
    sentences = [str(text) for text in _field(entry, "audio_data.combined.sentences", list, source)]
    speakers = _speakers(_field(entry, "transcript", list, source), sentences, source)
    choices = _field(entry, "test_question.choices", list, source)
    correct = _field(entry, "test_question.correct_answer", str, source)
    if [str(choice)[:3] for choice in choices] != [f"{letter}. " for letter in LETTERS]:
        raise CorpusError(f"{source}: choices are {choices}; expected four, 'A. …' to 'D. …'")
    if correct not in choices:
        raise CorpusError(f"{source}: correct_answer {correct!r} is none of the choices {choices}")
    key = _field(entry, "audio_data.key_sentences.indices", list, source)
    if not (len(key) == 2 and all(type(i) is int for i in key) and 0 <= key[0] < key[1] <= len(sentences)):
        raise CorpusError(
            f"{source}: key_sentences.indices is {key}; expected [first, last + 1) within {len(sentences)} sentences"
        )
    files = _field(entry, "audio_data.combined.audio_files", list, source)
    if len(files) != 1 or not isinstance(files[0], str) or Path(files[0]).name != files[0]:
        raise CorpusError(
            f"{source}: combined.audio_files is {files}; expected one file name without a folder"
        )
    return Question(
        id=_field(entry, "metadata.id", str, source),
        kind=_field(entry, "metadata.transcript_type", str, source),
        sentences=tuple(zip(speakers, sentences, strict=True)),
        question=_field(entry, "test_question.question", str, source),
        choices=tuple(choice[3:] for choice in choices),
        answer=choices.index(correct),
        key=(key[0], key[1]),
        times=_times(entry, len(sentences), source),
        audio=root / "wavs" / files[0],
    )


def _times(entry: dict[str, Any], sentences: int, source: str) -> tuple[tuple[float, float], ...] | None:
    times = entry["audio_data"]["combined"].get("sentence_times")
    if times is None:
        return None
    pairs = times if isinstance(times, list) else []
    sound = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2 and _ascending(*pair)]
    if len(sound) != sentences or len(pairs) != sentences:
        raise CorpusError(
            f"{source}: sentence_times does not give 0 <= start < end for each of {sentences} sentences"
        )
    return tuple((float(start), float(end)) for start, end in sound)


def _ascending(start: Any, end: Any) -> bool:
    return isinstance(start, (int, float)) and isinstance(end, (int, float)) and 0 <= start < end


def _speakers(turns: list[Any], sentences: list[str], source: str) -> list[str]:
    """Who speaks each sentence. Turns and spoken sentences are cut differently, but hold the same words."""
    speaker_of_character: list[str] = []
    for turn in turns:
        speaker, texts = _field(turn, "speaker", str, source), _field(turn, "text", list, source)
        speaker_of_character += [speaker] * len("".join("".join(map(str, texts)).split()))
    speakers, position = [], 0
    for sentence in sentences:
        if position >= len(speaker_of_character):
            raise CorpusError(
                f"{source}: combined.sentences has more words than the transcript; they must agree"
            )
        speakers.append(speaker_of_character[position])
        position += len("".join(sentence.split()))
    return speakers


def shuffled(question: Question, seed: int) -> Question:
    """The same question with its choices in another order, the same for a seed and an id."""
    order = list(range(len(question.choices)))
    random.Random(f"{seed}/{question.id}").shuffle(order)
    return replace(
        question, choices=tuple(question.choices[i] for i in order), answer=order.index(question.answer)
    )


def always_one_letter(questions: Sequence[Question]) -> dict[str, float]:
    """Accuracy of answering one letter always, per letter; the best of them is the baseline to beat."""
    counts = Counter(question.letter for question in questions)
    return {letter: counts[letter] / len(questions) for letter in LETTERS}
