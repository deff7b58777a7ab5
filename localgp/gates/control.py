"""Gates that learn nothing: what a learnt gate has to beat (docs/decisions.md, "Controls")."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.base import Branch
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates, fills
from localgp.gates.binarised import binarised_attention_scores
from localgp.gates.gumbel import Gate


class ControlGates(GatePolicy):
    """Base of the controls: the same interface as `LocalGates`, no context, no parameters."""

    def __init__(self, modules: Sequence[str]) -> None:
        super().__init__()
        self.modules_gated = tuple(modules)

    def begin(self, contexts: dict[str, Tensor]) -> Any:
        return contexts

    @abstractmethod
    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        """1 where the module runs, (B, T) or (B, 1)."""

    def gate(self, layer: int, x_BTD: Tensor, state: Any) -> Gates:
        gates = {}
        for name in self.modules_gated:
            decision = self.decide(layer, name, x_BTD, state).to(x_BTD.dtype)
            gates[name] = Gate(decision, decision)
        return gates


class OpenGates(ControlGates):
    """Everything runs: must equal the model without gates."""

    framewise = True

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        return x_BTD.new_ones(x_BTD.shape[:2])


class RandomGates(ControlGates):
    """Every module skips its own random frames, ``round(target * T)`` of each utterance.

    Drawn anew in training. In evaluation from a fixed seed, layer and module alone, so that a score can be
    repeated and does not depend on which utterances share a batch.
    """

    def __init__(self, modules: Sequence[str], target: float, seed: int = 0) -> None:
        super().__init__(modules)
        self.target, self.seed = target, seed
        self._fixed: dict[tuple[int, int, torch.device], Tensor] = {}  # of the newest number of frames

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        batch, frames = int(x_BTD.shape[0]), int(x_BTD.shape[1])  # tensors while fvcore traces
        skipped = round(self.target * frames)
        if self.training:
            return self._skip(torch.rand(batch, frames, device=x_BTD.device), skipped)
        index = layer * len(self.modules_gated) + self.modules_gated.index(name)
        key = index, frames, x_BTD.device
        if key not in self._fixed:
            self._fixed = {k: v for k, v in self._fixed.items() if k[1:] == key[1:]}
            # Drawn on the CPU, so that they are the same on every device
            generator = torch.Generator().manual_seed(self.seed * 100_003 + index)
            noise = torch.rand(1, frames, generator=generator)
            self._fixed[key] = self._skip(noise, skipped).to(x_BTD.device)
        return self._fixed[key].expand(batch, -1)

    def _skip(self, noise_BT: Tensor, skipped: int) -> Tensor:
        if fills(self):  # of the second frames of pairs alone, as they are the ones that can go
            noise_BT[:, ::2] += 1
            skipped = min(skipped, noise_BT.shape[1] // 2)
        return _skip_first(noise_BT, skipped)


def _skip_first(keys_BT: Tensor, skipped: int) -> Tensor:
    """0 for the ``skipped`` frames of each row with the lowest keys, 1 for the others."""
    order_BT = keys_BT.argsort(dim=1)
    return torch.ones_like(keys_BT).scatter_(1, order_BT[:, :skipped], 0.0)


class EnergyGates(ControlGates):
    """Energy VAD: the quietest frames of every utterance are skipped, the same ones in every module.

    With a target the ``round(target * T)`` quietest frames go, padding first, so that the comparison with
    learnt gates is at equal sparsity.
    """

    needs = ("energy",)

    def __init__(self, modules: Sequence[str], target: float) -> None:
        super().__init__(modules)
        self.target = target

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        energy_BT = state["energy"]
        skipped = round(self.target * int(energy_BT.shape[1]))
        decision = torch.ones_like(energy_BT)
        return decision.scatter(1, energy_BT.argsort(dim=1, stable=True)[:, :skipped], 0.0)


class SimilarGates(ControlGates):
    """Of two neighbours the second is skipped where it sounds most like the first, in all modules of all layers; it is
    to be given what the first is given (``pruning.fill=pair``).

    Pairs begin at even frames, as those that A-ToMe merges, so that a skipped frame always has a neighbour that runs.
    ``round(target * T)`` frames of each utterance go, and at most all seconds, half of them.

    Args:
        target: Share of the frames that is skipped.
        size: D.
    """

    needs = ("front",)
    exact = True

    def __init__(self, modules: Sequence[str], target: float, size: int) -> None:
        super().__init__(modules)
        self.target, self._own, self._size = target, target, size

    def set_budget(self, budget: float | None) -> None:
        if budget is not None and budget < 0.5:
            raise ConfigError(
                f"decode.budget is {budget}, and of two frames one always runs; valid: 0.5 to 1"
            )
        self.target = self._own if budget is None else 1 - budget

    def begin(self, contexts: dict[str, Tensor]) -> Tensor:
        """Where everything runs, (B, T)."""
        front_BTD = contexts["front"].detach().float()
        frames = int(front_BTD.shape[1])
        pairs = frames // 2
        alike_BP = F.cosine_similarity(front_BTD[:, : 2 * pairs : 2], front_BTD[:, 1 : 2 * pairs : 2], dim=-1)
        seconds = 2 * alike_BP.topk(min(pairs, round(self.target * frames)), dim=1).indices + 1
        return alike_BP.new_ones(len(front_BTD), frames).scatter(1, seconds, 0.0)

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Tensor) -> Tensor:
        return state

    def flops(self, frames: int) -> float:
        """Of three products for each pair."""
        return 3.0 * self._size * (frames // 2)


class SpeechPruneGates(ControlGates):
    """SpeechPrune's second phase as a frame selector: the frames that a binarised first self-attention looks at
    least are skipped, the same ones in every module and layer; no training.

    Args:
        attention: The first layer's self-attention; its weights are read when they are needed, so that they are the
            fine-tuned ones.
    """

    def __init__(self, modules: Sequence[str], target: float, attention: Branch) -> None:
        super().__init__(modules)
        self.target, self._attention = target, attention

    def begin(self, contexts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: dict[str, Tensor]) -> Tensor:
        if "decision" not in state:  # the first module of the first layer: x is what that layer is given
            first: Any = self._attention
            query, key = first.linears[:2]
            with torch.no_grad():
                scores_BT = binarised_attention_scores(
                    first.norm(x_BTD), query.weight, key.weight, first.heads, log=True
                )
            skipped = round(self.target * int(x_BTD.shape[1]))
            least = scores_BT.argsort(dim=1, stable=True)[:, :skipped]
            state["decision"] = torch.ones_like(scores_BT).scatter(1, least, 0.0)
        return state["decision"]
