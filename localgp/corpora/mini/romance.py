"""What French and Italian share: the order of a clause, agreement of adjectives and participles, passives."""

from __future__ import annotations

from abc import ABC, abstractmethod

from localgp.corpora.mini.lexicon import PERSONS, Adjective, Noun, Verb
from localgp.corpora.mini.meaning import MODALS, Choice, Clause, Entity, Meaning
from localgp.corpora.mini.numerals import spell


def paradigm(forms: str) -> dict[str, str]:
    """Forms of 1s, 3s, 1p and 3p by person."""
    return dict(zip(PERSONS, forms.split(), strict=True))


class Romance(ABC):
    """Puts meanings into words up to the sounds at word boundaries, which each language joins in its own way.

    Attributes:
        have: Present of the perfect's auxiliary.
        be: Auxiliary of the passive by tense; ``infinitive`` after a modal.
        modals: Modal verbs.
        by, that, who, both, since: Preposition of the agent; conjunctions and relative pronoun.
        negation: Words before and after the finite verb.
    """

    language: str
    have: dict[str, str]
    be: dict[str, dict[str, str]]
    be_infinitive: str
    modals: dict[str, dict[str, str]]
    by: str
    that: str
    who: str
    both: str
    since: str
    negation: tuple[str, str]

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    @abstractmethod
    def join(self, text: str) -> str:
        """Contracts and elides across word boundaries."""

    @abstractmethod
    def determiner(self, entity: Entity, noun: Noun, before: bool) -> str:
        """The determiner; ``before`` tells whether an adjective stands between it and the noun."""

    @abstractmethod
    def pronoun(self, person: str) -> str:
        """The subject pronoun, empty where it is dropped."""

    @abstractmethod
    def agree(self, participle: str, gender: str, plural: bool) -> str:
        """A participle in gender and number."""

    @abstractmethod
    def future(self, verb: Verb, clause: Clause) -> tuple[str, str]:
        """``(finite, infinite)`` of what is to come."""

    @abstractmethod
    def been(self, person: str, gender: str, plural: bool) -> str:
        """The passive's auxiliary in the past."""

    @abstractmethod
    def judgement(self, meaning: Meaning) -> str:
        """ "It is important to …"."""

    @abstractmethod
    def question(self, meaning: Meaning) -> str:
        """A question, without its mark."""

    def sentence(self, meaning: Meaning) -> str:
        text = getattr(self, meaning.pattern)(meaning)
        text = self.join(text).replace(" ,", ",")
        if meaning.address:
            text = f"{self.choice.word(meaning.address, self.language)}, {text}"
        ending = "." if meaning.pattern != "question" else self.question_mark
        return text[0].upper() + text[1:] + ending

    question_mark = "?"

    # Patterns

    def plain(self, meaning: Meaning) -> str:
        return self.clause(meaning.main, link=self.link(meaning), voice=True)

    def link(self, meaning: Meaning) -> str:
        return self.choice.word(meaning.link, self.language) if meaning.link else ""

    def report(self, meaning: Meaning) -> str:
        assert meaning.teller
        assert meaning.matrix
        verb: Verb = self.choice.word(meaning.matrix, self.language)
        person = meaning.teller.person
        past = f"{self.have[person]} {verb.participle}"
        finite = past if meaning.matrix_tense == "past" else verb.present[person]
        inner = self.clause(meaning.main, voice=True, fronting=0.1)
        return f"{self.nominal(meaning.teller)} {finite} {self.that} {inner}"

    def adverbial(self, meaning: Meaning) -> str:
        assert meaning.second
        assert meaning.conjunction
        first = self.choice.chance(0.15)
        words = meaning.conjunction.words[self.language]
        conjunction = self.choice.usual(words)
        if first and meaning.conjunction.name == "because":  # "car" and "perché" do not open a sentence
            conjunction = self.since
        second = f"{conjunction} {self.clause(meaning.second, voice=True, fronting=0.0)}"
        if first:
            return f"{second}, {self.clause(meaning.main, fronting=0.0)}"
        comma = "," if meaning.conjunction.name not in ("when", "if", "after") else ""
        return f"{self.clause(meaning.main, voice=True)}{comma} {second}"

    def coordination(self, meaning: Meaning) -> str:
        assert meaning.second
        return (
            f"{self.clause(meaning.main)} {self.both} {self.clause(meaning.second, subject='', fronting=0.0)}"
        )

    def request(self, meaning: Meaning) -> str:
        assert meaning.teller
        assert meaning.request
        verb: Verb = self.choice.word(meaning.request, self.language)
        head = f"{self.nominal(meaning.teller)} {verb.present[meaning.teller.person]}"
        return (
            f"{head} {self.nominal(meaning.main.subject)} {verb.government} {self.infinitive(meaning.main)}"
        )

    def relative(self, meaning: Meaning) -> str:
        assert meaning.second
        inner = self.clause(meaning.second, subject=self.who, fronting=0.0)
        subject = f"{self.nominal(meaning.main.subject)} {inner}"
        return self.clause(meaning.main, subject=subject, fronting=0.0)

    # Clauses

    def clause(
        self,
        clause: Clause,
        link: str = "",
        voice: bool = False,
        subject: str | None = None,
        fronting: float = 0.25,
    ) -> str:
        """A finite clause; the arguments are those of the German one, ``subject=""`` leaves the subject out."""
        choice = self.choice
        verb: Verb = choice.word(clause.verb, self.language)
        agentive = clause.subject.concept is not None and clause.tense != "want"
        if voice and verb.direct and agentive and choice.chance(0.08):
            noun, subject = self.noun_phrase(clause.object)
            finite, rest = self.passive(verb, clause, noun)
            target = f"{self.by} {self.nominal(clause.subject)}"
        else:
            subject = self.nominal(clause.subject) if subject is None else subject
            finite, rest = self.active(verb, clause)
            target = f"{verb.government} {self.nominal(clause.object, bare=bool(verb.government))}"
        if clause.negated:
            finite = f"{self.negation[0]} {finite} {self.negation[1]}"
        adverbials = self.adverbials(clause)
        front = ""
        if link:
            front = link
        elif (adverbials["time"] or adverbials["place"]) and choice.chance(fronting):
            kind = "time" if adverbials["time"] else "place"
            front = f"{adverbials[kind]},"
            adverbials[kind] = ""
        order = self.order(clause, adverbials["manner"], bool(rest))
        parts = {**adverbials, "verb": rest, "object": target}
        return " ".join([front, subject, finite, *(parts[kind] for kind in order.split())])

    def order(self, clause: Clause, manner: str, compound: bool) -> str:
        """What follows the finite verb, in one of the orders usual in both languages."""
        if manner and " " not in manner and compound and clause.tense == "past" and self.choice.chance(0.85):
            return self.choice.usual(["manner verb object place time", "manner verb time object place"])
        return self.choice.usual(
            [
                "verb manner object place time",
                "verb object manner place time",
                "verb time manner object place",
            ]
        )

    def infinitive(self, clause: Clause) -> str:
        verb: Verb = self.choice.word(clause.verb, self.language)
        parts = {
            **self.adverbials(clause),
            "verb": verb.infinitive,
            "object": f"{verb.government} {self.nominal(clause.object, bare=bool(verb.government))}",
        }
        return " ".join(parts[kind] for kind in self.order(clause, "", False).split())

    def adverbials(self, clause: Clause) -> dict[str, str]:
        word, language = self.choice.word, self.language
        number = spell(clause.number, language)
        return {
            "time": word(clause.time, language).format(n=number) if clause.time else "",
            "place": word(clause.place, language) if clause.place else "",
            "manner": word(clause.manner, language) if clause.manner else "",
        }

    def active(self, verb: Verb, clause: Clause) -> tuple[str, str]:
        person = clause.subject.person
        if clause.tense in MODALS:
            return self.modals[clause.tense][person], verb.infinitive
        if clause.tense == "past":
            return self.have[person], verb.participle
        if clause.tense == "future":
            return self.future(verb, clause)
        return verb.present[person], ""

    def passive(self, verb: Verb, clause: Clause, noun: Noun) -> tuple[str, str]:
        plural = clause.object.plural
        person, participle = clause.object.person, self.agree(verb.participle, noun.gender, plural)
        if clause.tense in MODALS:
            return self.modals[clause.tense][person], f"{self.be_infinitive} {participle}"
        if clause.tense == "past":
            finite, _, rest = self.been(person, noun.gender, plural).partition(" ")
            return finite, f"{rest} {participle}"
        return self.be[clause.tense][person], participle

    # Nouns

    def nominal(self, entity: Entity, bare: bool = False) -> str:
        """A noun phrase or pronoun; ``bare`` for one behind a preposition, where a partitive cannot stand."""
        if entity.pronoun:
            return self.pronoun(entity.pronoun)
        if bare and entity.plural and entity.determiner == "indef":
            entity = Entity(entity.concept, plural=True, adjective=entity.adjective)
        return self.noun_phrase(entity)[1]

    def noun_phrase(self, entity: Entity) -> tuple[Noun, str]:
        choice = self.choice
        noun: Noun = choice.word(entity.concept, self.language)  # type: ignore[arg-type]
        word = noun.plural if entity.plural else noun.singular
        if entity.determiner == "this" and choice.chance(0.05):
            entity = Entity(entity.concept, plural=entity.plural, adjective=entity.adjective)
        before = after = ""
        if entity.adjective:
            adjective: Adjective = choice.word(entity.adjective, self.language)
            form = adjective.forms[noun.gender + ("p" if entity.plural else "s")]
            if adjective.before:
                before = self.before_noun(adjective, form, word)
            else:
                after = form
        words = [self.determiner(entity, noun, bool(before)), before, word, after]
        if entity.of:
            words.append(f"{self.of} {self.noun_phrase(entity.of)[1]}")
        return noun, " ".join(filter(None, words))

    of = "de"

    def before_noun(self, adjective: Adjective, form: str, word: str) -> str:
        """The form of an adjective in front of ``word``."""
        return form
