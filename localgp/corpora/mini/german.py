"""German: cases, three genders, verb-second and verb-final clauses, separable verbs, the sentence bracket."""

from __future__ import annotations

import re

from localgp.corpora.mini.lexicon import Adjective, Noun, Verb
from localgp.corpora.mini.meaning import MODALS, Choice, Clause, Entity, Meaning
from localgp.corpora.mini.numerals import spell

_ARTICLE = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
    "gen": {"m": "des", "f": "der", "n": "des", "p": "der"},
}
_DIES = {  # endings of dieser and, in the plural, of unser
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
    "gen": {"m": "es", "f": "er", "n": "es", "p": "er"},
}
_EIN = {**_DIES, "nom": {**_DIES["nom"], "m": "", "n": ""}, "acc": {**_DIES["acc"], "n": ""}}
_WEAK = {  # of adjectives after der and dieser
    "nom": {"m": "e", "f": "e", "n": "e"},
    "acc": {"m": "en", "f": "e", "n": "e"},
}
_MIXED = {  # of adjectives after ein and unser
    "nom": {"m": "er", "f": "e", "n": "es"},
    "acc": {"m": "en", "f": "e", "n": "es"},
}
_FORMS = {
    "have": dict(zip(("1s", "3s", "1p", "3p"), ("habe", "hat", "haben", "haben"), strict=True)),
    "become": dict(zip(("1s", "3s", "1p", "3p"), ("werde", "wird", "werden", "werden"), strict=True)),
    "became": dict(zip(("1s", "3s", "1p", "3p"), ("wurde", "wurde", "wurden", "wurden"), strict=True)),
    "be": dict(zip(("1s", "3s", "1p", "3p"), ("bin", "ist", "sind", "sind"), strict=True)),
    "must": dict(zip(("1s", "3s", "1p", "3p"), ("muss", "muss", "müssen", "müssen"), strict=True)),
    "can": dict(zip(("1s", "3s", "1p", "3p"), ("kann", "kann", "können", "können"), strict=True)),
    "should": dict(zip(("1s", "3s", "1p", "3p"), ("sollte", "sollte", "sollten", "sollten"), strict=True)),
    "want": dict(zip(("1s", "3s", "1p", "3p"), ("will", "will", "wollen", "wollen"), strict=True)),
}
_CONTRACTIONS = {"in dem": "im", "an dem": "am", "zu dem": "zum", "zu der": "zur", "von dem": "vom"}


class German:
    """Puts meanings into German words."""

    language = "de"

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def sentence(self, meaning: Meaning) -> str:
        text = getattr(self, meaning.pattern)(meaning)
        text = re.sub(
            r"\b(" + "|".join(_CONTRACTIONS) + r")\b",
            lambda match: _CONTRACTIONS[match[0]],
            " ".join(text.split()),
        )
        text = text.replace(" ,", ",")
        if meaning.address:
            text = f"{self.choice.word(meaning.address, 'de')}, {text}"
        return text[0].upper() + text[1:] + ("?" if meaning.pattern == "question" else ".")

    # Patterns

    def plain(self, meaning: Meaning) -> str:
        link = self.choice.word(meaning.link, "de") if meaning.link else ""
        return self.clause(meaning.main, "main", link=link, voice=True)

    def report(self, meaning: Meaning) -> str:
        assert meaning.teller
        assert meaning.matrix
        verb: Verb = self.choice.word(meaning.matrix, "de")
        subject = self.nominal(meaning.teller, "nom")
        if meaning.matrix_tense == "past" and self.choice.chance(0.85):
            head = f"{subject} {_FORMS['have'][meaning.teller.person]} {verb.participle}"
        else:
            forms = verb.present if meaning.matrix_tense == "present" else verb.past or {}
            head = f"{subject} {forms[meaning.teller.person]} {verb.prefix}"
        if self.choice.chance(0.08):  # verb-second speech without dass
            return f"{head}, {self.clause(meaning.main, 'main')}"
        return f"{head}, dass {self.clause(meaning.main, 'final', voice=True)}"

    def adverbial(self, meaning: Meaning) -> str:
        assert meaning.second
        assert meaning.conjunction
        conjunction = self.choice.word(meaning.conjunction, "de")
        second = f"{conjunction} {self.clause(meaning.second, 'final', voice=True)}"
        if self.choice.chance(0.15):
            return f"{second}, {self.clause(meaning.main, 'first')}"
        return f"{self.clause(meaning.main, 'main', voice=True)}, {second}"

    def coordination(self, meaning: Meaning) -> str:
        assert meaning.second
        second = self.clause(meaning.second, "headless")
        return f"{self.clause(meaning.main, 'main', fronting=0.15)} und {second}"

    def judgement(self, meaning: Meaning) -> str:
        assert meaning.judgement
        word = self.choice.word(meaning.judgement, "de")
        head = self.choice.usual([f"es ist {word}", f"wir halten es für {word}", f"{word} ist es"])
        return f"{head}, {self.clause(meaning.main, 'zu')}"

    def request(self, meaning: Meaning) -> str:
        assert meaning.teller
        assert meaning.request
        verb: Verb = self.choice.word(meaning.request, "de")
        asked = self.nominal(meaning.main.subject, "acc")
        head = f"{self.nominal(meaning.teller, 'nom')} {verb.present[meaning.teller.person]} {asked} {verb.prefix}"
        return f"{head}, {self.clause(meaning.main, 'zu')}"

    def relative(self, meaning: Meaning) -> str:
        assert meaning.second
        subject = meaning.main.subject
        noun, text = self.noun_phrase(subject, "nom")
        pronoun = _ARTICLE["nom"]["p" if subject.plural else noun.gender]
        inner = self.clause(meaning.second, "final", subject=pronoun)
        return self.clause(meaning.main, "main", subject=f"{text}, {pronoun} {inner},", fronting=0.0)

    def question(self, meaning: Meaning) -> str:
        assert meaning.question
        return f"{self.choice.word(meaning.question, 'de')} {self.clause(meaning.main, 'first')}"

    # Clauses

    def clause(
        self,
        clause: Clause,
        order: str,
        link: str = "",
        voice: bool = False,
        subject: str = "",
        fronting: float = 0.25,
    ) -> str:
        """One clause.

        Args:
            order: ``main`` (verb second), ``final`` (verb last), ``first`` (verb first), ``headless`` (verb first,
                without a subject), ``zu`` (infinitive).
            link: A connective.
            voice: Whether it may be put into the passive.
            subject: The subject's words, if not those of the clause's own (for ``final``: a relative pronoun,
                which the caller has already written).
            fronting: How often an adverbial stands before the verb.
        """
        choice, verb = self.choice, self.choice.word(clause.verb, "de")
        agentive = clause.subject.concept is not None and clause.tense != "want"
        passive = voice and verb.direct and agentive and choice.chance(0.08)
        if passive:
            person, agent = clause.object.person, f"von {self.nominal(clause.subject, 'dat')}"
            subject = self.nominal(clause.object, "nom")
            middle = self.middle(clause, agent, after_negation=True)
        else:
            person = clause.subject.person
            given, subject = subject, subject or self.nominal(clause.subject, "nom")
            if order == "final" and given:
                subject = ""
            target = self.nominal(clause.object, verb.case)
            middle = self.middle(
                clause, f"{verb.government} {target}".strip(), after_negation=bool(verb.government)
            )
        if order == "zu":
            infinitive = f"{verb.prefix}zu{verb.infinitive}" if verb.prefix else f"zu {verb.infinitive}"
            return " ".join([*(text for _, text in middle), infinitive])
        finite, prefix, rest = self.predicate(verb, clause, person, passive)
        if order == "final":
            tail = [rest, finite] if rest else [prefix + finite]
            return " ".join([subject, *(text for _, text in middle), *tail])
        tail = [rest or prefix]
        if order == "main":
            front = subject
            movable = [item for item in middle if item[0] in ("time", "place")]
            if link and choice.chance(0.85):
                front, link = link, ""
            elif movable and choice.chance(fronting):
                front = movable[0][1]
                middle.remove(movable[0])
            inverted = "" if front is subject else subject
            return " ".join([front, finite, inverted, link, *(text for _, text in middle), *tail])
        return " ".join(
            [finite, "" if order == "headless" else subject, *(text for _, text in middle), *tail]
        )

    def predicate(self, verb: Verb, clause: Clause, person: str, passive: bool) -> tuple[str, str, str]:
        """``(finite verb, separable prefix, infinite rest)``."""
        tense, choice, whole = clause.tense, self.choice, verb.prefix + verb.infinitive
        if passive:
            if tense in MODALS:
                return _FORMS[tense][person], "", f"{verb.participle} werden"
            if tense == "past":
                perfect = choice.chance(0.12)
                return (
                    _FORMS["be" if perfect else "became"][person],
                    "",
                    verb.participle + " worden" * perfect,
                )
            future = tense == "future"
            return _FORMS["become"][person], "", verb.participle + " werden" * future
        if tense in MODALS:
            return _FORMS[tense][person], "", whole
        if tense == "past":
            if choice.chance(0.12):
                return (verb.past or {})[person], verb.prefix, ""
            return _FORMS["have"][person], "", verb.participle
        if tense == "future" and not (clause.time and choice.chance(0.12)):
            return _FORMS["become"][person], "", whole
        return verb.present[person], verb.prefix, ""

    def middle(self, clause: Clause, target: str, after_negation: bool) -> list[tuple[str, str]]:
        """The middle field as ``(kind, words)``; ``target`` is the object or the agent of a passive."""
        choice = self.choice
        time = choice.word(clause.time, "de").format(n=spell(clause.number, "de")) if clause.time else ""
        place = choice.word(clause.place, "de") if clause.place else ""
        manner = choice.word(clause.manner, "de") if clause.manner else ""
        negation = "nicht" if clause.negated else ""
        items = {"time": time, "place": place, "manner": manner, "negation": negation, "object": target}
        if after_negation:
            order = choice.usual(["time place negation manner object", "time negation manner object place"])
        elif clause.object.determiner in ("indef", "count"):
            order = choice.usual(["time place manner object negation", "time manner object place negation"])
        else:
            order = choice.usual(
                [
                    "time place object negation manner",
                    "time object negation place manner",
                    "object time negation place manner",
                ]
            )
        return [(kind, items[kind]) for kind in order.split() if items[kind]]

    # Nouns

    def nominal(self, entity: Entity, case: str) -> str:
        if entity.pronoun:
            return {"1s": "ich", "1p": "wir"}[entity.pronoun]
        return self.noun_phrase(entity, case)[1]

    def noun_phrase(self, entity: Entity, case: str) -> tuple[Noun, str]:
        choice, noun = self.choice, self.choice.word(entity.concept, "de")  # type: ignore[arg-type]
        determiner = entity.determiner
        if determiner == "this" and choice.chance(0.05):
            determiner = "def"
        key = "p" if entity.plural else noun.gender
        words = [_determiner(determiner, case, key, entity, choice)]
        if entity.adjective:
            adjective: Adjective = choice.word(entity.adjective, "de")
            words.append(adjective.forms["stem"] + _adjective_ending(determiner, case, key))
        words.append(decline(noun, case, entity.plural))
        if entity.of:
            words.append(self.noun_phrase(entity.of, "gen")[1])
        return noun, " ".join(filter(None, words))


def _determiner(determiner: str, case: str, key: str, entity: Entity, choice: Choice) -> str:
    if determiner == "def":
        return _ARTICLE[case][key]
    if determiner == "this":
        return "dies" + _DIES[case][key]
    if determiner == "our":
        return "unser" + _EIN[case][key]
    if determiner == "count":
        return spell(entity.count, "de")
    if key == "p":
        return choice.usual(["einig" + _DIES[case]["p"], "mehrer" + _DIES[case]["p"]])
    return "ein" + _EIN[case][key]


def _adjective_ending(determiner: str, case: str, key: str) -> str:
    if key == "p":
        if determiner in ("count", "indef"):  # strong
            return _DIES[case]["p"]
        return "en"
    table = _WEAK if determiner in ("def", "this") else _MIXED
    return table[case][key] if case in table else "en"


def decline(noun: Noun, case: str, plural: bool) -> str:
    """A noun in its case and number; weak masculines (Präsident) end in -n outside the nominative."""
    if plural:
        return noun.plural + ("n" if case == "dat" and not noun.plural.endswith(("n", "s")) else "")
    if case == "gen" or (case != "nom" and noun.gender == "m" and noun.genitive.endswith("n")):
        return noun.genitive
    return noun.singular
