"""The mini corpus: its grammar, its speech, the truth beside it, and the layout it is written in."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from localgp.corpora.audio import decode
from localgp.corpora.europarl_st import read_europarl_st
from localgp.corpora.mini import LANGUAGES, generate_corpus, speakers, synthesize_split
from localgp.corpora.mini.german import German
from localgp.corpora.mini.grammar import RENDERERS, draw_sentence
from localgp.corpora.mini.italian import article, contract
from localgp.corpora.mini.lexicon import Concept, Noun, load_lexicon
from localgp.corpora.mini.meaning import Choice, Clause, Entity, Meaning
from localgp.corpora.mini.noise import KINDS, make_noise
from localgp.corpora.mini.numerals import spell
from localgp.corpora.mini.voices import speak
from localgp.errors import ConfigError, CorpusError

SPEC = {"seed": 5, "train_segments": 9, "dev_segments": 3, "test_segments": 3}


class First(Choice):
    """Makes the usual choice always, so that a meaning has one known rendering."""

    def chance(self, probability: float) -> bool:
        return False

    def of(self, options):  # type: ignore[no-untyped-def]
        return options[0]

    def usual(self, options, probability=0.8):  # type: ignore[no-untyped-def]
        return options[0]


def concept(group: str, name: str) -> Concept:
    return next(c for c in load_lexicon()[group] if c.name == name)


def say(language: str, tense: str, *, negated: bool = False, plural: bool = False, count: int = 0) -> str:
    clause = Clause(
        Entity(concept("actors", "committee"), plural=plural),
        concept("verbs", "adopt"),
        Entity(
            concept("things", {"de": "problem", "fr": "tax", "it": "programme"}[language]),
            plural=count > 0,
            determiner="count" if count else "def",
            count=count,
            adjective=concept("adjectives", "new"),
        ),
        tense,
        negated=negated,
        time=concept("time", "tomorrow") if tense == "future" else None,
    )
    return RENDERERS[language](First("")).sentence(Meaning("plain", clause))


# Grammar


@pytest.mark.parametrize(
    ("language", "tense", "options", "expected"),
    [
        ("de", "past", {}, "Der Ausschuss hat das neue Problem angenommen."),
        ("de", "present", {"negated": True}, "Der Ausschuss nimmt das neue Problem nicht an."),
        ("de", "present", {"count": 12, "plural": True}, "Die Ausschüsse nehmen zwölf neue Probleme an."),
        ("de", "future", {}, "Der Ausschuss wird morgen das neue Problem annehmen."),
        ("de", "must", {"plural": True}, "Die Ausschüsse müssen das neue Problem annehmen."),
        ("fr", "past", {"negated": True}, "Le comité n'a pas adopté le nouvel impôt."),
        (
            "fr",
            "present",
            {"count": 81, "plural": True},
            "Les comités adoptent quatre-vingt-un nouveaux impôts.",
        ),
        ("fr", "must", {}, "Le comité doit adopter le nouvel impôt."),
        ("it", "past", {"plural": True}, "I comitati hanno adottato il nuovo programma."),
        ("it", "present", {"negated": True}, "Il comitato non adotta il nuovo programma."),
        ("it", "should", {"count": 2}, "Il comitato dovrebbe adottare due nuovi programmi."),
    ],
)
def test_clause(language: str, tense: str, options: dict, expected: str) -> None:
    assert say(language, tense, **options) == expected


def test_german_cases_and_bracket() -> None:
    german = German(First(""))
    president = Entity(concept("actors", "president"), adjective=concept("adjectives", "new"))
    assert [german.nominal(president, case) for case in ("nom", "acc", "dat", "gen")] == [
        "der neue Präsident",
        "den neuen Präsidenten",
        "dem neuen Präsidenten",
        "des neuen Präsidenten",
    ]
    states = Entity(
        concept("things", "market"), plural=True, determiner="our", adjective=concept("adjectives", "new")
    )
    assert german.nominal(states, "dat") == "unseren neuen Märkten"
    clause = Clause(Entity(pronoun="1p"), concept("verbs", "adopt"), president, "past")
    assert german.clause(clause, "final") == "wir den neuen Präsidenten angenommen haben"
    assert german.clause(clause, "zu") == "den neuen Präsidenten anzunehmen"


def test_word_boundaries() -> None:
    french = RENDERERS["fr"](First(""))
    assert french.join("de le État que il ne a") == "de l'État qu'il n'a"
    assert (
        french.join("de le rapport à les pays @ce accord @ce traité")
        == "du rapport aux pays cet accord ce traité"
    )
    assert [article("@dms", w) for w in ("Stato", "accordo", "testo", "sindacato")] == [
        "lo",
        "l'",
        "il",
        "il",
    ]
    assert [article("@dmp", w) for w in ("Stati", "accordi", "testi")] == ["gli", "gli", "i"]
    assert [article("@u" + f, w) for f, w in (("ms", "studente"), ("ms", "atto"), ("fs", "imposta"))] == [
        "uno",
        "un",
        "un'",
    ]
    assert [
        contract(p, a) for p, a in (("di", "il"), ("a", "gli"), ("su", "l'"), ("in", "lo"), ("da", "i"))
    ] == [
        "del",
        "agli",
        "sull'",
        "nello",
        "dai",
    ]


def test_passives_agree() -> None:
    def passive(language: str, thing: str, plural: bool) -> str:
        renderer = RENDERERS[language](First(""))
        clause = Clause(
            Entity(concept("actors", "council")),
            concept("verbs", "adopt"),
            Entity(concept("things", thing), plural=plural),
            "past",
        )
        noun: Noun = concept("things", thing).words[language][0]
        return " ".join(renderer.passive(concept("verbs", "adopt").words[language][0], clause, noun))  # type: ignore[union-attr]

    assert " ".join(passive("fr", "directive", True).split()) == "ont été adoptées"
    assert " ".join(passive("it", "directive", True).split()) == "sono state adottate"
    assert " ".join(passive("it", "text", False).split()) == "è stato adottato"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (21, ("einundzwanzig", "vingt et un", "ventuno")),
        (71, ("einundsiebzig", "soixante et onze", "settantuno")),
        (80, ("achtzig", "quatre-vingts", "ottanta")),
        (93, ("dreiundneunzig", "quatre-vingt-treize", "novantatré")),
        (17, ("siebzehn", "dix-sept", "diciassette")),
    ],
)
def test_numbers(number: int, words: tuple[str, str, str]) -> None:
    assert tuple(spell(number, language) for language in LANGUAGES) == words


def test_sentences_are_many_and_well_formed() -> None:
    sentences = [draw_sentence(f"many{i}") for i in range(3000)]
    for language in LANGUAGES:
        texts = [sentence[language] for sentence in sentences]
        # A repeat among n draws from N equally likely sentences happens n²/2N times: at most 10 here means that
        # N is over 450,000.
        assert len(texts) - len(set(texts)) <= 10
        for text in texts:
            assert re.fullmatch(r"[A-ZÀ-Ý].*[.?]", text), text
            assert not re.search(
                r"@|\{|  | ,| \.|\b(in dem|von dem|de le|de les|à le|di il|que il)\b", text
            ), text
        lengths = [len(text.split()) for text in texts]
        assert 8 < np.mean(lengths) < 12


def test_translations_are_free() -> None:
    """The same meaning comes out in several ways, so that no translation follows from its source."""
    from localgp.corpora.mini.grammar import draw_meaning, render

    meanings = [draw_meaning(f"free{i}", load_lexicon()) for i in range(200)]
    for language in LANGUAGES:
        same = [render(m, language, f"a{i}") == render(m, language, f"b{i}") for i, m in enumerate(meanings)]
        assert np.mean(same) < 0.5


def test_core_is_a_subset() -> None:
    full, core = load_lexicon(), load_lexicon("core")
    for group in ("actors", "things", "verbs", "adjectives"):
        names = {c.name for c in core[group]}
        assert names < {c.name for c in full[group]}
        assert len(names) / len(full[group]) == pytest.approx(0.75, abs=0.06)
    assert not any(draw_sentence(f"core{i}", "core")["fr"].endswith("?") for i in range(300))


# Speech


def test_speech_depends_on_its_arguments_alone() -> None:
    text = "Das Parlament hat den Bericht angenommen."
    first = speak(text, "de+m3", 180, 50)
    speak("Il Parlamento ha adottato la relazione.", "it+Andrea", 150, 70)
    again = speak(text, "de+m3", 180, 50)
    assert first.samples.tobytes() == again.samples.tobytes()
    assert first.words == again.words


@pytest.mark.parametrize("language", LANGUAGES)
def test_utterances_and_their_truth(language: str) -> None:
    voices = speakers(language, "train")
    for utterance in synthesize_split(3, language, voices, 12):
        samples, rate = utterance.samples, utterance.sample_rate
        assert rate == 16000
        assert samples.dtype == np.float32
        assert 1.0 < utterance.seconds <= 7.8
        assert np.abs(samples).max() < 1.0
        assert 0.005 < np.sqrt(np.mean(samples**2)) < 0.3
        spoken = [word.strip(".,;:?") for word in utterance.texts[language].split()]
        assert [word for _, _, word in utterance.words] == [word for word in spoken if word]
        for times in (utterance.words, utterance.phones, utterance.speech):
            edges = [edge for start, end, *_ in times for edge in (start, end)]
            assert all(a < b for a, b in zip(edges[::2], edges[1::2], strict=True))
            assert all(a <= b + 1e-3 for a, b in zip(edges[1::2], edges[2::2], strict=False))
            assert edges[0] >= 0.1
            assert edges[-1] <= utterance.seconds
        if utterance.snr_db > 12:
            inside = np.zeros(len(samples), bool)
            for start, end in utterance.speech:
                inside[int(start * rate) : int(end * rate)] = True
            inside_rms, outside_rms = (np.sqrt(np.mean(samples[part] ** 2)) for part in (inside, ~inside))
            assert inside_rms > 2.5 * outside_rms


def test_utterances_do_not_depend_on_count_or_workers() -> None:
    voices = speakers("fr", "dev")
    alone = list(synthesize_split(1, "fr", voices, 6, lexicon="core"))
    shared = list(synthesize_split(1, "fr", voices, 8, lexicon="core", workers=2))
    assert len(shared) == 8
    for one, other in zip(alone, shared, strict=False):
        assert one.samples.tobytes() == other.samples.tobytes()
        assert (one.texts, one.words, one.phones) == (other.texts, other.words, other.phones)


def test_impossible_length() -> None:
    with pytest.raises(ConfigError, match=r"max_seconds=0.2.*4 and more"):
        next(synthesize_split(1, "fr", speakers("fr", "dev"), 1, max_seconds=0.2))


def test_speakers_are_disjoint() -> None:
    for language in LANGUAGES:
        groups = [set(speakers(language, group)) for group in ("pretrain", "train", "dev", "test")]
        assert sum(map(len, groups)) == len(set.union(*groups))
        assert len(set.union(*groups[1:])) >= 12
    with pytest.raises(ConfigError, match="valid are pretrain, train, dev, test"):
        speakers("de", "validation")


def test_noise_has_unit_power_and_its_colour() -> None:
    rng = np.random.default_rng(0)
    low_share = {}
    for kind in KINDS[1:]:
        noise = make_noise(kind, 32000, 16000, rng)
        assert np.mean(noise**2) == pytest.approx(1, abs=1e-6)
        power = np.abs(np.fft.rfft(noise)) ** 2
        low_share[kind] = power[: len(power) // 8].sum() / power.sum()
    assert low_share["white"] < 0.2 < low_share["pink"]
    assert low_share["hum"] > 0.8
    assert not make_noise("clean", 100, 16000, rng).any()


# The corpus on disk


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "corpus"
    generate_corpus(root, workers=1, **SPEC)
    return root


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_bytes_with_more_workers(corpus: Path, tmp_path: Path) -> None:
    generate_corpus(tmp_path / "again", workers=2, **SPEC)
    assert digest(tmp_path / "again") == digest(corpus)


def test_layout(corpus: Path) -> None:
    pairs = [(a, b) for a in LANGUAGES for b in LANGUAGES if a != b]
    for source, target in pairs:
        for split, count in (("train", 9), ("dev", 3), ("test", 3)):
            folder = corpus / source / target / split
            lines = {
                path.name: path.read_text(encoding="utf-8").split("\n")[:-1] for path in folder.iterdir()
            }
            assert set(lines) == {
                "segments.lst",
                f"segments.{source}",
                f"segments.{target}",
                "speeches.lst",
                f"speeches.{source}",
                f"speeches.{target}",
                "speakers.lst",
                "url.lst",
            }
            assert len({len(lines[name]) for name in lines if name.startswith("segments")}) == 1
            assert len({len(lines[name]) for name in lines if not name.startswith("segments")}) == 1
            assert 1 <= len(lines["segments.lst"]) <= count
            for line in lines["segments.lst"]:
                speech, start, end = line.split(" ")
                assert re.fullmatch(rf"{source}\.20(08|09|10|11|12)\d{{4}}\.\d+\.\d+-\d{{3}}", speech)
                assert 0 < float(start) < float(end)
                assert (corpus / source / "audios" / f"{speech}.m4a").is_file()


def test_reader_gets_every_segment(corpus: Path) -> None:
    reading = read_europarl_st(corpus, languages=LANGUAGES)
    assert not reading.dropped
    for language in LANGUAGES:
        for split, count in (("train", 9), ("dev", 3), ("test", 3)):
            segments = [s for s in reading.segments if (s.language, s.split) == (language, split)]
            assert len(segments) == count
            assert {s.speaker for s in segments} <= set(speakers(language, split))


def test_truth_matches_the_audio(corpus: Path) -> None:
    """Speech is where the truth says, in the decoded files: neither priming nor resampling moved it."""
    louder = []
    for line in (corpus / "truth" / "train.it.jsonl").read_text(encoding="utf-8").splitlines():
        truth = json.loads(line)
        cut = decode(corpus / "it" / "audios" / f"{truth['speech']}.m4a").cut(truth["start"], truth["end"])
        assert not cut.clamped
        first, last = truth["speech_intervals"][0][0], truth["speech_intervals"][-1][1]
        assert truth["words"][0][0] == pytest.approx(first, abs=0.1)
        assert last <= truth["end"] - truth["start"]
        before = cut.samples[: int((first - 0.02) * 16000)]
        begin = cut.samples[int(first * 16000) : int((first + 0.25) * 16000)]
        louder.append(np.sqrt(np.mean(begin**2)) / (np.sqrt(np.mean(before**2)) + 1e-5))
    assert np.median(louder) > 1.5


def test_kept_if_the_same_and_made_again_if_not(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    small = {**SPEC, "train_segments": 1, "dev_segments": 1, "test_segments": 1, "languages": ("fr", "it")}
    generate_corpus(root, workers=1, **small)
    stamp = (root / "mini.json").stat().st_mtime_ns
    generate_corpus(root, workers=1, **small)
    assert (root / "mini.json").stat().st_mtime_ns == stamp
    generate_corpus(root, workers=1, **{**small, "seed": 6})
    assert json.loads((root / "mini.json").read_text())["seed"] == 6
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "de").mkdir()
    with pytest.raises(CorpusError, match=r"(?s)not a generated corpus.*corpus\.root"):
        generate_corpus(tmp_path, workers=1, **SPEC)
    assert (tmp_path / "de").is_dir()


def test_one_language_is_no_corpus_of_translations() -> None:
    with pytest.raises(ConfigError, match="two or more"):
        generate_corpus(Path("unused"), workers=1, **{**SPEC, "languages": ("de",)})
