"""The window: how much of the padding behind a recording a model is given.

A foundation model pads every recording to one length. ``full`` keeps that; ``utterance`` gives each recording its own
length and a margin behind it; a number of seconds is one shorter length for all. What is heard behind a recording is
always the beginning of that padding, so that a shorter window's features are those of the full one, cut off.

Shape legend: B utterances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 0.2  # s; what a run has that was made before there was the option, if it has a window of its own
SHORTEST = 0.2  # s; below it a stem has nothing to give
_PADDING = {"full": {"length": "full"}, "none": {"length": "utterance", "margin": 0.0}}  # the older option


@dataclass(frozen=True)
class Window:
    """How much of a recording and its padding is encoded.

    Args:
        length: ``full``, ``utterance``, or seconds.
        margin: Seconds of silence that ``utterance`` leaves at the end.

    Examples:
        >>> import torch
        >>> ends = torch.tensor([16_000, 100])
        >>> Window("utterance", 0.5).lengths(ends, 480_000, 16_000).tolist()
        [24000, 8100]
        >>> Window(2.0).longest(480_000, 16_000), Window().longest(480_000, 16_000)
        (32000, 480000)
    """

    length: str | float = "full"
    margin: float = MARGIN

    @property
    def is_full(self) -> bool:
        return self.length == "full"

    @property
    def ragged(self) -> bool:
        """Whether recordings of a batch have windows of different lengths."""
        return self.length == "utterance"

    def longest(self, padded: int, rate: int) -> int:
        """Samples of the longest input, of a model that pads to ``padded`` of them."""
        if isinstance(self.length, str):
            return padded
        return min(padded, round(self.length * rate))

    def lengths(self, ends_B: Tensor, longest: int, rate: int) -> Tensor:
        """Samples that are heard of each recording, (B,).

        Args:
            ends_B: Where each ends.
            longest: See `longest`.
        """
        if not self.ragged:
            return ends_B.new_full(ends_B.shape, longest)
        least = min(longest, round(SHORTEST * rate))
        return (ends_B + round(self.margin * rate)).clamp(least, longest)

    def __str__(self) -> str:
        if self.ragged:
            return f"each recording's own length and {self.margin:g} s"
        return "full" if self.is_full else f"{float(self.length):g} s"


def window_of(config: Mapping[str, Any]) -> Window:
    """The window of a configuration, stored or composed."""
    section = upgraded(config).get("window") or {}
    return Window(section.get("length", "full"), float(section.get("margin", MARGIN)))


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the window in place of ``padding``, which it was called before it could be more than
    full or none."""
    config = {str(key): value for key, value in config.items()}
    if "padding" in config:
        padding = config.pop("padding")
        config.setdefault("window", _PADDING.get(padding, {"length": padding}))
    return config


def spelt_out(override: str) -> str:
    """An override of the command line as the configuration has it.

    Examples:
        >>> spelt_out("window=utterance"), spelt_out("window=12.5"), spelt_out("padding=full")
        ('window.length=utterance', 'window.length=12.5', 'window.length=full')
        >>> spelt_out("budget=0.5")
        'decode.budget=0.5'
        >>> spelt_out("padding=none"), spelt_out("window.margin=1"), spelt_out("seed=1")
        ('window={length:utterance,margin:0.0}', 'window.margin=1', 'seed=1')
    """
    key, equals, value = override.partition("=")
    name = key.lstrip("+")
    if name == "padding" and value == "none":
        return "window={length:utterance,margin:0.0}"
    if equals and name == "budget":
        return f"decode.budget={value}"
    if equals and (name == "padding" or (name == "window" and not value.startswith("{"))):
        return f"window.length={value}"
    return override
