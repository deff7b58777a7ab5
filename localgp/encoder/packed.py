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

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from localgp.backbones.base import Backbone
from localgp.encoder.align import collect_contexts
from localgp.encoder.reduce import Shortening
from localgp.encoder.run import EncoderOutput
from localgp.errors import ConfigError
from localgp.gates.base import GatePolicy, Gates, fills
from localgp.gates.folded import FoldedLocalGates
from localgp.gates.gumbel import Gate
from localgp.gates.local import LocalGates
from localgp.gates.reduce import Reduction
from localgp.kernels.fill import is_first
from localgp.kernels.int8 import rows_type
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import RANGE, Ragged, sent
from localgp.pruning import check_gated
from localgp.timeline import Timeline

Decide = Callable[[int, Tensor], dict[str, Tensor]]
"""``decide(layer, x_ND)``: module to where it runs, bool (N,), or (B,) for a decision per utterance."""


class PackedOutput(NamedTuple):
    """Encoder outputs without padding, with the gates that made them.

    Attributes:
        x: (N, D).
        front: (N, D), the stem's output.
        layout: Of ``x``.
        gates: Per layer, module name to where it ran, bool: (N,), or (B,) for a decision per utterance, maybe on the
            host.
        first: Layout of ``front``; that of ``x`` but where frames were taken out on the way.
    """

    x: Tensor
    front: Tensor
    layout: Ragged
    gates: list[dict[str, Tensor]]
    first: Ragged


class PackedGates:
    """A policy made ready to be asked about packed frames; LocalGP's predictors are folded now.

    Raises:
        ConfigError: A policy in training mode.
    """

    def __init__(self, policy: GatePolicy) -> None:
        _refuse_training(policy.training, "the gates are")
        self.policy = policy
        self._ahead = getattr(policy, "ahead", False)  # one of the user's own may not say
        self.fill = fills(policy)
        self._folded = FoldedLocalGates(policy) if type(policy) is LocalGates else None

    def begin(
        self,
        contexts: dict[str, Tensor],
        front_ND: Tensor,
        feats_BSF: Tensor,
        lengths: list[int],
        layout: Ragged,
        timeline: Timeline,
        layers: int,
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

        def asked(layer: int, x_ND: Tensor) -> dict[str, list[Tensor]]:
            found = []
            for (rows, frames), state in zip(parts, states, strict=True):
                x_BTD = x_ND[frames].unflatten(0, (rows.stop - rows.start, -1))
                found.append(self.policy.gate(layer, x_BTD, state))
            return {name: [gates[name].value.flatten() for gates in found] for name in found[0]}

        if self._ahead and not front_ND.is_cpu:  # in one copy, so that the host does not wait at every layer
            ahead = _on_host([asked(layer, front_ND) for layer in range(layers)])
            return lambda layer, x: _open(ahead[layer])
        return lambda layer, x: _open(asked(layer, x))


class PackedEncoder:
    """A backbone's encoder laid out for inference, now.

    Args:
        dtype: Of the products' weights; residual stream and norms are fp32.

    Raises:
        ConfigError: A backbone in training mode.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype = torch.float32) -> None:
        _refuse_training(backbone.net.training, "the encoder is")
        self.dtype, self._timeline = rows_type(dtype), backbone.timeline
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
        primers: Sequence[list[int]] | None = None,
    ) -> PackedOutput:
        """See `localgp.encoder.run.encode`.

        Inside a function given to `torch.compile` it runs as it is: Inductor lays weights out itself and takes none
        that are.
        """
        if torch.compiler.is_compiling():
            eager: PackedOutput = torch.compiler.disable(self._encode)(
                feats_BSF, lengths, gates, contexts, primers
            )
            return eager
        return self._encode(feats_BSF, lengths, gates, contexts, primers)

    def encode(
        self,
        feats_BSF: Tensor,
        lengths_B: Tensor,
        gates: PackedGates | None = None,
        contexts: dict[str, Tensor] | None = None,
        primers: Sequence[list[int]] | None = None,
    ) -> EncoderOutput:
        """The same with batches, as `localgp.encoder.run.encode` has them.

        Raises:
            ConfigError: An utterance that is too short for a frame.
        """
        lengths = [int(n) for n in lengths_B.tolist()]
        shortest = self._timeline.shortest
        if lengths and min(lengths) < shortest:
            raise ConfigError(f"an utterance has {min(lengths)} feature frames; valid: {shortest} or more")
        output = self(feats_BSF, lengths, gates, contexts, primers)
        layout = output.layout
        record = _in_batches(output.gates, layout, output.x.dtype)
        frames_B = sent(torch.tensor(layout.lengths), feats_BSF.device)
        return EncoderOutput(layout.unpack(output.x), frames_B, record, output.first.unpack(output.front))

    def _encode(
        self,
        feats_BSF: Tensor,
        lengths: list[int],
        gates: PackedGates | None,
        contexts: dict[str, Tensor] | None,
        primers: Sequence[list[int]] | None,
    ) -> PackedOutput:
        parts = self._parts
        if parts.told is not None:
            parts = parts.told(primers, len(lengths))
        with torch.autocast(feats_BSF.device.type, enabled=False):
            with record_function(f"{RANGE}subsampling"):
                front_ND, layout = parts.stem(feats_BSF.float(), lengths)
            front_ND = front_ND.float()
            decide = None
            if gates is not None:
                given = contexts or {}, front_ND, feats_BSF, lengths, layout, self._timeline
                decide = gates.begin(*given, len(parts.layers))
            batches = [parts.positions(batch).flatten(0, 1) for batch in layout.batches(front_ND)]
            x_ND = batches[0] if len(batches) == 1 else torch.cat(batches)
            record = []
            fill = gates is not None and gates.fill
            first, shorten = layout, None
            if gates is not None and isinstance(gates.policy, Reduction):
                shorten = Shortening(gates.policy, layout)
            for index, layer in enumerate(parts.layers):
                with record_function(f"{RANGE}gates"):
                    opened = decide(index, x_ND) if decide is not None else {}
                    if fill:
                        first_N = is_first(layout.frame_N)
                        opened = {
                            name: open_ if len(open_) == len(lengths) else open_ | first_N
                            for name, open_ in opened.items()
                        }
                    check_gated(opened, self._valid)
                    plan = LayerPlan(opened, layout, self._whole, self.dtype, fill=fill)
                x_ND = layer(x_ND, layout, plan)
                record.append(opened)
                if shorten is not None:
                    x_ND, layout = shorten(index, x_ND, layout)
            return PackedOutput(parts.end(x_ND), front_ND, layout, record if any(record) else [], first)


def _refuse_training(training: bool, what: str) -> None:
    if training:
        raise ConfigError(
            f"packed encoding is for inference, but {what} in training mode; call .eval(), or train with path 'masked' "
            "or 'gathered'"
        )


def _open(values: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Where each part runs, from the gates of utterances that follow each other."""
    joined = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in values.items()}
    return {name: Gate(value, value).mask for name, value in joined.items()}


def _on_host(layers: list[dict[str, list[Tensor]]]) -> list[dict[str, list[Tensor]]]:
    """The same on the host, in one copy."""
    every = [part for layer in layers for parts in layer.values() for part in parts]
    copied = iter(torch.cat(every).cpu().split([len(part) for part in every]))
    return [{name: [next(copied) for _ in parts] for name, parts in layer.items()} for layer in layers]


def _in_batches(layers: list[dict[str, Tensor]], layout: Ragged, dtype: torch.dtype) -> list[Gates]:
    """Where parts ran, all together: (B, T), or (B, 1) for a decision per utterance."""
    count = len(layout.lengths)

    def whole(open_: Tensor) -> bool:
        return len(open_) == count != layout.total

    every = [open_ for layer in layers for open_ in layer.values()]
    of_utterances = [open_ for open_ in every if whole(open_)]
    of_frames = [open_ for open_ in every if not whole(open_)]
    utterances: Iterator[Tensor] = iter(())
    frames: Iterator[Tensor] = iter(())
    if of_utterances:
        stacked_GB = torch.stack(of_utterances)
        if stacked_GB.is_cpu:  # known ahead, on the host
            stacked_GB = sent(stacked_GB, layout.device)
        utterances = iter(stacked_GB.to(dtype).unsqueeze(2).unbind(0))
    if of_frames:
        stacked_NG = torch.stack(of_frames).to(dtype).t()
        frames = iter(layout.unpack(stacked_NG).movedim(2, 0).contiguous().unbind(0))
    record: list[Gates] = []
    for layer in layers:
        values = {name: next(utterances if whole(open_) else frames) for name, open_ in layer.items()}
        record.append({name: Gate(value, value) for name, value in values.items()})
    return record


def _join(parts: list[Tensor], layout: Ragged) -> Tensor:
    """One context of all utterances: (B, dim) where it is the same for all frames of each, else (N, dim)."""
    if all(part.shape[1] == 1 for part in parts):
        return torch.cat([part[:, 0] for part in parts])
    return torch.cat([part.flatten(0, 1) for part in parts])
