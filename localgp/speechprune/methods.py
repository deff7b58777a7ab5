"""Which audio tokens reach the language model: the two phases, their ablations and the random baselines.

The rate counts from the budget, not from the audio: of ``min(N, budget)`` tokens the share ``rate`` is removed.
With the paper's budget of 750 (30 s, what the model was trained for) 90 s of audio, 2250 tokens, keep 600 at
rate 0.2. So for audio longer than 30 s *every* method removes more than ``rate`` of it.

    method    tokens from            to
    both      similarity, N -> budget; attention, budget -> keep      (SpeechPrune)
    first     similarity, N -> keep
    second    attention,  N -> keep
    rap       random tokens, N -> keep                                (random audio pruning)
    rac       one random contiguous span, N -> keep                   (random audio cropping)

All methods see the whole audio. The paper does not say whether its baselines and its second-phase ablation do,
or start from the first 30 s; only from the whole do the methods differ in nothing but the choice of tokens.

Rate 0 is the untouched model for every method: nothing is selected, and audio over 30 s is cut off as
`transformers`' processor does (the paper's row "Original"). Nothing else would be untouched: phase 1 alone
already chooses among the tokens of long audio.

Shape legend: N audio tokens, L query tokens, D embedding size.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from localgp.errors import ConfigError
from localgp.gates.binarised import SCALES, most_attended
from localgp.speechprune.similarity import FRAME, REMAINDERS, most_similar

METHODS = ("both", "first", "second", "rap", "rac")
BUDGET = 750  # tokens of 30 s


class FirstLayer(NamedTuple):
    """Query and key projections of the language model's first layer, as `torch.nn.Linear` stores them."""

    weight_q: Tensor
    weight_k: Tensor
    n_heads: int


@dataclass(frozen=True)
class Pruner:
    """A choice of method and rate; `select` applies it to one audio.

    Attributes:
        method: One of `METHODS`.
        rate: Share of the budget that is removed, in [0, 1).
        budget: Tokens that phase 1 leaves; None for as many as the audio has.
        frame: Tokens per frame of phase 1.
        remainder: See `localgp.speechprune.similarity`.
        scale: See `localgp.gates.binarised`.
        seed: Of the random baselines.
    """

    method: str = "both"
    rate: float = 0.2
    budget: int | None = BUDGET
    frame: int = FRAME
    remainder: str = "fill"
    scale: str = "literal"
    seed: int = 1

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value!r}; valid: {', '.join(valid)}"
            for name, value, valid in (
                ("method", self.method, METHODS),
                ("remainder", self.remainder, REMAINDERS),
                ("scale", self.scale, SCALES),
            )
            if value not in valid
        ]
        if not 0 <= self.rate < 1:
            wrong.append(
                f"rate is {self.rate}; valid: from 0 (the untouched model) to below 1 (everything removed)"
            )
        if self.budget is not None and self.budget < 1:
            wrong.append(
                f"budget is {self.budget}; valid: null, or a number of tokens above 0 (750 are 30 s)"
            )
        if self.frame < 1:
            wrong.append(f"frame is {self.frame}; valid: a number of tokens above 0 (25 are 1 s)")
        if wrong:
            raise ConfigError("; ".join(wrong))

    @property
    def untouched(self) -> bool:
        return self.rate == 0

    def keep(self, n: int) -> int:
        """Tokens kept of ``n``; at least one, so that the model hears something."""
        return max(1, round((1 - self.rate) * self._budget(n)))

    def _budget(self, n: int) -> int:
        return n if self.budget is None else min(n, self.budget)

    def select(self, audio_ND: Tensor, query_LD: Tensor, layer: FirstLayer, name: str = "") -> Tensor:
        """Indices, ascending, of the audio tokens that are kept.

        Args:
            audio_ND: Projected audio tokens, as the language model would see them.
            query_LD: The language model's embeddings of the question's own tokens: no system prompt, no chat
                template, no special tokens.
            layer: The language model's first layer.
            name: Of the audio. The random baselines depend on it and the seed, not on the order of the samples.
        """
        n = len(audio_ND)
        if self.untouched:
            return torch.arange(n, device=audio_ND.device)
        keep = self.keep(n)
        if self.method in ("rap", "rac"):
            return self._random(n, keep, name).to(audio_ND.device)
        if self.method == "first":
            return most_similar(audio_ND, query_LD, keep, self.frame, self.remainder)
        if self.method == "second":
            return most_attended(audio_ND, *layer, keep, self.scale)
        first = most_similar(audio_ND, query_LD, self._budget(n), self.frame, self.remainder)
        return first[most_attended(audio_ND[first], *layer, min(keep, len(first)), self.scale)]

    def _random(self, n: int, keep: int, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        if self.method == "rap":
            return torch.randperm(n, generator=generator)[:keep].sort().values
        start = int(torch.randint(n - keep + 1, (1,), generator=generator))
        return torch.arange(start, start + keep)
