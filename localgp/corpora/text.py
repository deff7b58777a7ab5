"""Text files and text normalisation that all readers share."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))  # zero-width marks, soft hyphen
_APOSTROPHES = str.maketrans("\u2019\u02bc", "''")

# "l ' Europe", "s ' il", "don ' t": an apostrophe with a space on each side, between two words.
_SPACED_APOSTROPHE = re.compile(r"(?<!\w)(\w+) ' (?=(\w+))")
_CONTRACTED = re.compile(r"(?:s|t|d|m|ll|re|ve)\Z", re.IGNORECASE)  # what follows it in English
_VOWELS = frozenset("aeiouyhœæ")

# A closing quotation mark that the sentence splitter left at the head of the next segment. A mark followed by
# a space cannot be an opening one, except « in French, which is not in the set.
_STRAY_CLOSING = re.compile(r"\A(?:[\"”»'] +)+")


def normalize_text(text: str, case: str = "lower") -> str:
    """Normalises a transcript or a translation; punctuation and digits stay.

    Conservative on purpose, since references are scored as they come out of here: Unicode NFC, no invisible
    characters, single spaces, typographic apostrophes as ``'``, elisions and contractions that a tokenizer
    tore apart put together again, a stray closing quote at the head removed. Dashes and quotes are left.

    Args:
        text: One line of a corpus.
        case: ``lower`` or ``keep``.

    Examples:
        >>> normalize_text("L ’ Europe, c ' est  nous – n'est-ce pas ?")
        "l'europe, c'est nous – n'est-ce pas ?"
        >>> normalize_text("” Un po ' di pace.", case="keep")
        "Un po ' di pace."
    """
    text = unicodedata.normalize("NFC", text).translate(_INVISIBLE).translate(_APOSTROPHES)
    text = " ".join(text.split())
    text = _STRAY_CLOSING.sub("", text)
    text = _SPACED_APOSTROPHE.sub(_join_elision, text)
    return text.lower() if case == "lower" else text


def _join_elision(match: re.Match[str]) -> str:
    """Joins ``l ' Europe`` and ``don ' t``; leaves ``po ' di``, ``members ' interests`` and quoted words."""
    left, right = match[1].lower(), match[2].lower()
    # French and Italian elide before a vowel; no elided form but "s" itself ends in s, where English has the
    # plural's possessive. Italian "po'" is cut short and keeps its space.
    vowel = unicodedata.normalize("NFD", right)[0] in _VOWELS
    elided = vowel and left != "po" and (left == "s" or not left.endswith("s"))
    return f"{match[1]}'" if elided or _CONTRACTED.match(right) else match[0]


def read_lines(path: Path, expected: int | None = None) -> list[str | None]:
    r"""The lines of a text file, split at ``\n`` alone; None where a line is not UTF-8.

    `str.splitlines` would also split at U+2028, form feeds and others, which occur inside of sentences, and
    shift every line below. A byte order mark and the ``\r`` of a ``\r\n`` are removed.

    Args:
        path: The file.
        expected: The number of lines it should have: decides whether an empty end is a line of its own.
    """
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if raw[-1] == b"" and len(raw) != expected:  # what follows the last line's end
        raw.pop()
    lines: list[str | None] = []
    for line in raw:
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(None)
    return lines
