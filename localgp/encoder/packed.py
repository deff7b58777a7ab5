"""The encoder as one packed sequence: no work on padding or on skipped frames; for inference.

The utterances of a batch lie one behind the other in a (N, D) tensor, and each is encoded as if it were alone.
(ESPnet's convolutions look beyond an utterance's end into its padding, so there a result depends on the batch; where
all lengths are equal, as OWSM's are, the two are the same thing.) Weights are laid out once per encoder and type: see
`packed_encoder`.

Shape legend: B utterances, S feature frames, F mel bins, T frames of the longest utterance, N frames of all
utterances, K kept frames, M gated modules, D model size, H heads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import record_function

from localgp.backbones.owsm.positions import add_positions
from localgp.encoder.align import collect_contexts
from localgp.encoder.packed_layer import LayerPlan, Norm, PackedLayer
from localgp.errors import ConfigError
from localgp.gates.folded import FoldedLocalGates
from localgp.gates.gumbel import Gate
from localgp.gates.local import LocalGates
from localgp.kernels.ragged import RANGE, Ragged
from localgp.kernels.subsampling import PackedSubsampling, output_frames
from localgp.pruning.options import check_gated


class PackedOutput(NamedTuple):
    """Attributes:
    x: (N, D).
    front: (N, D), the subsampling's output.
    layout: Of ``x``.
    gates: Per layer, module name to where it ran, bool: (N,), or (B,) for a decision per utterance.
    """

    x: Tensor
    front: Tensor
    layout: Ragged
    gates: list[dict[str, Tensor]]


class PackedEncoder:
    """An E-Branchformer with its weights laid out for inference.

    Args:
        encoder: ESPnet's EBranchformerEncoder of a kind that `check_supported` accepts. Its weights are read
            now; it is not kept.
        dtype: Of the products; residual stream and norms are fp32.
    """

    def __init__(self, encoder: Any, dtype: torch.dtype = torch.float32) -> None:
        from localgp.encoder.run import check_supported

        check_supported(encoder)
        self.dtype = dtype
        self._subsampling = PackedSubsampling(encoder.embed, dtype)
        self._positions = encoder.embed.out[1]
        self._layers = [PackedLayer(layer, dtype) for layer in encoder.encoders]
        self._after_norm = Norm(encoder.after_norm, torch.float32)

    @torch.no_grad()
    def __call__(
        self,
        feats_BSF: Tensor,
        lengths: list[int],
        policy: Any = None,
        contexts: dict[str, Tensor] | None = None,
    ) -> PackedOutput:
        """See `localgp.encoder.run.encode`.

        Inside a function given to `torch.compile` it runs as it is: Inductor lays weights out itself and takes none
        that are.
        """
        if torch.compiler.is_compiling():
            eager: PackedOutput = torch.compiler.disable(self._encode)(feats_BSF, lengths, policy, contexts)
            return eager
        return self._encode(feats_BSF, lengths, policy, contexts)

    def _encode(
        self, feats_BSF: Tensor, lengths: list[int], policy: Any, contexts: dict[str, Tensor] | None
    ) -> PackedOutput:
        with torch.autocast(feats_BSF.device.type, enabled=False):
            with record_function(f"{RANGE}subsampling"):
                front_ND, layout = self._subsampling(feats_BSF.float(), lengths)
            front_ND = front_ND.float()
            decide = _decider(policy, contexts or {}, front_ND, feats_BSF, lengths, layout)
            parts = [
                add_positions(self._positions, batch).flatten(0, 1) for batch in layout.batches(front_ND)
            ]
            x_ND = parts[0] if len(parts) == 1 else torch.cat(parts)
            record = []
            for index, layer in enumerate(self._layers):
                with record_function(f"{RANGE}gates"):
                    gates = decide(index, x_ND) if decide is not None else {}
                    plan = LayerPlan(gates, layout)
                x_ND = layer(x_ND, layout, plan)
                record.append(gates)
            return PackedOutput(
                self._after_norm(x_ND), front_ND, layout, record if policy is not None else []
            )


def encode_packed(
    encoder: Any, feats_BSF: Tensor, lengths_B: Tensor, policy: Any, contexts: dict[str, Tensor] | None
) -> tuple[Tensor, Tensor, list[dict[str, Gate]], Tensor]:
    """`PackedEncoder` behind the batch interface of `localgp.encoder.run.encode`.

    Raises:
        ConfigError: In training, or for an utterance that is too short for a frame.
    """
    if encoder.training or (policy is not None and policy.training):
        raise ConfigError(
            "path 'packed' is for inference, but the encoder or its gates are in training mode; "
            "call .eval(), or train with path 'masked' or 'gathered'"
        )
    lengths = [int(n) for n in lengths_B.tolist()]
    if lengths and output_frames(min(lengths)) < 1:
        raise ConfigError(f"an utterance has {min(lengths)} feature frames; valid: 7 or more")
    device = feats_BSF.device.type
    dtype = next(encoder.parameters()).dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    output = packed_encoder(encoder, dtype)(feats_BSF, lengths, policy, contexts)
    layout = output.layout
    gates: list[dict[str, Gate]] = []
    for layer in output.gates:
        gates.append({})
        for name, open_ in layer.items():
            value = open_.to(output.x.dtype)
            value = value.unsqueeze(1) if len(value) == len(lengths) != layout.total else layout.unpack(value)
            gates[-1][name] = Gate(value, value)
    frames_B = torch.tensor(layout.lengths, device=feats_BSF.device)
    return layout.unpack(output.x), frames_B, gates, layout.unpack(output.front)


_prepared: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[Any, Any]]] = weakref.WeakKeyDictionary()


def packed_encoder(encoder: nn.Module, dtype: torch.dtype) -> PackedEncoder:
    """The prepared encoder, made anew only where its weights have changed since the last call."""
    return _prepare(encoder, dtype, lambda: PackedEncoder(encoder, dtype))


def release(*modules: nn.Module) -> None:
    """Drops what is prepared for these encoders and policies, a copy of their weights; the next call makes it anew."""
    for module in modules:
        _prepared.pop(module, None)


def _mark_updated(optimizer: Optimizer, *_: Any) -> None:
    """Fused steps, and those of other libraries, change parameters without PyTorch's counting it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                increment_version(parameter)


register_optimizer_step_post_hook(_mark_updated)


def _prepare(module: nn.Module, key: Any, make: Callable[[], Any]) -> Any:
    state = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters()]
    kept = _prepared.setdefault(module, {})
    if key not in kept or kept[key][0] != state:
        kept[key] = (state, make())
    return kept[key][1]


def _decider(
    policy: Any,
    contexts: dict[str, Tensor],
    front_ND: Tensor,
    feats_BSF: Tensor,
    lengths: list[int],
    layout: Ragged,
) -> Callable[[int, Tensor], dict[str, Tensor]] | None:
    """A function of layer and its input (N, D) that says where the modules run."""
    if policy is None:
        return None
    if layout.equal:
        parts = [(slice(0, len(lengths)), slice(0, layout.total))]
    else:
        parts = [(slice(b, b + 1), segment) for b, segment in enumerate(layout.segments())]
    collected = [
        collect_contexts(
            policy.needs,
            {name: value[rows] for name, value in contexts.items()},
            front_ND[frames].unflatten(0, (rows.stop - rows.start, -1)),
            feats_BSF[rows, : max(lengths[rows])],
        )
        for rows, frames in parts
    ]
    if type(policy) is LocalGates:
        folded = _prepare(policy, policy.threshold, lambda: FoldedLocalGates(policy))
        packed = [_join([part[name] for part in collected], layout) for name in folded.needs]
        memory = folded.begin(packed, layout.owner_N)
        return lambda layer, x: dict(zip(folded.modules, folded.gate(layer, x, memory), strict=True))
    states = [policy.begin(part) for part in collected]

    def decide(layer: int, x_ND: Tensor) -> dict[str, Tensor]:
        found = []
        for (rows, frames), state in zip(parts, states, strict=True):
            x_BTD = x_ND[frames].unflatten(0, (rows.stop - rows.start, -1))
            found.append(policy.gate(layer, x_BTD, state))
        check_gated(found[0])
        values = {name: torch.cat([gates[name].value.flatten() for gates in found]) for name in found[0]}
        return {name: Gate(value, value).mask for name, value in values.items()}

    return decide


def _join(parts: list[Tensor], layout: Ragged) -> Tensor:
    """One context of all utterances: (B, dim) where it is the same for all frames of each, else (N, dim)."""
    if all(part.shape[1] == 1 for part in parts):
        return torch.cat([part[:, 0] for part in parts])
    return torch.cat([part.flatten(0, 1) for part in parts])
