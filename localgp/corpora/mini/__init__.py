"""A generated corpus: parliamentary sentences in German, French and Italian, spoken by eSpeak NG.

Stands in for Europarl-ST where that is absent. It is written in that corpus's layout and read by its reader, and
the truth about each segment (words, phones, speech, noise) is kept beside it.
"""

from localgp.corpora.mini.generate import MiniSpec, generate_corpus
from localgp.corpora.mini.lexicon import LANGUAGES
from localgp.corpora.mini.speakers import speakers
from localgp.corpora.mini.utterance import Utterance, draw_utterance, synthesize_split

__all__ = [
    "LANGUAGES",
    "MiniSpec",
    "Utterance",
    "draw_utterance",
    "generate_corpus",
    "speakers",
    "synthesize_split",
]
