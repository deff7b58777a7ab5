"""French: elision, contracted articles, two-part negation, agreement of participles in the passive."""

from __future__ import annotations

from localgp.corpora.mini.lexicon import VOWELS, Adjective, Noun, Verb
from localgp.corpora.mini.meaning import Clause, Entity, Meaning
from localgp.corpora.mini.numerals import spell
from localgp.corpora.mini.romance import Romance, paradigm

_ELIDED = ("le", "la", "de", "ne", "que", "je")
_CONTRACTED = {("de", "le"): "du", ("de", "les"): "des", ("à", "le"): "au", ("à", "les"): "aux"}


def _vocalic(word: str) -> bool:
    return word[0] in VOWELS and word != "onze"


class French(Romance):
    """Puts meanings into French words."""

    language = "fr"
    have = paradigm("ai a avons ont")
    be = {"present": paradigm("suis est sommes sont"), "future": paradigm("serai sera serons seront")}  # noqa: RUF012
    be_infinitive = "être"
    modals = {  # noqa: RUF012
        "must": paradigm("dois doit devons doivent"),
        "can": paradigm("peux peut pouvons peuvent"),
        "should": paradigm("devrais devrait devrions devraient"),
        "want": paradigm("veux veut voulons veulent"),
    }
    by, that, who, both, since = "par", "que", "qui", "et", "puisque"
    negation = ("ne", "pas")
    question_mark = " ?"

    def join(self, text: str) -> str:
        words = text.split()
        for i in range(len(words) - 2, -1, -1):
            word, following = words[i], words[i + 1]
            if word == "@ce":
                words[i] = "cet" if _vocalic(following) else "ce"
            elif word in _ELIDED and _vocalic(following):
                words[i : i + 2] = [word[:-1] + "'" + following]
            elif word == "si" and following in ("il", "ils"):
                words[i : i + 2] = ["s'" + following]
            elif (word, following) in _CONTRACTED:
                words[i : i + 2] = [_CONTRACTED[word, following]]
        return " ".join(words)

    def determiner(self, entity: Entity, noun: Noun, before: bool) -> str:
        kind, plural = entity.determiner, entity.plural
        feminine = noun.gender == "f"
        if kind == "def":
            return "les" if plural else "la" if feminine else "le"
        if kind == "this":
            return "ces" if plural else "cette" if feminine else "@ce"
        if kind == "our":
            return "nos" if plural else "notre"
        if kind == "count":
            return spell(entity.count, "fr")
        if plural:
            return self.choice.usual(["quelques", "plusieurs"])
        return "une" if feminine else "un"

    def pronoun(self, person: str) -> str:
        return {"1s": "je", "1p": "nous"}[person]

    def agree(self, participle: str, gender: str, plural: bool) -> str:
        agreed = participle + ("e" if gender == "f" else "")
        return agreed + ("s" if plural and not agreed.endswith("s") else "")

    def before_noun(self, adjective: Adjective, form: str, word: str) -> str:
        return adjective.before_vowel if form == adjective.forms["ms"] and _vocalic(word) else form

    def future(self, verb: Verb, clause: Clause) -> tuple[str, str]:
        person = clause.subject.person
        if self.choice.chance(0.15):
            return paradigm("vais va allons vont")[person], verb.infinitive
        return (verb.future or {})[person], ""

    def been(self, person: str, gender: str, plural: bool) -> str:
        return f"{self.have[person]} été"

    def judgement(self, meaning: Meaning) -> str:
        assert meaning.judgement
        word = self.choice.word(meaning.judgement, "fr")
        head = self.choice.usual([f"il est {word}", f"il nous semble {word}", f"nous jugeons {word}"])
        return f"{head} de {self.infinitive(meaning.main)}"

    def question(self, meaning: Meaning) -> str:
        assert meaning.question
        word = self.choice.word(meaning.question, "fr")
        return f"{word} est-ce que {self.clause(meaning.main, fronting=0.0)}"
