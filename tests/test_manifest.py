"""The manifest reader: the documented example works; every wrong line says where, what and how to correct it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from localgp.corpora.manifest import OPTIONAL, REQUIRED, read_manifest
from localgp.errors import ConfigError, CorpusError

GOOD = {
    "audio": "a.m4a",
    "start": 0.5,
    "end": 2.0,
    "language": "de",
    "text": {"de": "Guten Tag.", "fr": "Bonjour."},
}


def manifest(tmp_path, *lines):
    path = tmp_path / "my.jsonl"
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


def test_all_keys(tmp_path):
    row = GOOD | {"audio": "talks/b 1.wav", "speaker": "Anna", "split": "dev", "id": "x1"}
    (segment,) = read_manifest(manifest(tmp_path, "", row)).segments
    assert segment.audio == tmp_path / "talks" / "b 1.wav"
    assert (segment.utt_id, segment.split, segment.speaker, segment.language) == ("x1", "dev", "Anna", "de")
    assert (segment.start, segment.end, segment.asr) == (0.5, 2.0, True)
    assert (segment.transcript, segment.translations) == ("guten tag.", {"fr": "bonjour."})
    assert segment.source == f"{tmp_path / 'my.jsonl'}:2"


def test_optional_keys_left_out_or_null(tmp_path):
    short = {"audio": "talks/b 1.wav", "language": "zh", "text": {"zh": "好"}}
    null = GOOD | {"speaker": None, "split": None, "id": None, "end": None}
    first, second = read_manifest(manifest(tmp_path, short, null), case="keep").segments
    assert (first.utt_id, first.split, first.start, first.end) == ("talks_b_1", "train", None, None)
    assert first.translations == {}
    assert (second.utt_id, second.split, second.speaker) == ("a_0000500_end", "train", None)
    assert second.transcript == "Guten Tag."


def test_absolute_audio_path(tmp_path):
    (segment,) = read_manifest(manifest(tmp_path, GOOD | {"audio": "/data/a.wav"})).segments
    assert str(segment.audio) == "/data/a.wav"


def test_languages_are_a_filter(tmp_path):
    other = {"audio": "b.m4a", "language": "fr", "text": {"fr": "Oui."}}
    path = manifest(tmp_path, GOOD, other)
    assert len(read_manifest(path).segments) == 2
    reading = read_manifest(path, languages=["de", "it"])
    assert [(s.language, s.translations) for s in reading.segments] == [("de", {})]
    assert reading.notes["segments in other languages"] == 1
    with pytest.raises(
        ConfigError, match="corpus.languages: unknown language 'xx'; valid are codes of two letters"
    ):
        read_manifest(path, languages=["xx"])


def test_empty_texts(tmp_path):
    rows = [
        GOOD | {"id": "a", "text": {"de": " ", "fr": "Oui."}},
        GOOD | {"id": "b", "text": {"de": "Ja.", "fr": ""}},
    ]
    reading = read_manifest(manifest(tmp_path, *rows))
    assert [(s.utt_id, s.translations) for s in reading.segments] == [("b", {})]
    assert [(d.utt_id, d.reason) for d in reading.dropped] == [("a", "empty text")]


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ('{"audio": "a.m4a",', "invalid line", "not JSON: .* a line is {"),
        ("[1]", "invalid line", "a JSON list, not an object"),
        (
            GOOD | {"begin": 1, "lang": 2},
            "invalid line",
            "unknown 'begin', 'lang'; valid keys are audio, language, text",
        ),
        (without("audio"), "invalid line", "missing 'audio'; a line is {"),
        (without("text") | {"language": None}, "invalid line", "missing 'language', 'text'"),
        (
            GOOD | {"language": "xx"},
            "unknown language",
            "unknown language 'xx'; valid are codes of two letters",
        ),
        (GOOD | {"language": ["de"]}, "unknown language", r"unknown language \['de'\]"),
        (GOOD | {"language": "und"}, "unknown language", "unknown language 'und'"),
        (
            GOOD | {"text": {"de": "Ja.", "deu": "Ja."}},
            "invalid line",
            "text has 'de' twice, the second time as 'deu'",
        ),
        (GOOD | {"text": {"de": "a \ud83d"}}, "invalid line", r"\\ud83d is half of a character"),
        (
            GOOD | {"audio": "caf\udce9.wav"},
            "invalid line",
            r"\\udce9 is half of a character.*rename the file",
        ),
        (GOOD | {"audio": "."}, "invalid line", r"audio is '\.'; it is the path of a file"),
        (GOOD | {"audio": "/"}, "invalid line", "audio is '/'; it is the path of a file"),
        (GOOD | {"audio": "talks/.."}, "invalid line", r"audio is 'talks/\.\.'; it is the path"),
        (GOOD | {"start": 10**400}, "invalid times", r"start is 1000.*… \(401 characters\); it is a number"),
        ('{"audio": "a.wav", "start": 1' + "0" * 5000 + "}", "invalid line", "thousands of digits"),
        ('{"audio": ' + "[" * 100_000, "invalid line", "nested too deeply"),
        (GOOD | {"start": [1]}, "invalid times", r"start is \[1\]"),
        (GOOD | {"id": "a\0b"}, "invalid line", "ids have no white space"),
        (
            GOOD | {"text": {"fr": "Oui."}},
            "invalid line",
            r"no text in 'de', the language spoken: .*there is fr",
        ),
        (GOOD | {"text": "Ja."}, "invalid line", "text is 'Ja.'; it is one text per language"),
        (GOOD | {"split": "valid"}, "invalid line", "split 'valid'; valid are train, dev, test"),
        (GOOD | {"end": 0.5}, "invalid times", r"0\.5 s to 0\.5 s has no length"),
        (GOOD | {"end": 0.2}, "invalid times", "has no length"),
        (GOOD | {"start": -1}, "invalid times", "start is -1; it is a number of seconds"),
        (GOOD | {"start": "1"}, "invalid times", "start is '1'"),
        (json.dumps(GOOD | {"end": float("nan")}), "invalid times", "end is nan"),
        (GOOD | {"audio": 3}, "invalid line", "audio is 3; it is a string"),
        (GOOD | {"id": "a b"}, "invalid line", "id 'a b'; ids have no white space"),
        (GOOD | {"id": "first"}, "duplicate id", "id 'first' is also line 1's; ids are unique"),
        (
            json.dumps(GOOD, ensure_ascii=False).replace("Tag", "Täg").encode("latin-1"),
            "text is not UTF-8",
            "iconv",
        ),
    ],
)
def test_a_wrong_line_raises_or_is_listed(tmp_path, line, reason, message):
    path = manifest(tmp_path, GOOD | {"id": "first"}, line)
    with pytest.raises(CorpusError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "corpus.on_error=skip" in str(caught.value)

    reading = read_manifest(path, on_error="skip")
    assert [s.utt_id for s in reading.segments] == ["first"]
    assert [d.reason for d in reading.dropped] == [reason]
    assert reading.dropped[0].detail.startswith(f"{path}:2: ")


def test_the_same_stretch_twice_without_ids(tmp_path):
    with pytest.raises(CorpusError, match=r":2: id 'a_0000500_0002000' is also line 1's"):
        read_manifest(manifest(tmp_path, GOOD, GOOD))


def test_all_wrong_lines_are_named(tmp_path):
    path = manifest(tmp_path, *[GOOD | {"split": f"x{number}"} for number in range(30)], GOOD)
    with pytest.raises(CorpusError) as caught:
        read_manifest(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{path}:{number}" for number in range(1, 21)]
    assert lines[20] == "… and 10 more, 30 in all"
    assert "corpus.on_error=skip" in lines[21]


def test_languages_in_any_form_are_the_same(tmp_path):
    rows = [
        GOOD | {"id": f"u{number}", "language": spoken, "text": {written: "Ja.", other: "Oui."}}
        for number, (spoken, written, other) in enumerate(
            [("de", "de", "fr"), ("DE", "deu", "fra"), ("ger", "de-AT", "fre"), ("de_CH", "DEU", "fr-FR")]
        )
    ]
    segments = read_manifest(manifest(tmp_path, *rows), languages=["deu", "fr-CA"]).segments
    assert {(s.language, s.transcript, *s.translations.items()) for s in segments} == {
        ("de", "ja.", ("fr", "oui."))
    }


def test_a_language_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    rows = [{"audio": f"{n}.wav", "language": "fra", "text": {"fr": "Oui.", "en": "Yes."}} for n in range(3)]
    path = manifest(tmp_path, *rows, {"audio": "i.wav", "language": "it", "text": {"it": "Si."}})
    asked = r"corpus\.languages=\[de-DE,eng\]: nothing in .*my\.jsonl is spoken in de-DE or eng\. "
    with pytest.raises(
        ConfigError, match=asked + "Segments by what is spoken: fr 3, it 1; translated into en$"
    ):
        read_manifest(path, languages=["de-DE", "eng"])
    assert read_manifest(path, languages=["deu", "fr"]).notes["language asked for and not there: de"] == 1


def test_no_manifest(tmp_path):
    with pytest.raises(CorpusError, match=r"no manifest at .*none\.jsonl\n.*one JSON object a line"):
        read_manifest(tmp_path / "none.jsonl")


def test_the_documented_example(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "corpora.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```jsonl\n(.*?)```", page, re.DOTALL)
    first, second, third = read_manifest(manifest(tmp_path, *example.splitlines())).segments
    assert (first.utt_id, first.speaker, first.translations) == ("anna-1", "anna", {"fr": "bonjour."})
    assert (second.utt_id, second.audio) == ("talks_anna_0004500_0009000", tmp_path / "talks" / "anna.m4a")
    assert (third.utt_id, third.split, third.language, third.start) == ("whole-file", "dev", "it", None)
    for key in (*REQUIRED, *OPTIONAL):
        assert f"`{key}`" in page
