"""Whether prepared data suit what is done with them, before anything runs for hours on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localgp.errors import ConfigError, refuse

if TYPE_CHECKING:
    from localgp.backbones.base import Backbone

_ROUNDING = 0.05  # s; what a segment's times may be longer than its window


def split_of(splits: Mapping[str, Any], name: str) -> Any:
    """The rows of a split.

    Raises:
        ConfigError: The corpus has none of that name.
    """
    if name not in splits:
        raise ConfigError(
            f"the prepared corpus has no {name} split, only {', '.join(splits)}. In a manifest, lines say where they "
            f'belong: "split": "{name}"'
        )
    return splits[name]


def check_fits(rows: Any, backbone: Backbone, window: float) -> None:
    """Compares segments with what the backbone hears at once and knows.

    Args:
        rows: Of a prepared split.
        backbone: What they are for.
        window: Seconds that it hears at once.

    Raises:
        ConfigError: Segments that it would hear the beginning of alone, whose text is of the whole; or languages
            that it does not have.
    """
    refuse(_problems(rows, backbone, window))


def too_long(seconds: Sequence[float], window: float, backbone: str) -> list[str]:
    """A sentence, where there are segments of which the backbone of that name hears the beginning alone."""
    over = [one for one in seconds if one > window + _ROUNDING]
    if not over:
        return []
    return [
        f"{len(over)} of {len(seconds)} segments are longer than the {window:g} s that backbone {backbone} hears "
        f"(the longest {max(over):.1f} s); corpus.max_seconds={window:g} leaves them out"
    ]


def _problems(rows: Any, backbone: Backbone, window: float) -> list[str]:
    table = rows.select_columns(["seconds", "language", "targets"]).with_format(None)[:]
    problems = too_long(table["seconds"], window, backbone.name)
    languages = sorted({*table["language"], *(target for targets in table["targets"] for target in targets)})
    unknown = []
    for language in languages:
        try:
            backbone.tokenizer.prompt(language, language)
        except ConfigError:
            unknown.append(language)
    if unknown:
        known = ",".join(language for language in languages if language not in unknown)
        problems.append(
            f"the corpus has {', '.join(unknown)}, which backbone {backbone.name} does not know: it has "
            f"{', '.join(backbone.tokenizer.languages)}"
            + (f"; corpus.languages=[{known}] keeps what it knows" if known else "")
        )
    return problems
