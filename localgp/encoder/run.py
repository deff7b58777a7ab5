"""The encoder whose parts run where their gates say: masked or gathered, the same result.

Shape legend: B batch, S feature frames (100 per second), F mel bins, T encoder frames (25 per second), D model size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from localgp.backbones.base import Backbone, Branches, Within
from localgp.encoder.ask import asked
from localgp.encoder.frames import attend_gathered, attend_masked, run_gathered
from localgp.encoder.keys import attend_felt
from localgp.encoder.reduce import Shortening
from localgp.encoder.shown import only, shown_by
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates, fills
from localgp.gates.reduce import Reduction
from localgp.kernels.fill import fill
from localgp.kernels.plan import only_per_utterance
from localgp.kernels.ragged import Ragged, listed, nonzero
from localgp.pruning import check_gated

LAST = -1  # the state after all layers and the last norm
States = Mapping[int, Tensor]


class EncoderOutput(NamedTuple):
    """Padded encoder outputs, with the gates that made them.

    Attributes:
        x: (B, T, D).
        lengths: (B,) encoder frames.
        gates: Per layer, module name to `Gate`; empty without gates.
        front: (B, T, D), the stem's output, for a decoder's gates.
        states: (B, T, D) by layer, those that were to be kept: 1 after the first layer, `LAST` for ``x``.
        places: (B, T) of the first layer: where each frame is in ``x``, -1 for one that has gone, -2 for none; None
            where all are where they were.
        shown: (B, T), 1 for frames that the decoder is shown (`localgp.encoder.shown`); None for all.
    """

    x: Tensor
    lengths: Tensor
    gates: list[Gates]
    front: Tensor | None = None
    states: States = MappingProxyType({})
    places: Tensor | None = None
    shown: Tensor | None = None

    def showing(self, source: str) -> EncoderOutput:
        """With ``all`` frames shown to the decoder, or those ``kept``."""
        if source == "all" or not self.gates:
            return self
        return self._replace(shown=shown_by(self.gates, self.own()))

    def memory(self) -> tuple[Tensor, Tensor]:
        """What decoder and CTC are given, (B, K, D), and its lengths (B,)."""
        return (self.x, self.lengths) if self.shown is None else only(self.x, self.shown)

    def memory_of(self, row: int) -> Tensor:
        """Of one utterance, (K, D)."""
        memory_BTD, lengths_B = self.memory()
        return memory_BTD[row, : int(lengths_B[row])]

    def own(self) -> Tensor:
        """(B, T), True for the utterance's own frames."""
        frames_T = torch.arange(self.x.shape[1], device=self.x.device)
        return frames_T < self.lengths.unsqueeze(1)

    def began(self) -> Tensor:
        """The same before any had gone."""
        return self.own() if self.places is None else self.places > -2


class Masked:
    """Runs the parts of a layer on every frame and multiplies by their gates: closed gates get a gradient.

    Args:
        gates: Of the layer.
        own_BT1: 1 for an utterance's own frames, 0 behind its end; None where all are its own.
        forget: Forget what happens inside of a part, and compute it again when its gradient is wanted; with the same
            random numbers. Costs time and saves memory.
        parts: Of the layer, where a gate of self-attention is to get a gradient for its frame as a key, too
            (`localgp.encoder.keys`); None where for its own output alone.
        whole: Where there are no gates every frame sees all others, so that attention is given no mask.
        filled: Frames that skip a part get its output for the frame before (`localgp.kernels.fill`).
    """

    def __init__(
        self,
        gates: Gates,
        own_BT1: Tensor | None = None,
        *,
        forget: bool = False,
        parts: Branches | None = None,
        whole: bool = False,
        filled: bool = False,
    ) -> None:
        self.gates, self._own, self._forget, self._parts = gates, own_BT1, forget, parts
        self._whole_windows, self._filled = whole, filled

    def kept(self, part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The part as it is to be called."""
        if not self._forget:
            return part

        def run(*given: Tensor | None) -> Any:
            return checkpoint(part, *given, use_reentrant=False)

        return run

    def frames(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor, scale: float = 1.0) -> Tensor:
        """See `localgp.backbones.base.Runner`, as for the others."""
        if name in self.gates:
            return self._gated(name, self.kept(part), x, scale)
        output = self.kept(part)(x)
        return output if scale == 1.0 else scale * output

    def attention(
        self, name: str, part: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        if name not in self.gates:
            return self.kept(part)(x, None if self._whole_windows else mask)
        gate = self.gates[name].value
        if self._parts is not None and torch.is_grad_enabled():
            attended = self.kept(partial(attend_felt, self._parts[name]))(x, mask, gate)
            return self._closed(attended, gate)
        return self._attended(name, self.kept(part), x, mask)

    def utterance(self, name: str, part: Callable[[Tensor, Within], Tensor], x: Tensor) -> Tensor:
        def within_own(x: Tensor, own: Tensor | None) -> Tensor:
            return part(x, partial(_within, own))

        if name not in self.gates:
            return self.kept(within_own)(x, self._own)
        if self.gates[name].value.shape[1] != 1:
            raise ConfigError(only_per_utterance(name))
        return self._whole(name, self.kept(within_own), x)

    def within(self, x: Tensor) -> Tensor:
        return _within(self._own, x)

    def _gated(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor, scale: float) -> Tensor:
        return scale * self._closed(part(x), self.gates[name].value)

    def _attended(
        self, name: str, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        gate = self.gates[name].value
        return self._closed(attend_masked(part, x, gate, mask), gate)

    def _closed(self, y: Tensor, gate: Tensor) -> Tensor:
        """A part's output with what it is where the gate is closed."""
        return fill(y, gate) if self._fills(gate) else y * gate.unsqueeze(-1)

    def _fills(self, gate: Tensor) -> bool:
        """A decision for a whole utterance leaves it no frame that runs."""
        return self._filled and gate.shape[1] > 1

    def _whole(self, name: str, part: Callable[..., Tensor], x: Tensor) -> Tensor:
        return part(x, self._own) * self.gates[name].value.unsqueeze(-1)


class Gathered(Masked):
    """Runs the parts of a layer where their gates are open, and nowhere else (paper, Equation 4)."""

    @cached_property
    def _counts(self) -> dict[str, list[int]]:
        """How many frames of each utterance have their gate open, by part; the layer's one wait for a GPU."""
        opened = [(gate.value.detach() > 0.5).sum(1) for gate in self.gates.values()]
        return dict(zip(self.gates, torch.stack(opened).tolist(), strict=True))

    def _gated(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor, scale: float) -> Tensor:
        gate = self.gates[name].value
        return self._around(run_gathered(part, x, self._asked(gate), scale, self._counts[name]), gate)

    def _attended(
        self, name: str, part: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        gate = self.gates[name].value
        return self._around(attend_gathered(part, x, self._asked(gate), mask, self._counts[name]), gate)

    def _asked(self, gate: Tensor) -> Tensor:
        """The gate that a gathered part is given: where neighbours' outputs are filled in, these are what it weighs."""
        return gate.detach() if self._fills(gate) else gate

    def _around(self, y: Tensor, gate: Tensor) -> Tensor:
        if not self._fills(gate):
            return y
        return fill(y, gate.where(gate.detach() > 0.5, gate.detach()))

    def _whole(self, name: str, part: Callable[..., Tensor], x: Tensor) -> Tensor:
        gate = self.gates[name].value
        index = nonzero((gate.detach() > 0.5).squeeze(1), sum(self._counts[name])).squeeze(1)
        own = None if self._own is None else self._own.index_select(0, index)
        kept = part(x.index_select(0, index), own) * gate.index_select(0, index).unsqueeze(-1)
        return torch.zeros_like(x, dtype=kept.dtype).index_copy(0, index, kept)


def _within(own_BT1: Tensor | None, x_BTC: Tensor) -> Tensor:
    return x_BTC if own_BT1 is None else x_BTC * own_BT1.to(x_BTC.dtype)


def _mask(layout: Ragged) -> Tensor:
    counts_B = listed(layout.lengths, layout.device)
    return (torch.arange(layout.longest, device=layout.device) < counts_B.unsqueeze(1)).unsqueeze(1)


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
    ragged: bool = False,
    whole: bool = False,
    keep: Collection[int] = (),
    keys_felt: bool = False,
    primers: Sequence[list[int]] | None = None,
) -> EncoderOutput:
    """Encodes normalised features, asking ``policy`` at every layer what to run.

    For inference, `localgp.encoder.packed` does it without work on padding.

    Args:
        feats_BSF: Normalised log-mel features.
        lengths_B: Feature frames of each utterance.
        policy: A gate policy (`localgp.gates`), or None for the dense encoder.
        contexts: What the policy needs besides ``front`` and ``energy``, which are computed here;
            (B, T', C) aligned to T here by repeating the last frame or trimming.
        path: ``masked`` or ``gathered``, the same result; another is a `ConfigError`.
        forget: See `Masked`.
        ragged: Utterances have different lengths, and each is encoded as if it were alone.
        whole: All fill the batch. A GPU's attention is faster without a mask; a CPU's is left as it is.
        keep: Layers whose states are wanted; see `EncoderOutput`.
        keys_felt: On the masked path, let gates of self-attention feel what their frames are worth to others.
        primers: See `Backbone.told`.
    """
    if path not in PATHS:
        raise ConfigError(f"path is {path!r}; valid: {', '.join(PATHS)}")
    backbone = backbone.told(primers, len(feats_BSF))
    x_BTD, front_BTD, mask_B1T = backbone.front(feats_BSF, lengths_B)
    own_BT1 = mask_B1T.transpose(1, 2) if ragged else None
    decide = None
    if policy is not None:
        lengths = lengths_B.tolist() if ragged else None
        decide = asked(policy, contexts or {}, front_BTD, feats_BSF, backbone.timeline, lengths)
    valid, filled = backbone.part_names("encoder"), fills(policy)
    record: list[Gates] = []
    states = {}
    shorten, layout = None, Ragged([])
    if isinstance(policy, Reduction):
        layout = Ragged(mask_B1T.squeeze(1).sum(1).tolist(), x_BTD.device)
        shorten = Shortening(policy, layout)
    whole = whole and x_BTD.is_cuda and shorten is None
    for index in range(backbone.shape.encoder_layers):
        gates = decide(index, x_BTD) if decide is not None else {}
        check_gated(gates, valid)
        parts = backbone.branches("encoder", index) if keys_felt and path == "masked" else None
        run = PATHS[path](gates, own_BT1, forget=forget, parts=parts, whole=whole, filled=filled)
        x_BTD = backbone.encoder_layer(index, x_BTD, mask_B1T, run)
        record.append(gates)
        if index + 1 in keep:
            states[index + 1] = x_BTD
        if shorten is not None:
            x_ND, layout = shorten(index, layout.pack(x_BTD), layout)
            x_BTD, mask_B1T = layout.unpack(x_ND), _mask(layout)
            own_BT1 = None if layout.equal else mask_B1T.transpose(1, 2)
    x_BTD = backbone.encoder_norm(x_BTD)
    if LAST in keep:
        states[LAST] = x_BTD
    lengths_B = mask_B1T.squeeze(1).sum(1)
    places = None if shorten is None else shorten.places()
    return EncoderOutput(x_BTD, lengths_B, record if any(record) else [], front_BTD, states, places)
