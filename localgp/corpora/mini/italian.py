"""Italian: articles that follow the next sound, contracted prepositions, dropped pronouns, agreeing participles."""

from __future__ import annotations

import re

from localgp.corpora.mini.lexicon import Noun, Verb, italian_agreement
from localgp.corpora.mini.meaning import Clause, Entity, Meaning
from localgp.corpora.mini.numerals import spell
from localgp.corpora.mini.romance import Romance, paradigm

_PREPOSITIONS = {"di": "de", "a": "a", "da": "da", "in": "ne", "su": "su"}
_IMPURE = re.compile(r"s[^aeiouàèéìòù]|z|gn|ps|x|y", re.IGNORECASE)  # takes lo, gli, uno


def _vocalic(word: str) -> bool:
    return word[0].lower() in "aeiouàèéìòù"


def article(marker: str, following: str) -> str:
    """The article for ``@d`` (il), ``@u`` (un) or ``@q`` (questo) with gender and number before the next word.

    >>> article("@dms", "studente"), article("@dmp", "accordi"), article("@ufs", "agenzia")
    ('lo', 'gli', "un'")
    """
    kind, form = marker[1], marker[2:]
    impure = bool(_IMPURE.match(following))
    if kind == "q":
        return "quest'" if form in ("ms", "fs") and _vocalic(following) else italian_agreement("questo")[form]
    if kind == "u":
        return ("uno" if impure else "un") if form == "ms" else ("un'" if _vocalic(following) else "una")
    if form in ("ms", "fs") and _vocalic(following):
        return "l'"
    if form == "ms":
        return "lo" if impure else "il"
    if form == "mp":
        return "gli" if impure or _vocalic(following) else "i"
    return "la" if form == "fs" else "le"


def contract(preposition: str, definite: str) -> str:
    """A preposition and a definite article in one word.

    >>> contract("di", "il"), contract("in", "gli"), contract("su", "l'")
    ('del', 'negli', "sull'")
    """
    ending = definite[1:] if definite == "il" else definite
    return _PREPOSITIONS[preposition] + ("l" if definite in ("lo", "l'", "la", "le") else "") + ending


class Italian(Romance):
    """Puts meanings into Italian words."""

    language = "it"
    have = paradigm("ho ha abbiamo hanno")
    be = {"present": paradigm("vengo viene veniamo vengono"), "future": paradigm("sarò sarà saremo saranno")}  # noqa: RUF012
    be_infinitive = "essere"
    modals = {  # noqa: RUF012
        "must": paradigm("devo deve dobbiamo devono"),
        "can": paradigm("posso può possiamo possono"),
        "should": paradigm("dovrei dovrebbe dovremmo dovrebbero"),
        "want": paradigm("voglio vuole vogliamo vogliono"),
    }
    by, that, who, both, since = "da", "che", "che", "e", "poiché"
    of = "di"
    negation = ("non", "")

    def join(self, text: str) -> str:
        words = text.split()
        for i in range(len(words) - 2, -1, -1):
            if not words[i].startswith("@"):
                continue
            resolved = article(words[i], words[i + 1])
            start = i
            if words[i][1] == "d" and i and words[i - 1] in _PREPOSITIONS:
                resolved, start = contract(words[i - 1], resolved), i - 1
            words[start : i + 2] = (
                [resolved + words[i + 1]] if resolved.endswith("'") else [resolved, words[i + 1]]
            )
        return " ".join(words)

    def determiner(self, entity: Entity, noun: Noun, before: bool) -> str:
        kind, form = entity.determiner, noun.gender + ("p" if entity.plural else "s")
        if kind == "count":
            return spell(entity.count, "it")
        if kind == "our":
            forms = {**italian_agreement("nostro"), "mp": "nostri"}
            return f"@d{form} {forms[form]}"
        if kind == "indef" and entity.plural:
            return self.choice.usual(
                [italian_agreement("alcuno")[form], "diversi" if form == "mp" else "diverse"]
            )
        return {"def": "@d", "this": "@q", "indef": "@u"}[kind] + form

    def pronoun(self, person: str) -> str:
        return self.choice.usual(["", {"1s": "io", "1p": "noi"}[person]], 0.85)

    def agree(self, participle: str, gender: str, plural: bool) -> str:
        return italian_agreement(participle)[gender + ("p" if plural else "s")]

    def future(self, verb: Verb, clause: Clause) -> tuple[str, str]:
        person = clause.subject.person
        if clause.time and self.choice.chance(0.1):
            return verb.present[person], ""
        return (verb.future or {})[person], ""

    def been(self, person: str, gender: str, plural: bool) -> str:
        return ("sono " if plural else "è ") + self.agree("stato", gender, plural)

    def judgement(self, meaning: Meaning) -> str:
        assert meaning.judgement
        word = self.choice.word(meaning.judgement, "it")
        head = self.choice.usual([f"è {word}", f"ci sembra {word}", f"riteniamo {word}"])
        return f"{head} {self.infinitive(meaning.main)}"

    def question(self, meaning: Meaning) -> str:
        assert meaning.question
        return f"{self.choice.word(meaning.question, 'it')} {self.clause(meaning.main, fronting=0.0)}"
