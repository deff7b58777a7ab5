"""How to decode: one frozen record, stored beside every score that was computed with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from localgp.errors import ConfigError
from localgp.settings import require


@dataclass(frozen=True)
class DecodeOptions:
    """Options of the beam search, with the meaning that ESPnet gives them.

    Attributes:
        beam: Hypotheses kept per utterance; 1 is greedy search.
        ctc_weight: Weight of the CTC prefix score; the attention decoder has ``1 - ctc_weight``.
        length_bonus: Added to the score for every token (ESPnet's ``penalty``).
        maxlenratio: Longest output in tokens. 0: the encoder's length, and end detection; positive: this
            times the encoder's length, no end detection; -n: n tokens, no end detection.
        minlenratio: Shortest output, likewise: this times the encoder's length, or -n for n tokens.
        ranking: Which hypotheses win and when there are enough. ``espnet``: the highest sum of scores; longer ones are
            looked for until the lengths just tried are clearly worse. ``transformers``: the highest score per token
            (its ``length_penalty=1``); until ``beam`` have ended and, per token, none that is running is better
            than the worst of these.
        nbest: Hypotheses returned per utterance.
        budget: Share that the encoder's gates keep, of a model that was trained for many; None: what it keeps by
            itself. The search has no part in it.

    Raises:
        ConfigError: If a value is outside its range; all problems are named at once.
    """

    beam: int = 5
    ctc_weight: float = 0.0
    length_bonus: float = 0.0
    maxlenratio: float = 0.0
    minlenratio: float = 0.0
    ranking: str = "espnet"
    nbest: int = 1
    budget: float | None = None

    def __post_init__(self) -> None:
        values = {f"decode.{name}": value for name, value in asdict(self).items() if name != "nbest"}
        require(values)

    def check(self, decoder_layers: int) -> None:
        """Refuses what is a decoder's alone where the model has none.

        Raises:
            ConfigError: A length is bounded.
        """
        if not decoder_layers and (self.maxlenratio or self.minlenratio):
            raise ConfigError(
                f"maxlenratio is {self.maxlenratio:g} and minlenratio {self.minlenratio:g}, which bound what a decoder "
                "writes, and this model has none; leave them at 0"
            )

    def max_length(self, frames: int) -> int:
        """Longest output in tokens, without the primer, for an encoder output of ``frames``."""
        if self.maxlenratio == 0:
            return frames
        if self.maxlenratio < 0:
            return -int(self.maxlenratio)
        return max(1, int(self.maxlenratio * frames))

    def min_length(self, frames: int, ratio: float | None = None) -> int:
        """Shortest output in tokens, with ``ratio`` in place of `minlenratio` if given."""
        ratio = self.minlenratio if ratio is None else ratio
        return -int(ratio) if ratio < 0 else int(ratio * frames)
