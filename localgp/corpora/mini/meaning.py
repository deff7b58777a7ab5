"""What a sentence of the mini corpus says, before any language says it.

A meaning is drawn once and put into words three times, each language choosing for itself among synonyms, word
orders, active and passive. So translations are as free as those of people, and none follows from the source.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from localgp.corpora.mini.lexicon import Concept, Lexicon

T = TypeVar("T")

# How often each pattern is drawn. The core grammar, used for pretraining, lacks the last two.
PATTERNS = {
    "plain": 34,
    "report": 18,  # "We know that …"
    "adverbial": 16,  # "…, because …"
    "coordination": 10,
    "judgement": 8,  # "It is important to …"
    "request": 8,  # "We ask the Council to …"
    "relative": 8,  # "The committee that … has …"
    "question": 7,
}
NOT_CORE = ("relative", "question")
MODALS = ("must", "can", "should", "want")


class Choice:
    """Random choices of a speaker or translator."""

    def __init__(self, key: str) -> None:
        self.random = random.Random(key)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def of(self, options: Sequence[T]) -> T:
        return options[int(self.random.random() * len(options))]

    def usual(self, options: Sequence[T], probability: float = 0.9) -> T:
        """The first option mostly, else one of the others."""
        if len(options) == 1 or self.chance(probability):
            return options[0]
        return self.of(options[1:])

    def word(self, concept: Concept, language: str) -> Any:
        return self.usual(concept.words[language])

    def weighted(self, weights: dict[T, int]) -> T:
        point = self.random.random() * sum(weights.values())
        for option, weight in weights.items():
            point -= weight
            if point < 0:
                return option
        return option


@dataclass(frozen=True)
class Entity:
    """Someone or something: the speaker (``1s``), the speaker's side (``1p``), or a noun."""

    concept: Concept | None = None
    pronoun: str = ""  # 1s, 1p, or empty
    plural: bool = False
    determiner: str = "def"  # def, indef, this, our, count
    adjective: Concept | None = None
    count: int = 0
    of: Entity | None = None

    @property
    def person(self) -> str:
        return self.pronoun or ("3p" if self.plural else "3s")


@dataclass(frozen=True)
class Clause:
    """Who does what, when, where and how."""

    subject: Entity
    verb: Concept
    object: Entity
    tense: str  # past, present, future, must, can, should, want
    negated: bool = False
    time: Concept | None = None
    number: int = 2
    place: Concept | None = None
    manner: Concept | None = None


@dataclass(frozen=True)
class Meaning:
    """A sentence. Which of the optional parts there are depends on the pattern."""

    pattern: str
    main: Clause
    second: Clause | None = None
    link: Concept | None = None
    address: Concept | None = None
    teller: Entity | None = None
    matrix: Concept | None = None
    matrix_tense: str = "present"
    conjunction: Concept | None = None
    judgement: Concept | None = None
    request: Concept | None = None
    question: Concept | None = None


def draw_meaning(key: str, lexicon: Lexicon, core: bool = False) -> Meaning:
    """Draws the meaning that belongs to ``key``; with ``core``, from the patterns of the core grammar."""
    choice = Choice(key)
    weights = {name: weight for name, weight in PATTERNS.items() if not (core and name in NOT_CORE)}
    return _Drawer(choice, lexicon).meaning(choice.weighted(weights))


class _Drawer:
    def __init__(self, choice: Choice, lexicon: Lexicon) -> None:
        self.choice, self.lexicon = choice, lexicon

    def meaning(self, pattern: str) -> Meaning:
        choice, lexicon = self.choice, self.lexicon
        address = choice.of(lexicon["address"]) if choice.chance(0.1) else None
        if pattern == "plain":
            link = choice.of(lexicon["link"]) if choice.chance(0.3) else None
            return Meaning(pattern, self.clause(self.subject(), rich=0.8), link=link, address=address)
        if pattern == "report":
            teller = choice.of([Entity(pronoun="1s"), Entity(pronoun="1p"), self.actor(0.0)])
            tense = "past" if teller.concept and choice.chance(0.5) else "present"
            main = self.clause(self.actor(0.2), rich=0.35)
            return Meaning(
                pattern,
                main,
                teller=teller,
                matrix=choice.of(lexicon["matrix"]),
                matrix_tense=tense,
                address=address,
            )
        if pattern == "adverbial":
            return self.adverbial()
        if pattern == "coordination":
            main = self.clause(self.subject(), rich=0.3, tenses={"past": 5, "present": 4, "future": 3})
            second = self.clause(main.subject, rich=0.0, tenses={main.tense: 1})
            return Meaning(pattern, main, second=second)
        if pattern == "judgement":
            main = self.clause(Entity(pronoun="1p"), rich=0.5, tenses={"future": 1}, negatable=False)
            return Meaning(pattern, main, judgement=choice.of(lexicon["judgement"]), address=address)
        if pattern == "request":
            main = self.clause(
                self.actor(0.1, definite=True), rich=0.4, tenses={"future": 1}, negatable=False
            )
            teller = choice.of([Entity(pronoun="1s"), Entity(pronoun="1p"), self.actor(0.0)])
            return Meaning(
                pattern, main, teller=teller, request=choice.of(lexicon["request"]), address=address
            )
        if pattern == "relative":
            subject = self.actor(0.0, definite=True)
            main = self.clause(subject, rich=0.25, negatable=False)
            second = self.clause(subject, rich=0.15, tenses={"past": 3, "present": 2, "must": 1})
            return Meaning(pattern, main, second=second)
        main = self.clause(
            self.actor(0.2, definite=True), rich=0.4, tenses={"past": 4, "future": 4, "want": 2, "can": 2}
        )
        return Meaning(pattern, main, question=choice.of(lexicon["question"]), address=address)

    def adverbial(self) -> Meaning:
        """Main clause and a subordinate one, in tenses that the conjunction allows in all three languages."""
        conjunction = self.choice.of(self.lexicon["conjunction"])
        if conjunction.when == "past":
            tenses, main_tenses = {"past": 1}, {"past": 1}
        elif conjunction.name in ("when", "if"):
            tenses, main_tenses = (
                {"present": 3, "must": 1, "can": 1},
                {"future": 4, "present": 2, "must": 2, "can": 2},
            )
        else:
            tenses = main_tenses = {"past": 4, "present": 4, "must": 1, "can": 1, "want": 1}
        main = self.clause(self.subject(), rich=0.2, tenses=main_tenses)
        second = self.clause(self.subject(), rich=0.1, tenses=tenses)
        return Meaning("adverbial", main, second=second, conjunction=conjunction)

    def subject(self) -> Entity:
        roll = self.choice.random.random()
        if roll < 0.08:
            return Entity(pronoun="1s")
        if roll < 0.25:
            return Entity(pronoun="1p")
        return self.actor(0.3)

    def actor(self, adjective: float, definite: bool = False) -> Entity:
        return self.entity(self.choice.of(self.lexicon["actors"]), adjective, of=0.0, definite=definite)

    def entity(self, concept: Concept, adjective: float, of: float, definite: bool = False) -> Entity:
        choice = self.choice
        plural = concept.number == "p" or (concept.number == "both" and choice.chance(0.45))
        weights = {"def": 11, "this": 2, "our": 2}
        if concept.number == "both" and not definite:
            weights["indef"] = 3
            if plural:
                weights["count"] = 4
        if concept.number == "s" and concept.kind == "actor":
            weights = {"def": 1}
        determiner = choice.weighted(weights)
        inner = None
        if determiner == "def" and choice.chance(of):
            group = choice.of(["things", "actors"])
            inner = self.entity(choice.of(self.lexicon[group]), 0.0, 0.0, definite=True)
            inner = Entity(inner.concept, plural=inner.plural, determiner="def")
            if inner.concept is concept:
                inner = None
        return Entity(
            concept,
            plural=plural,
            determiner=determiner,
            adjective=choice.of(self.lexicon["adjectives"])
            if inner is None and choice.chance(adjective)
            else None,
            count=self.number() if determiner == "count" else 0,
            of=inner,
        )

    def number(self) -> int:
        return 2 + int(self.choice.random.random() * (11 if self.choice.chance(0.6) else 98))

    def clause(
        self, subject: Entity, rich: float, tenses: dict[str, int] | None = None, negatable: bool = True
    ) -> Clause:
        """A clause; ``rich`` scales how many adverbials and attributes it has."""
        choice, lexicon = self.choice, self.lexicon
        tense = choice.weighted(
            tenses or {"past": 8, "present": 6, "future": 4, "must": 2, "can": 1, "should": 1, "want": 1}
        )
        verb = choice.of(lexicon["verbs"])
        things = [concept for concept in lexicon["things"] if concept.kind in verb.takes]
        negated = negatable and choice.chance(0.1)
        thing = self.entity(choice.of(things), 0.2 + 0.3 * rich, of=0.1 + 0.35 * rich, definite=negated)
        when = "future" if tense in MODALS else tense
        time = (
            choice.of([c for c in lexicon["time"] if c.when == when]) if choice.chance(0.6 * rich) else None
        )
        return Clause(
            subject,
            verb,
            thing,
            tense,
            negated=negated,
            time=time,
            number=self.number(),
            place=choice.of(lexicon["place"]) if choice.chance(0.35 * rich) else None,
            manner=choice.of(lexicon["manner"]) if choice.chance(0.35 * rich) else None,
        )
