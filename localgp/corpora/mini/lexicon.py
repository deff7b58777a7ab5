"""Reads the parallel word lists of the mini corpus and fills in what can be derived by rule.

A *concept* is a meaning; each language has one or more words for it. The forms are German noun and verb
paradigms, French and Italian gender, plurals and conjugations, as far as the grammar needs them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

LANGUAGES = ("de", "fr", "it")
VOWELS = "aàâeéèêëiîïoôöuùûüyœAÀÂEÉÈÊIÎOÔUÙ"
PERSONS = ("1s", "3s", "1p", "3p")


@dataclass(frozen=True)
class Noun:
    singular: str
    gender: str  # m, f or n
    plural: str
    genitive: str = ""  # German only


@dataclass(frozen=True)
class Adjective:
    """German: ``forms`` is the stem alone; French and Italian: by gender and number (``ms fs mp fp``)."""

    forms: dict[str, str]
    before: bool = False  # stands before its noun
    before_vowel: str = ""  # French masculine singular before a vowel (nouvel)


@dataclass(frozen=True)
class Verb:
    """A verb's paradigm.

    Attributes:
        infinitive: Without a separable prefix.
        present: By person (``1s 3s 1p 3p``).
        participle: Past participle; masculine singular in French and Italian.
        government: Preposition of its object, or empty.
        case: German case of its object.
        past: German preterite by person.
        future: French and Italian simple future by person.
        prefix: German separable prefix.
    """

    infinitive: str
    present: dict[str, str]
    participle: str
    government: str = ""
    case: str = "acc"
    past: dict[str, str] | None = None
    future: dict[str, str] | None = None
    prefix: str = ""

    @property
    def direct(self) -> bool:
        """Whether its object can become the subject of a passive."""
        return not self.government and self.case == "acc"


@dataclass(frozen=True)
class Concept:
    """A meaning: its words by language, the first the commonest, and its attributes from the word list."""

    name: str
    words: dict[str, tuple[Any, ...]]
    kind: str = "actor"  # class of a noun
    number: str = "both"  # both, s (singular only) or p (plural only)
    takes: tuple[str, ...] = ()  # classes of objects of a verb
    when: str = "any"  # tense of an adverbial


@dataclass(frozen=True)
class Lexicon:
    """All concepts by category, in the order of the word lists."""

    groups: dict[str, tuple[Concept, ...]]

    def __getitem__(self, group: str) -> tuple[Concept, ...]:
        return self.groups[group]

    def core(self) -> Lexicon:
        """Three quarters of the words that carry content: every fourth concept of a category is left out."""
        kept = {}
        for group, concepts in self.groups.items():
            thinned = tuple(c for i, c in enumerate(concepts) if i % 4 != 3)
            kept[group] = concepts if group in _CLOSED else thinned
        return Lexicon(kept)


_CLOSED = ("conjunction", "question", "request")


def german_noun(spec: str) -> Noun:
    singular, gender, plural, *rest = spec.split()
    if rest:
        genitive = rest[0]
    elif gender == "f":
        genitive = singular
    else:
        genitive = singular + ("es" if singular.endswith(("s", "ß", "z", "x")) else "s")
    return Noun(singular, gender, plural, genitive)


def french_noun(spec: str) -> Noun:
    singular, gender, *rest = _spaced(spec)
    return Noun(singular, gender, rest[0] if rest else singular + "s")


def italian_noun(spec: str) -> Noun:
    singular, gender, *rest = _spaced(spec)
    return Noun(singular, gender, rest[0] if rest else _italian_plural(singular, gender))


def _spaced(spec: str) -> list[str]:
    return [part.replace("_", " ") for part in spec.split()]


def _italian_plural(word: str, gender: str) -> str:
    if word.endswith(("à", "ù")):
        return word
    if word.endswith(("ca", "ga")):
        return word[:-1] + "he"
    return word[:-1] + ("e" if word.endswith("a") and gender == "f" else "i")


def german_adjective(spec: str) -> Adjective:
    return Adjective({"stem": spec}, before=True)


def french_adjective(spec: str) -> Adjective:
    masculine, *rest = spec.lstrip("<").split()
    feminine = rest[0] if rest else masculine + ("" if masculine.endswith("e") else "e")
    plural = rest[1] if len(rest) > 1 else masculine + ("" if masculine.endswith(("s", "x")) else "s")
    forms = {"ms": masculine, "fs": feminine, "mp": plural, "fp": feminine + "s"}
    return Adjective(forms, before=spec.startswith("<"), before_vowel=rest[2] if len(rest) > 2 else masculine)


def italian_adjective(spec: str) -> Adjective:
    masculine, *rest = spec.lstrip("<").split()
    if rest:
        forms = dict(zip(("ms", "fs", "mp", "fp"), [masculine, *rest], strict=True))
    else:
        forms = italian_agreement(masculine)
    return Adjective(forms, before=spec.startswith("<"))


def italian_agreement(masculine: str) -> dict[str, str]:
    """Forms of a regular adjective or participle by gender and number."""
    stem = masculine[:-1]
    if masculine.endswith("e"):
        return {"ms": masculine, "fs": masculine, "mp": stem + "i", "fp": stem + "i"}
    return {"ms": masculine, "fs": stem + "a", "mp": stem + "i", "fp": stem + "e"}


def _split_government(spec: str) -> tuple[list[str], str, str]:
    """``(forms, preposition, case)`` of a verb's entry."""
    parts = _spaced(spec)
    if not parts[-1].startswith("="):
        return parts, "", "acc"
    preposition, _, case = parts[-1][1:].partition(":")
    if preposition == "dat":
        return parts[:-1], "", "dat"
    return parts[:-1], preposition, case or "acc"


def german_verb(spec: str) -> Verb:
    (infinitive, third, past, participle), government, case = _split_government(spec)
    prefix, _, base = infinitive.rpartition("+")
    if infinitive.endswith("wissen"):
        first = third
    elif base.endswith("eln"):
        first = base[:-3] + "le"
    else:
        first = base[:-1] if base.endswith("en") else base[:-1] + "e"
    past_plural = past + ("n" if past.endswith("e") else "en")
    return Verb(
        infinitive=base,
        present={"1s": first, "3s": third, "1p": base, "3p": base},
        participle=participle,
        government=government,
        case=case,
        past={"1s": past, "3s": past, "1p": past_plural, "3p": past_plural},
        prefix=prefix,
    )


def french_verb(spec: str) -> Verb:
    forms, government, _ = _split_government(spec)
    infinitive = forms[0]
    if len(forms) == 1:
        stem = infinitive[:-2]
        soft = {"c": stem[:-1] + "ç", "g": stem + "e"}.get(stem[-1], stem)  # renforçons, changeons
        present = [stem + "e", stem + "e", soft + "ons", stem + "ent"]
        participle, future = stem + "é", infinitive
    else:
        present, (participle, future) = forms[1:5], forms[5:7]
    return Verb(
        infinitive=infinitive,
        present=dict(zip(PERSONS, present, strict=True)),
        participle=participle,
        government=government,
        future=dict(zip(PERSONS, (future + e for e in ("ai", "a", "ons", "ont")), strict=True)),
    )


def italian_verb(spec: str) -> Verb:
    forms, government, _ = _split_government(spec)
    infinitive, stem = forms[0], forms[0][:-3]
    if len(forms) == 7:
        present, (participle, future) = forms[1:5], forms[5:7]
    elif infinitive.endswith("are"):
        hard = stem + "h" if stem.endswith(("c", "g")) else stem  # critichiamo
        plural = stem if stem.endswith("i") else hard
        present = [stem + "o", stem + "a", plural + ("amo" if stem.endswith("i") else "iamo"), stem + "ano"]
        participle = stem + "ato"
        soft = stem[:-1] if stem.endswith(("ci", "gi")) else hard  # rinuncerà
        future = soft + "er"
    else:
        present = [stem + "o", stem + "e", stem + "iamo", stem + "ono"]
        participle, future = forms[1], infinitive[:-1]
    return Verb(
        infinitive=infinitive,
        present=dict(zip(PERSONS, present, strict=True)),
        participle=participle,
        government=government,
        future=dict(zip(PERSONS, (future + e for e in ("ò", "à", "emo", "anno")), strict=True)),
    )


_NOUNS = {"de": german_noun, "fr": french_noun, "it": italian_noun}
_ADJECTIVES = {"de": german_adjective, "fr": french_adjective, "it": italian_adjective}
_VERBS = {"de": german_verb, "fr": french_verb, "it": italian_verb}
_READERS: dict[str, dict[str, Any]] = {
    "actors": _NOUNS,
    "things": _NOUNS,
    "adjectives": _ADJECTIVES,
    "verbs": _VERBS,
    "matrix": _VERBS,
    "request": _VERBS,
}


@functools.cache
def load_lexicon(name: str = "full") -> Lexicon:
    """The word lists: ``full``, or ``core``, the three quarters of them used for pretraining."""
    full = _read_full()
    return full.core() if name == "core" else full


@functools.cache
def _read_full() -> Lexicon:
    groups = {}
    for file in ("lexicon.yaml", "phrases.yaml"):
        text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
        for group, entries in yaml.safe_load(text).items():
            groups[group] = tuple(_concept(group, name, entry) for name, entry in entries.items())
    return Lexicon(groups)


def _concept(group: str, name: str, entry: dict[str, Any]) -> Concept:
    readers = _READERS.get(group)
    words = {
        language: tuple(readers[language](spec) if readers else spec for spec in entry[language])
        for language in LANGUAGES
    }
    return Concept(
        name=name,
        words=words,
        kind=entry.get("is", "actor"),
        number=entry.get("only", "both"),
        takes=tuple(entry.get("of", ())),
        when=entry.get("when", entry.get("tense", "any")),
    )
