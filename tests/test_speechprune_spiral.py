"""SPIRAL's format, answers, and the generator that speaks its transcripts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from localgp.corpora.audio import read_audio
from localgp.errors import CorpusError
from localgp.speechprune import speak
from localgp.speechprune.spiral import LETTERS, always_one_letter, read, shuffled
from localgp.speechprune.spiral_accuracy import key_recall, key_tokens, read_answer

FIXTURE = Path(__file__).parent / "fixtures" / "spiral"
SAMPLES = Path(speak.__file__).parent / "samples"


@pytest.fixture
def entries():
    return [json.loads(line) for line in (FIXTURE / "data.jsonl").read_text().split("\n") if line]


def write(root, entries, hard=None):
    (root / "data.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    if hard is not None:
        (root / "data_h.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in hard))
    return root


def test_reads_the_published_format():
    questions = read(FIXTURE, need_audio=False)
    goat = questions[0]
    assert [question.id for question in questions] == ["conversation_7", "lecture_3", "meeting_2"]
    assert [question.hard for question in questions] == [False, True, False]
    assert goat.kind == "conversation"
    # The turns are cut otherwise than what was spoken: the speaker follows from the words' place.
    assert [speaker for speaker, _ in goat.sentences] == ["spk_2", "spk_2", "spk_1", "spk_1"]
    assert goat.key == (0, 2)
    assert goat.choices[goat.answer] == "Nine"
    assert goat.letter == "B"
    assert goat.times is None
    assert goat.key_times is None
    assert goat.audio == FIXTURE / "wavs" / "conversation_7.wav"
    assert goat.prompt().startswith("How many rows of beans did the goat eat?\nA. Two\nB. Nine\n")


def test_always_one_letter():
    assert always_one_letter(read(FIXTURE, need_audio=False)) == {"A": 0, "B": 2 / 3, "C": 1 / 3, "D": 0}


def test_shuffled_choices_keep_the_right_answer_and_favour_no_letter():
    question = read(FIXTURE, need_audio=False)[0]
    letters = Counter()
    for seed in range(400):
        other = shuffled(question, seed)
        assert sorted(other.choices) == sorted(question.choices)
        assert other.choices[other.answer] == "Nine"
        letters[other.letter] += 1
    assert set(letters) == set(LETTERS)
    assert max(letters.values()) < 140  # four standard deviations above 100
    assert shuffled(question, 3) == shuffled(question, 3)


def damaged(entry, path, value):
    entry = json.loads(json.dumps(entry))
    *parents, last = path.split(".")
    inner = entry
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return entry


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("test_question", None, r"data\.jsonl:2: field test_question\.choices is missing"),
        ("metadata.id", 7, r"data\.jsonl:2: field metadata\.id is 7; expected str"),
        ("metadata.id", "conversation_7", r"id 'conversation_7' more than once"),
        ("test_question.choices", ["A. x", "B. y"], r"expected four, 'A\. …' to 'D\. …'"),
        ("test_question.correct_answer", "C. 1912", r"'C\. 1912' is none of the choices"),
        (
            "audio_data.key_sentences.indices",
            [1, 3],
            r"\[1, 3\]; expected \[first, last \+ 1\) within 2 sentences",
        ),
        ("audio_data.combined.audio_files", ["../x.wav"], r"one file name without a folder"),
        ("audio_data.combined.sentence_times", [[0, 1]], r"for each of 2 sentences"),
        (
            "audio_data.combined.sentences",
            ["A hedge is slow. This one is from 1911.", "Yes."],
            r"more words than",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, entries, path, value, message):
    with pytest.raises(CorpusError, match=message):
        read(write(tmp_path, [entries[0], damaged(entries[1], path, value)]), need_audio=False)


def test_damaged_files_are_named(tmp_path, entries):
    with pytest.raises(CorpusError, match=r"no data\.jsonl; expected data\.jsonl, data_h\.jsonl and wavs/"):
        read(tmp_path)
    (tmp_path / "data.jsonl").write_text('{"transcript": [\n')
    with pytest.raises(CorpusError, match=r"data\.jsonl:1: not JSON"):
        read(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match=r"data\.jsonl: empty"):
        read(tmp_path)
    with pytest.raises(CorpusError, match="'lecture_3' is not in data.jsonl"):
        read(write(tmp_path, entries[:1], hard=entries[1:2]), need_audio=False)
    with pytest.raises(CorpusError, match=r"3 of 3 audio files are missing.*speak=true"):
        read(write(tmp_path, entries, hard=entries[1:2]))


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) Five", "C"),
        ("B. Nine", "B"),
        ("The answer is D.", "D"),
        ("The correct answer is A.", "A"),
        ("The goat ate nine rows.", "B"),
        ("A goat ate nine rows.", "B"),
        ("A", "A"),
        ("It is hard to say.", None),
        ("Two or nine.", None),
        ("", None),
    ],
)
def test_answers_are_read_from_replies(reply, letter):
    assert read_answer(reply, read(FIXTURE, need_audio=False)[0]) == letter


def test_key_tokens_and_recall():
    assert key_tokens((1.0, 2.0)) == range(25, 50)
    assert key_tokens((0.99, 1.03)) == range(24, 26)
    kept = torch.tensor([0, 24, 25, 30, 49, 50, 99])
    assert key_recall(kept, (1.0, 2.0)) == 3 / 25


def test_embedded_samples_are_sound():
    questions = read(SAMPLES, need_audio=False)
    assert Counter(question.letter for question in questions) == dict.fromkeys(LETTERS, 2)
    assert {question.kind for question in questions} == {"lecture", "conversation", "meeting"}
    for question in questions:
        words = sum(len(text.split()) for _, text in question.sentences)
        assert 200 <= words <= 280  # SPIRAL's own have 195 on average


def test_spoken_transcripts_have_true_times(tmp_path):
    questions = speak.spoken(FIXTURE, tmp_path / "out")
    assert [question.hard for question in questions] == [False, True, False]  # the source says which are hard
    goat = questions[0]
    samples = read_audio(goat.audio)
    envelope = np.abs(samples)
    quiet = envelope.max() / 1000
    spoken = np.zeros(len(samples), bool)
    for (start, end), (_, text) in zip(goat.times, goat.sentences, strict=True):
        first, last = round(start * 16000), round(end * 16000)
        spoken[first:last] = True
        assert (envelope[first:last] > quiet).mean() > 0.5
        assert 0.15 < (end - start) / len(text.split()) < 0.8  # seconds per word of somebody speaking
    assert envelope[~spoken].max() < 0.02 * envelope.max()
    assert goat.key_times == (goat.times[0][0], goat.times[1][1])


def test_speaking_is_repeatable_and_done_once(tmp_path):
    first = speak.spoken(FIXTURE, tmp_path / "a", limit=1)
    written = first[0].audio.read_bytes()
    assert len(first) == 1
    before = first[0].audio.stat().st_mtime_ns
    assert speak.spoken(FIXTURE, tmp_path / "a", limit=1) == first
    assert first[0].audio.stat().st_mtime_ns == before  # kept, not spoken again
    assert len(speak.spoken(FIXTURE, tmp_path / "a", limit=2)) == 2  # another request replaces it
    assert first[0].audio.read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nothing half-written beside it


def test_a_directory_of_somebody_elses_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(CorpusError, match="exists and was not made from spoken transcripts; remove it"):
        speak.spoken(FIXTURE, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


def test_speakers_differ(tmp_path):
    text = "This one is from nineteen eleven."
    spoken = speak.speak_sentences([("spk_1", text), ("spk_2", text)], key="x")
    cuts = [spoken.samples[round(a * 16000) : round(b * 16000)] for a, b in spoken.times]
    length = min(map(len, cuts))
    assert abs(np.corrcoef(cuts[0][:length], cuts[1][:length])[0, 1]) < 0.5


def test_without_a_hard_subset_late_answers_are_hard(tmp_path):
    questions = speak.embedded(tmp_path / "embedded", limit=2)
    assert [question.hard for question in questions] == [True, False]
    assert [question.key_times[0] >= 30 for question in questions] == [True, False]
