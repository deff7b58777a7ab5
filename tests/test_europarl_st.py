"""The reader of Europarl-ST's layout, with every pitfall known of the real corpus."""

from __future__ import annotations

import doctest

import pytest

from localgp.corpora import languages, text
from localgp.corpora.europarl_st import URL, read_europarl_st
from localgp.corpora.languages import EUROPARL_ST, ISO_639_3, to_iso_639_3
from localgp.corpora.text import normalize_text, read_lines
from localgp.errors import ConfigError, CorpusError
from tests.corpus_helpers import write_corpus, write_direction

SPLITS = ("train", "dev", "test")


def pair(root, train, **options):
    """A de-fr corpus with the given training rows; dev and test have one segment each."""
    for split in SPLITS:
        rows = train if split == "train" else [(f"de.{split}", 0.0, 1.0, "Ja.", "Oui.")]
        write_direction(root, "de", "fr", split, rows, **options)
        write_direction(root, "fr", "de", split, [(f"fr.{split}", 0.0, 1.0, "Oui.", "Ja.")])
    return root


def read(root, **options):
    return read_europarl_st(root, languages=options.pop("languages", ["de", "fr"]), **options)


def german(reading, split="train"):
    return [s for s in reading.segments if s.split == split and s.language == "de"]


def test_nine_tasks_merged_to_one_row_per_segment(tmp_path):
    reading = read(write_corpus(tmp_path, audio=False), languages=["de", "fr", "it"])
    assert len(reading.segments) == 3 * 3 * 2
    first = german(reading)[0]
    assert first.utt_id == "de.train_0000500_0002000"
    assert first.audio == tmp_path / "de" / "audios" / "de.train.m4a"
    assert (first.start, first.end, first.speaker) == (0.5, 2.0, "Speaker de.train")
    assert first.transcript == "erster satz, de."
    assert first.translations == {"fr": "first fr.", "it": "first it."}
    assert first.asr
    assert first.source.endswith("segments.lst:1")
    assert len({s.utt_id for s in reading.segments}) == len(reading.segments)
    assert not reading.dropped


def test_directions_with_different_segments(tmp_path):
    write_corpus(tmp_path, audio=False)
    for split in SPLITS:
        rows = [
            ("de.train", 0.5, 2.0, "Erster Satz, de!", "First."),  # also in fr and it, other punctuation
            ("de.train", 3.0, 4.0, "Nur hier.", "Only here."),
        ]
        write_direction(tmp_path, "de", "en", split, rows)
    reading = read(tmp_path, languages=["de", "fr", "it"], asr_direction="union")
    assert [s.asr for s in german(reading)] == [True, True]

    for source in ("fr", "it"):
        for split in SPLITS:
            write_direction(tmp_path, source, "en", split, [(f"{source}.{split}", 0.5, 2.0, "x", "y")])
    by_en = german(read(tmp_path, languages=["de", "fr", "it"], asr_direction="en"))
    assert [(s.start, s.asr, sorted(s.translations)) for s in by_en] == [
        (0.5, True, ["fr", "it"]),
        (2.5, False, ["fr", "it"]),
        (3.0, True, []),
    ]
    assert by_en[0].transcript == "erster satz, de!"  # the ASR direction's version

    by_fr = german(read(tmp_path, languages=["de", "fr", "it"], asr_direction="it"))
    assert all(s.asr for s in by_fr)


def test_the_asr_language_itself_takes_the_union(tmp_path):
    reading = read(write_corpus(tmp_path, audio=False), languages=["de", "fr"], asr_direction="fr")
    assert all(s.asr for s in reading.segments)


def test_line_separators_inside_a_sentence_do_not_shift_lines(tmp_path):
    rows = [
        ("de.a", 0.0, 1.0, "Eins\u2028zwei\x0cdrei\x85vier", "un"),
        ("de.a", 1.0, 2.0, "\u00a0Zweite\u200b Zeile ", "deux"),
    ]
    first, second = german(read(pair(tmp_path, rows)))
    assert (first.transcript, second.transcript) == ("eins zwei drei vier", "zweite zeile")
    assert second.translations == {"fr": "deux"}


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    pair(tmp_path, [("de.a", 0.0, 1.0, "Eins", "un"), ("de.a", 1.0, 2.0, "Zwei", "deux")], suffix="\r\n")
    path = tmp_path / "de" / "fr" / "train" / "segments.de"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [s.transcript for s in german(read(tmp_path))] == ["eins", "zwei"]


def test_empty_texts(tmp_path):
    rows = [("de.a", 0.0, 1.0, "", "un"), ("de.a", 1.0, 2.0, "Zwei", ""), ("de.a", 2.0, 3.0, "Drei", "trois")]
    reading = read(pair(tmp_path, rows))  # no damage, so not even on_error=raise minds
    assert [(s.transcript, s.translations) for s in german(reading)] == [
        ("zwei", {}),
        ("drei", {"fr": "trois"}),
    ]
    (dropped,) = reading.dropped
    assert (dropped.reason, dropped.utt_id) == ("empty text", "de.a_0000000_0001000")
    assert "segments.de:1" in dropped.detail
    assert reading.notes["empty translations"] == 1


def test_a_last_line_that_is_empty_counts(tmp_path):
    pair(tmp_path, [("de.a", 0.0, 1.0, "Eins", "un"), ("de.a", 1.0, 2.0, "", "deux")])
    (tmp_path / "de" / "fr" / "train" / "segments.de").write_bytes(b"Eins\n")  # no end after the empty line
    reading = read(tmp_path)
    assert len(german(reading)) == 1
    assert [d.reason for d in reading.dropped] == ["empty text"]


GOOD = ("de.a", 5.0, 6.0, "Gut.", "Bon.")


def bad_utf8(root):
    path = root / "de" / "fr" / "train" / "segments.de"
    path.write_bytes(path.read_bytes().replace("ü".encode(), "ü".encode("latin-1")))


def extra_line(root):
    with (root / "de" / "fr" / "train" / "segments.fr").open("a") as file:
        file.write("trop\n")


@pytest.mark.parametrize(
    ("row", "change", "reason", "message"),
    [
        (
            ("de.a", 0.0, 1.0, "Für", "Pour"),
            bad_utf8,
            "text is not UTF-8",
            r"segments\.de:2: not UTF-8; convert",
        ),
        (("de.a", 2.0, 2.0, "x", "y"), None, "invalid times", r"segments\.lst:2: 'de\.a 2\.0 2\.0'"),
        (("de.a", 2.0, 1.0, "x", "y"), None, "invalid times", r"segments\.lst:2"),
        (("de.a", float("nan"), 1.0, "x", "y"), None, "invalid times", r"segments\.lst:2"),
        (("de. a", 1.0, 2.0, "x", "y"), None, "invalid times", r"is not '<speech> <start> <end>'"),
        (GOOD, None, "duplicate segment", r"segments\.lst:2: .* same segment as line 1"),
        (
            ("de.a", 1.0, 2.0, "x", "y"),
            extra_line,
            "mismatched line counts",
            r"segments\.lst 2, segments\.de 2, segments\.fr 3",
        ),
    ],
)
def test_damage_raises_or_is_listed(tmp_path, row, change, reason, message):
    pair(tmp_path, [GOOD, row])
    if change:
        change(tmp_path)
    with pytest.raises(CorpusError, match=message) as caught:
        read(tmp_path, on_error="raise")
    assert "corpus.on_error=skip" in str(caught.value)
    assert str(tmp_path / "de" / "fr" / "train") in str(caught.value)

    reading = read(tmp_path, on_error="skip")
    everything = reason == "mismatched line counts"  # no line of the folder can be trusted
    assert [s.transcript for s in german(reading)] == ([] if everything else ["gut."])
    assert [d.reason for d in reading.dropped] == [reason] * (2 if everything else 1)
    assert {(d.split, d.language) for d in reading.dropped} == {("train", "de")}
    assert len(german(reading, "dev")) == 1


def test_speakers_that_do_not_align(tmp_path):
    pair(tmp_path, [GOOD])
    with (tmp_path / "de" / "fr" / "train" / "speakers.lst").open("a") as file:
        file.write("Somebody else\n")
    with pytest.raises(CorpusError, match=r"speeches\.lst has 1 lines, speakers\.lst 2"):
        read(tmp_path)
    reading = read(tmp_path, on_error="skip")
    assert german(reading)[0].speaker is None
    assert reading.notes["folders without speakers"] == 1


def test_train_noisy_only_when_asked_for(tmp_path):
    pair(tmp_path, [GOOD])
    for source, target in (("de", "fr"), ("fr", "de")):
        write_direction(
            tmp_path, source, target, "train-noisy", [(f"{source}.n", 0.0, 1.0, "Laut.", "Fort.")]
        )
    assert len(german(read(tmp_path))) == 1
    noisy = german(read(tmp_path, train_folders=["train", "train-noisy"]))
    assert [(s.transcript, s.split) for s in noisy] == [("gut.", "train"), ("laut.", "train")]


def test_a_missing_corpus_says_where_to_get_it(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CorpusError) as caught:
            read(root)
        for expected in (str(root), URL, "CC BY-NC 4.0", "de/audios/<speech>.m4a", "corpus.root="):
            assert expected in str(caught.value)


def test_a_missing_direction_lists_what_is_there(tmp_path):
    write_corpus(tmp_path, audio=False)
    with pytest.raises(CorpusError, match=r"no de-en train .*\n.*There is: fr, it \(in "):
        read(tmp_path, asr_direction="en")
    with pytest.raises(CorpusError, match=r"no es-de train .*\n.*There is: de, fr, it \(in "):
        read(tmp_path, languages=["es", "de"])
    (tmp_path / "de" / "fr" / "train" / "segments.fr").unlink()
    with pytest.raises(
        CorpusError, match=r"segments\.fr is missing; the folder holds segments\.de, segments\.lst"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ["de", "xx"]}, f"unknown language 'xx'; Europarl-ST has {', '.join(EUROPARL_ST)}"),
        ({"languages": ["de", "fr", "de"]}, "names a language twice"),
        ({"languages": ["de"]}, "leaves no direction"),
        ({"asr_direction": "xx"}, "corpus.asr_direction='xx': valid are union, de"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ConfigError) as caught:
        read(pair(tmp_path, [GOOD]), **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Herr Präsident! 3,5 % – „ja“.", "herr präsident! 3,5 % – „ja“."),
        ("L ’ Europe et l’ONU", "l'europe et l'onu"),
        ("s ' il vous plaît, qu ' on", "s'il vous plaît, qu'on"),
        ("all ' Unione, un po ' di", "all'unione, un po ' di"),
        ("un po' anche", "un po' anche"),
        ("we don ' t; Members ' interests", "we don't; members ' interests"),
        ("» Danke.", "danke."),
        ("« Merci » dit-il", "« merci » dit-il"),
        ("Pra\u0308sident", "präsident"),
        ("  \u00a0 ", ""),
    ],
)
def test_normalisation(raw, expected):
    assert normalize_text(raw) == expected
    assert normalize_text(expected) == expected
    assert normalize_text(raw, "keep").lower() == expected


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("a\u2028b\n\n".encode() + b"\xff\nc")
    assert read_lines(path) == ["a\u2028b", "", None, "c"]
    path.write_bytes(b"a\n\n")
    assert (read_lines(path), read_lines(path, 3)) == (["a", ""], ["a", "", ""])


def test_language_codes():
    three = ["deu", "eng", "spa", "fra", "ita", "nld", "pol", "por", "ron"]
    assert [to_iso_639_3(code) for code in EUROPARL_ST] == three
    assert to_iso_639_3("fra") == "fra"
    assert len(set(ISO_639_3.values())) == len(ISO_639_3)
    assert all(len(a) == 2 and len(b) == 3 for a, b in ISO_639_3.items())
    with pytest.raises(ConfigError, match="unknown language 'xx'; valid are codes of two letters"):
        to_iso_639_3("xx")


@pytest.mark.parametrize("module", [languages, text])
def test_examples_in_docstrings(module):
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
