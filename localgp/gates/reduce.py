"""Fewer frames from some layer on: rivals that take frames out of the sequence, or make one of two neighbours.

What is left is a shorter sequence for all later parts, convolutions and the decoder's attention included.

Shape legend: T frames of an utterance that are left, D model size, H heads.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.base import Branch
from localgp.backbones.cost import norm_cost
from localgp.gates.base import Gates
from localgp.gates.control import ControlGates


class Reduction(ControlGates):
    """Base of both: no gates, and after some layers fewer frames.

    Args:
        layers: L.
        removed: Share of an utterance's frames that are gone in the end.
    """

    framewise = True

    def __init__(self, layers: int, removed: float) -> None:
        super().__init__(())
        self.layers, self.removed = layers, removed
        self._own = removed

    def set_budget(self, budget: float | None) -> None:
        self.removed = self._own if budget is None else 1 - budget

    def begin(self, contexts: dict[str, Tensor]) -> Any:
        return None

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        raise NotImplementedError

    def gate(self, layer: int, x_BTD: Tensor, state: Any) -> Gates:
        return {}

    @abstractmethod
    def left(self, frames: int) -> list[int]:
        """Frames that each layer runs on, and then those of the encoder's output: L + 1 numbers."""

    @abstractmethod
    def regroup(self, layer: int, x_TD: Tensor, count: int) -> Tensor:
        """For each frame after a layer (counted from 0) the place among ``count`` that it goes to, with those that
        have the same; -1 for one that goes nowhere. (T,)"""

    def flops(self, frames: int) -> float:
        """Of deciding, for an utterance of so many frames; nothing is decided where none go."""
        return sum(self.regroup_flops(count) for count, after in pairwise(self.left(frames)) if after < count)

    @abstractmethod
    def regroup_flops(self, frames: int) -> float:
        """Of one `regroup` of so many frames."""


class AttentiveSparsification(Reduction):
    """Early attentive sparsification (arXiv 2506.15912): after an early layer the frames that attention looks at least
    are gone for good.

    What a frame receives is read from the queries and keys of the next layer's attention, on that layer's input.

    Args:
        attention: The parts of all layers.
        after: Layers before frames go.
    """

    def __init__(self, attention: Sequence[Branch], removed: float, after: int) -> None:
        super().__init__(len(attention), removed)
        self.after, self._attention = after, attention[after]

    def left(self, frames: int) -> list[int]:
        kept = max(1, frames - round(self.removed * frames))
        return [frames] * self.after + [kept] * (self.layers + 1 - self.after)

    @torch.no_grad()
    def regroup(self, layer: int, x_TD: Tensor, count: int) -> Tensor:
        query_HTd, key_HTd = _heads(self._attention, x_TD, 2)
        scores_HTT = query_HTd @ key_HTd.transpose(1, 2) / query_HTd.shape[-1] ** 0.5
        received_T = scores_HTT.float().softmax(-1).mean((0, 1))
        best = received_T.topk(count).indices.sort().values
        return torch.full_like(received_T, -1, dtype=torch.long).scatter(
            0, best, torch.arange(count, device=x_TD.device)
        )

    def regroup_flops(self, frames: int) -> float:
        return (
            _heads_flops(self._attention, frames, 2) + frames**2 * _linears(self._attention)[0].out_features
        )


class AdjacentMerging(Reduction):
    """A-ToMe (arXiv 2306.16009): neighbours with the most similar keys become their mean, after every layer but the
    last an equal share of what is to go.

    Pairs begin at even frames, so that none overlap; a frame that stands for several counts as many in a mean.

    Args:
        attention: The parts of all layers.
    """

    def __init__(self, attention: Sequence[Branch], removed: float) -> None:
        super().__init__(len(attention), removed)
        self._attention = attention

    def left(self, frames: int) -> list[int]:
        steps = max(1, self.layers - 1)
        found = [frames]
        for step in range(1, steps + 1):
            wanted = max(1, frames - round(self.removed * frames * step / steps))
            found.append(max(wanted, found[-1] - found[-1] // 2))
        return [*found, *found[-1:] * (self.layers + 1 - len(found))]

    @torch.no_grad()
    def regroup(self, layer: int, x_TD: Tensor, count: int) -> Tensor:
        frames = len(x_TD)
        (key_HTd,) = _heads(self._attention[layer + 1], x_TD, 1)
        key_TD = F.normalize(key_HTd.transpose(0, 1).flatten(1).float(), dim=-1)
        pairs = frames // 2
        alike = (key_TD[: 2 * pairs : 2] * key_TD[1 : 2 * pairs : 2]).sum(-1)
        merged = alike.topk(frames - count).indices
        begins = torch.ones(frames, dtype=torch.long, device=x_TD.device)
        begins[2 * merged + 1] = 0  # goes to the one before it
        return begins.cumsum(0) - 1

    def regroup_flops(self, frames: int) -> float:
        return _heads_flops(self._attention[0], frames, 1)


def _heads(branch: Branch, x_TD: Tensor, parts: int) -> list[Tensor]:
    """Queries and keys, or keys alone, (H, T, d)."""
    made: Any = branch
    normed_TD = made.norm(x_TD)
    projected = [
        linear(normed_TD).unflatten(-1, (made.heads, -1)) for linear in _linears(branch)[2 - parts :]
    ]
    if made.head_norms is not None:
        projected = [norm(x) for norm, x in zip(made.head_norms[2 - parts :], projected, strict=True)]
    return [x.transpose(0, 1) for x in projected]


def _heads_flops(branch: Branch, frames: int, parts: int) -> float:
    weights = sum(linear.weight.numel() for linear in _linears(branch)[2 - parts :])
    norm: Any = branch.norm
    return float(frames * (norm_cost(norm.weight.numel()) + weights))


def _linears(branch: Branch) -> Sequence[Any]:
    """Of queries and keys."""
    return branch.linears[:2]
