"""The parallel grammar: a key gives a sentence in German, French and Italian."""

from __future__ import annotations

from collections.abc import Callable

from localgp.corpora.mini.french import French
from localgp.corpora.mini.german import German
from localgp.corpora.mini.italian import Italian
from localgp.corpora.mini.lexicon import LANGUAGES, load_lexicon
from localgp.corpora.mini.meaning import Choice, Meaning, draw_meaning

RENDERERS: dict[str, Callable[[Choice], German | French | Italian]] = {
    "de": German,
    "fr": French,
    "it": Italian,
}


def render(meaning: Meaning, language: str, key: str) -> str:
    """Words of one language for a meaning; other keys give other synonyms, word orders and voices."""
    return RENDERERS[language](Choice(f"{key}:{language}")).sentence(meaning)


def draw_sentence(key: str, lexicon: str = "full") -> dict[str, str]:
    """The sentence of a key by language, cased and punctuated.

    >>> sorted(draw_sentence("an example"))
    ['de', 'fr', 'it']
    """
    meaning = draw_meaning(key, load_lexicon(lexicon), core=lexicon == "core")
    return {language: render(meaning, language, key) for language in LANGUAGES}
