"""Whether a window's output can be trusted, by the rules of openai-whisper's ``transcribe``: text that repeats itself
compresses too well, and text that the model is unsure of has a low mean log-probability. Such a window is decoded again
at a higher temperature; unless it is unsure because there is nothing to hear."""

from __future__ import annotations

import zlib

MOST_COMPRESSED = 2.4  # bytes of a text to those that zlib makes of it
LEAST_SURE = -1.0  # mean log-probability of its tokens, among those that the rules leave
NO_SPEECH = 0.6  # probability of the symbol for it
FORGET = 0.5  # temperature from which on a window's text is no context for the next one


def compression(text: str) -> float:
    """How often zlib could have said a text in its place.

    Examples:
        >>> round(compression("ja " * 100), 1), compression("guten Tag, meine Damen und Herren") < 1
        (21.4, True)
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def repeats(text: str) -> bool:
    return compression(text) > MOST_COMPRESSED


def unsure(confidence: float) -> bool:
    """Whether a text is to be trusted less.

    Args:
        confidence: Mean log-probability.
    """
    return confidence < LEAST_SURE
