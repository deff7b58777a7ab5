"""The encoder whose parts run where their gates say: masked or gathered, the same result.

Shape legend: B batch, S feature frames (100 per second), F mel bins, T encoder frames (25 per second), D model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from localgp.backbones.base import Backbone
from localgp.encoder.align import collect_contexts
from localgp.encoder.frames import attend_gathered, attend_masked, run_gathered, run_masked
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates
from localgp.kernels.plan import only_per_utterance
from localgp.pruning import check_gated


class EncoderOutput(NamedTuple):
    """Attributes:
    x: (B, T, D).
    lengths: (B,) encoder frames.
    gates: Per layer, module name to `Gate`; empty without gates.
    front: (B, T, D), the stem's output, for a decoder's gates.
    """

    x: Tensor
    lengths: Tensor
    gates: list[Gates]
    front: Tensor | None = None


class Masked:
    """Runs the parts of a layer on every frame and multiplies by their gates: closed gates get a gradient.

    Args:
        gates: Of the layer.
        forget: Forget what happens inside of a part, and compute it again when its gradient is wanted; with the same
            random numbers. Costs time and saves memory.
    """

    def __init__(self, gates: Gates, *, forget: bool = False) -> None:
        self.gates, self._forget = gates, forget

    def kept(self, part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The part as it is to be called."""
        if not self._forget:
            return part

        def run(*given: Tensor) -> Any:
            return checkpoint(part, *given, use_reentrant=False)

        return run

    def frames(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor, scale: float = 1.0) -> Tensor:
        """See `localgp.backbones.base.Run`, as for the others."""
        if name in self.gates:
            return self._gated(self.kept(part), x, self.gates[name].value, scale)
        output = self.kept(part)(x)
        return output if scale == 1.0 else scale * output

    def attention(
        self, name: str, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        if name in self.gates:
            return self._attended(self.kept(part), x, self.gates[name].value, mask)
        return self.kept(part)(x, mask)

    def utterance(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if name not in self.gates:
            return self.kept(part)(x)
        gate = self.gates[name]
        if gate.value.shape[1] != 1:
            raise ConfigError(only_per_utterance(name))
        return self._whole(self.kept(part), x, gate.value)

    def _gated(self, part: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor, scale: float) -> Tensor:
        return run_masked(part, x, gate, scale)

    def _attended(
        self, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, gate: Tensor, mask: Tensor
    ) -> Tensor:
        return attend_masked(part, x, gate, mask)

    def _whole(self, part: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor) -> Tensor:
        return part(x) * gate.unsqueeze(-1)


class Gathered(Masked):
    """Runs the parts of a layer where their gates are open, and nowhere else (paper, Equation 4)."""

    def _gated(self, part: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor, scale: float) -> Tensor:
        return run_gathered(part, x, gate, scale)

    def _attended(
        self, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, gate: Tensor, mask: Tensor
    ) -> Tensor:
        return attend_gathered(part, x, gate, mask)

    def _whole(self, part: Callable[[Tensor], Tensor], x: Tensor, gate: Tensor) -> Tensor:
        index = (gate.detach() > 0.5).squeeze(1).nonzero().squeeze(1)
        kept = part(x.index_select(0, index)) * gate.index_select(0, index).unsqueeze(-1)
        return torch.zeros_like(x, dtype=kept.dtype).index_copy(0, index, kept)


PATHS = {"masked": Masked, "gathered": Gathered}


def encode(
    backbone: Backbone,
    feats_BSF: Tensor,
    lengths_B: Tensor,
    policy: GatePolicy | None = None,
    contexts: dict[str, Tensor] | None = None,
    *,
    path: str = "gathered",
    forget: bool = False,
) -> EncoderOutput:
    """Encodes normalised features, asking ``policy`` at every layer what to run.

    For inference, `localgp.encoder.packed` does it without work on padding.

    Args:
        feats_BSF: Normalised log-mel features.
        lengths_B: Feature frames of each utterance.
        policy: A gate policy (`localgp.gates`), or None for the dense encoder.
        contexts: What the policy needs besides ``front`` and ``energy``, which are computed here;
            (B, T', C) aligned to T here by repeating the last frame or trimming.
        path: ``masked`` or ``gathered``, the same result.
        forget: See `Masked`.
    """
    if path not in PATHS:
        raise ConfigError(f"pruning.path is {path!r}; valid: {', '.join(PATHS)}")
    x_BTD, front_BTD, mask_B1T = backbone.front(feats_BSF, lengths_B)
    state = None
    if policy is not None:
        given = collect_contexts(policy.needs, contexts or {}, front_BTD, feats_BSF, backbone.timeline)
        state = policy.begin(given)
    valid = backbone.part_names("encoder")
    record: list[Gates] = []
    for index in range(backbone.shape.encoder_layers):
        gates = policy.gate(index, x_BTD, state) if policy is not None else {}
        check_gated(gates, valid)
        x_BTD = backbone.encoder_layer(index, x_BTD, mask_B1T, PATHS[path](gates, forget=forget))
        record.append(gates)
    x_BTD = backbone.encoder_norm(x_BTD)
    return EncoderOutput(x_BTD, mask_B1T.squeeze(1).sum(1), record if policy is not None else [], front_BTD)
