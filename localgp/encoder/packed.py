"""The encoder as one packed sequence: no work on padding or on skipped frames; for inference.

The utterances of a batch lie one behind the other in a (N, D) tensor, and each is encoded as if it were alone.
(A third-party model's convolutions may look beyond an utterance's end into its padding, so that there a result depends
on the batch; where all lengths are equal the two are the same thing.)

Weights are laid out when a `PackedEncoder` is made, and not looked at again: it is made where a model's weights are at
rest, and dropped before they change.

Shape legend: B utterances, S feature frames, F mel bins, T frames of the longest utterance, N frames of all
utterances, M gated modules, D model size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from localgp.backbones.base import Backbone
from localgp.encoder.align import collect_contexts
from localgp.encoder.run import EncoderOutput
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates
from localgp.gates.folded import FoldedLocalGates
from localgp.gates.gumbel import Gate
from localgp.gates.local import LocalGates
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import RANGE, Ragged
from localgp.pruning import check_gated
from localgp.timeline import Timeline

Decide = Callable[[int, Tensor], dict[str, Tensor]]
"""``decide(layer, x_ND)``: module to where it runs, bool (N,), or (B,) for a decision per utterance."""


class PackedOutput(NamedTuple):
    """Attributes:
    x: (N, D).
    front: (N, D), the stem's output.
    layout: Of ``x``.
    gates: Per layer, module name to where it ran, bool: (N,), or (B,) for a decision per utterance.
    """

    x: Tensor
    front: Tensor
    layout: Ragged
    gates: list[dict[str, Tensor]]


class PackedGates:
    """A policy made ready to be asked about packed frames; LocalGP's predictors are folded now.

    Raises:
        ConfigError: A policy in training mode.
    """

    def __init__(self, policy: GatePolicy) -> None:
        _refuse_training(policy.training, "the gates are")
        self.policy = policy
        self._folded = FoldedLocalGates(policy) if type(policy) is LocalGates else None

    def begin(
        self,
        contexts: dict[str, Tensor],
        front_ND: Tensor,
        feats_BSF: Tensor,
        lengths: list[int],
        layout: Ragged,
        timeline: Timeline,
    ) -> Decide:
        """For a batch; arguments as of `PackedEncoder`."""
        if layout.equal:
            parts = [(slice(0, len(lengths)), slice(0, layout.total))]
        else:
            parts = [(slice(b, b + 1), segment) for b, segment in enumerate(layout.segments())]
        collected = [
            collect_contexts(
                self.policy.needs,
                {name: value[rows] for name, value in contexts.items()},
                front_ND[frames].unflatten(0, (rows.stop - rows.start, -1)),
                feats_BSF[rows, : max(lengths[rows])],
                timeline,
            )
            for rows, frames in parts
        ]
        if self._folded is not None:
            folded = self._folded
            packed = [_join([part[name] for part in collected], layout) for name in folded.needs]
            memory = folded.begin(packed, layout.owner_N)
            return lambda layer, x: dict(zip(folded.modules, folded.gate(layer, x, memory), strict=True))
        states = [self.policy.begin(part) for part in collected]

        def decide(layer: int, x_ND: Tensor) -> dict[str, Tensor]:
            found = []
            for (rows, frames), state in zip(parts, states, strict=True):
                x_BTD = x_ND[frames].unflatten(0, (rows.stop - rows.start, -1))
                found.append(self.policy.gate(layer, x_BTD, state))
            values = {name: torch.cat([gates[name].value.flatten() for gates in found]) for name in found[0]}
            return {name: Gate(value, value).mask for name, value in values.items()}

        return decide


class PackedEncoder:
    """A backbone's encoder laid out for inference, now.

    Args:
        dtype: Of the products; residual stream and norms are fp32.

    Raises:
        ConfigError: A backbone in training mode.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype = torch.float32) -> None:
        _refuse_training(backbone.net.training, "the encoder is")
        self.dtype, self._timeline = dtype, backbone.timeline
        self._parts = backbone.packed(dtype)
        first = backbone.branches("encoder", 0)
        self._whole = [name for name, part in first.items() if part.kind == "convolution"]
        self._valid = backbone.part_names("encoder")

    @torch.no_grad()
    def __call__(
        self,
        feats_BSF: Tensor,
        lengths: list[int],
        gates: PackedGates | None = None,
        contexts: dict[str, Tensor] | None = None,
    ) -> PackedOutput:
        """See `localgp.encoder.run.encode`.

        Inside a function given to `torch.compile` it runs as it is: Inductor lays weights out itself and takes none
        that are.
        """
        if torch.compiler.is_compiling():
            eager: PackedOutput = torch.compiler.disable(self._encode)(feats_BSF, lengths, gates, contexts)
            return eager
        return self._encode(feats_BSF, lengths, gates, contexts)

    def encode(
        self,
        feats_BSF: Tensor,
        lengths_B: Tensor,
        gates: PackedGates | None = None,
        contexts: dict[str, Tensor] | None = None,
    ) -> EncoderOutput:
        """The same with batches, as `localgp.encoder.run.encode` has them.

        Raises:
            ConfigError: An utterance that is too short for a frame.
        """
        lengths = [int(n) for n in lengths_B.tolist()]
        shortest = self._timeline.shortest
        if lengths and min(lengths) < shortest:
            raise ConfigError(f"an utterance has {min(lengths)} feature frames; valid: {shortest} or more")
        output = self(feats_BSF, lengths, gates, contexts)
        layout = output.layout
        record: list[Gates] = []
        for layer in output.gates:
            record.append({})
            for name, open_ in layer.items():
                value = open_.to(output.x.dtype)
                per_utterance = len(value) == len(lengths) != layout.total
                value = value.unsqueeze(1) if per_utterance else layout.unpack(value)
                record[-1][name] = Gate(value, value)
        frames_B = torch.tensor(layout.lengths, device=feats_BSF.device)
        return EncoderOutput(layout.unpack(output.x), frames_B, record, layout.unpack(output.front))

    def _encode(
        self,
        feats_BSF: Tensor,
        lengths: list[int],
        gates: PackedGates | None,
        contexts: dict[str, Tensor] | None,
    ) -> PackedOutput:
        parts = self._parts
        with torch.autocast(feats_BSF.device.type, enabled=False):
            with record_function(f"{RANGE}subsampling"):
                front_ND, layout = parts.stem(feats_BSF.float(), lengths)
            front_ND = front_ND.float()
            decide = None
            if gates is not None:
                decide = gates.begin(contexts or {}, front_ND, feats_BSF, lengths, layout, self._timeline)
            batches = [parts.positions(batch).flatten(0, 1) for batch in layout.batches(front_ND)]
            x_ND = batches[0] if len(batches) == 1 else torch.cat(batches)
            record = []
            for index, layer in enumerate(parts.layers):
                with record_function(f"{RANGE}gates"):
                    opened = decide(index, x_ND) if decide is not None else {}
                    check_gated(opened, self._valid)
                    plan = LayerPlan(opened, layout, self._whole)
                x_ND = layer(x_ND, layout, plan)
                record.append(opened)
            return PackedOutput(parts.end(x_ND), front_ND, layout, record if gates is not None else [])


def _refuse_training(training: bool, what: str) -> None:
    if training:
        raise ConfigError(
            f"packed encoding is for inference, but {what} in training mode; call .eval(), or train with path 'masked' "
            "or 'gathered'"
        )


def _join(parts: list[Tensor], layout: Ragged) -> Tensor:
    """One context of all utterances: (B, dim) where it is the same for all frames of each, else (N, dim)."""
    if all(part.shape[1] == 1 for part in parts):
        return torch.cat([part[:, 0] for part in parts])
    return torch.cat([part.flatten(0, 1) for part in parts])
