"""A gate policy that is asked about a batch, layer after layer.

Shape legend: B utterances, T encoder frames, D model size, S feature frames, F mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.encoder.align import collect_contexts
from localgp.gates.base import GatePolicy, Gates, fills
from localgp.gates.gumbel import Gate
from localgp.kernels.fill import is_first
from localgp.kernels.ragged import listed
from localgp.timeline import Timeline

Decide = Callable[[int, Tensor], Gates]
"""``decide(layer, x_BTD)``."""


def asked(
    policy: GatePolicy,
    contexts: Mapping[str, Tensor],
    front_BTD: Tensor,
    feats_BSF: Tensor,
    timeline: Timeline,
    lengths: list[int] | None = None,
) -> Decide:
    """Asks a policy about one layer.

    Args:
        contexts: What it needs besides what is computed here.
        lengths: Feature frames of each utterance, where they differ: none is then seen of another, and gates are closed
            behind its end.
    """
    if lengths is None:
        state = policy.begin(collect_contexts(policy.needs, contexts, front_BTD, feats_BSF, timeline))
        if fills(policy):
            return lambda layer, x_BTD: _spared(policy.gate(layer, x_BTD, state))
        return lambda layer, x_BTD: policy.gate(layer, x_BTD, state)
    decide = asked(policy, contexts, front_BTD, feats_BSF, timeline)
    if not getattr(policy, "framewise", False):  # one of the user's own may not say
        decide = _each(policy, contexts, front_BTD, feats_BSF, timeline, lengths)
    count_B1 = listed([timeline.frames(n) for n in lengths], front_BTD.device).unsqueeze(1)
    own_BT = torch.arange(front_BTD.shape[1], device=front_BTD.device) < count_B1
    return lambda layer, x_BTD: {
        name: gate if gate.value.shape[1] == 1 else Gate(gate.value * own_BT, gate.decision * own_BT)
        for name, gate in decide(layer, x_BTD).items()
    }


def _each(
    policy: GatePolicy,
    contexts: Mapping[str, Tensor],
    front_BTD: Tensor,
    feats_BSF: Tensor,
    timeline: Timeline,
    lengths: list[int],
) -> Decide:
    """Of one utterance after the other."""
    frames = [timeline.frames(n) for n in lengths]
    alone = []
    for b, (count, length) in enumerate(zip(frames, lengths, strict=True)):
        given = {name: context[b : b + 1] for name, context in contexts.items()}
        alone.append(
            asked(policy, given, front_BTD[b : b + 1, :count], feats_BSF[b : b + 1, :length], timeline)
        )

    def decide(layer: int, x_BTD: Tensor) -> Gates:
        found = [
            ask(layer, x_BTD[b : b + 1, :count])
            for b, (ask, count) in enumerate(zip(alone, frames, strict=True))
        ]
        gates = {}
        for name in found[0]:
            values, decisions = ([gates[name][i] for gates in found] for i in range(2))
            gates[name] = Gate(_stacked(values, x_BTD.shape[1]), _stacked(decisions, x_BTD.shape[1]))
        return gates

    return decide


def _spared(gates: Gates) -> Gates:
    """With those of pairs' first frames open."""
    spared = {}
    for name, gate in gates.items():
        first_T = is_first(torch.arange(gate.value.shape[1], device=gate.value.device))
        whole = gate.value.shape[1] == 1
        spared[name] = gate if whole else Gate(*(part.masked_fill(first_T, 1) for part in gate))
    return spared


def _stacked(parts: list[Tensor], frames: int) -> Tensor:
    """(B, T), or (B, 1) where all are of whole utterances."""
    if any(part.shape[1] > 1 for part in parts):
        parts = [F.pad(part, (0, frames - part.shape[1])) for part in parts]
    return torch.cat(parts)
