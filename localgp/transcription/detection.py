"""When a detected language is not to be relied on."""

from __future__ import annotations

from collections.abc import Sequence

# Fewer languages than these are not most of what is spoken: a recording in none of them is taken for one all the same.
MANY_LANGUAGES = 20
SMALLEST_MARGIN = 0.2  # between the probabilities of the best two


def detection_warnings(languages: Sequence[str], probabilities: Sequence[float]) -> list[str]:
    """What to tell who left the language to the model.

    Args:
        languages: All that the model knows.
        probabilities: Of each, in the same order.

    Examples:
        >>> detection_warnings(["deu", "fra"], [0.55, 0.45])[1]
        'the language is hard to tell: deu 0.55, fra 0.45; --src (src=) says what is spoken'
    """
    ranked = sorted(zip(probabilities, languages, strict=True), reverse=True)
    remedy = "--src (src=) says what is spoken"
    found = []
    if len(languages) < MANY_LANGUAGES:
        found.append(
            f"this model knows {', '.join(languages)} and takes every recording for one of them; {remedy}"
        )
    if len(ranked) > 1 and ranked[0][0] - ranked[1][0] < SMALLEST_MARGIN:
        best = ", ".join(f"{name} {probability:.2f}" for probability, name in ranked[:2])
        found.append(f"the language is hard to tell: {best}; {remedy}")
    return found
