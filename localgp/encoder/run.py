"""An ESPnet E-Branchformer encoder whose modules run where their gates say.

The encoder's own modules do the work; nothing of it is copied or subclassed, so with every gate open (or without
gates) the result is ESPnet's. Per layer, FFN1 (the macaron one), self-attention, cgMLP and FFN2 can have a
gate; the merge and the norms see every frame.

Shape legend: B batch, S feature frames (100 per second), F mel bins, T encoder frames (25 per second), D model
size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from localgp.backbones.owsm.positions import add_positions
from localgp.encoder.align import collect_contexts
from localgp.encoder.frames import attend_gathered, attend_masked, run_gathered, run_masked
from localgp.errors import BackboneError, ConfigError
from localgp.gates.gumbel import Gate
from localgp.pruning.options import check_gated


class EncoderOutput(NamedTuple):
    """Attributes:
    x: (B, T, D).
    lengths: (B,) encoder frames.
    gates: Per layer, module name to `Gate`; empty without gates.
    front: (B, T, D), the subsampling's output, for a decoder's gates.
    """

    x: Tensor
    lengths: Tensor
    gates: list[dict[str, Gate]]
    front: Tensor | None = None


def subsample(encoder: Any, feats_BSF: Tensor, mask_B1S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ESPnet's Conv2dSubsampling, with its output before the positions beside the one after.

    Returns:
        x (B, T, D) with scale and positions; front (B, T, D), the paper's context "front"; mask (B, 1, T).
    """
    embed = encoder.embed
    conv_BCTF = embed.conv(feats_BSF.unsqueeze(1))
    batch, channels, frames, bins = conv_BCTF.shape
    linear, positions = embed.out[0], embed.out[1]
    front_BTD = linear(conv_BCTF.transpose(1, 2).reshape(batch, frames, channels * bins))
    return add_positions(positions, front_BTD), front_BTD, mask_B1S[:, :, :-2:2][:, :, :-2:2]


def check_supported(encoder: Any) -> None:
    """Raises:
    BackboneError: If the encoder is not of the kind that is run here, gated or dense.
    """
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet.nets.pytorch_backend.transformer.subsampling import Conv2dSubsampling
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    problems = []
    if not isinstance(encoder, EBranchformerEncoder):
        problems.append(
            f"encoder is {type(encoder).__name__}, supported: EBranchformerEncoder (e_branchformer)"
        )
    else:
        if not isinstance(encoder.embed, Conv2dSubsampling):
            problems.append(f"input_layer is {type(encoder.embed).__name__}, supported: conv2d")
        layer = encoder.encoders[0]
        if type(layer.attn) is not MultiHeadedAttention:
            problems.append(f"attention is {type(layer.attn).__name__}, supported: selfattn with abs_pos")
        if layer.feed_forward is None or layer.feed_forward_macaron is None:
            problems.append("layers lack FFNs, supported: use_ffn: true and macaron_ffn: true")
    if problems:
        raise BackboneError(
            "this backbone is not supported: " + "; ".join(problems) + ". Use an OWSM-v3.1 model."
        )


class _Runner:
    """How gated modules are run on a batch: masked or gathered."""

    def __init__(self, path: str) -> None:
        if path not in ("masked", "gathered"):
            raise ConfigError(f"pruning.path is {path!r}; valid: masked, gathered, packed")
        self._frames = run_masked if path == "masked" else run_gathered
        self._attention = attend_masked if path == "masked" else attend_gathered

    def frames(
        self, module: Callable[[Tensor], Tensor], x: Tensor, gate: Gate | None, scale: float
    ) -> Tensor:
        return scale * module(x) if gate is None else self._frames(module, x, gate.value, scale)

    def attention(
        self, module: Callable[[Tensor, Tensor], Tensor], x: Tensor, gate: Gate | None, mask: Tensor
    ) -> Tensor:
        return module(x, mask) if gate is None else self._attention(module, x, gate.value, mask)

    def utterance(self, module: Callable[[Tensor], Tensor], x: Tensor, gate: Gate | None) -> Tensor:
        """A module that sees its neighbours and so runs on all frames of an utterance or on none."""
        if gate is None:
            return module(x)
        if gate.value.shape[1] != 1:
            raise ConfigError(
                "cgmlp can only be gated per utterance (its convolution needs neighbouring frames)"
            )
        if self._frames is run_masked:
            return module(x) * gate.value.unsqueeze(-1)
        index = gate.mask.squeeze(1).nonzero().squeeze(1)
        kept = module(x.index_select(0, index)) * gate.value.index_select(0, index).unsqueeze(-1)
        return torch.zeros_like(x, dtype=kept.dtype).index_copy(0, index, kept)


def run_layer(layer: Any, x_BTD: Tensor, mask_B1T: Tensor, gates: dict[str, Gate], runner: _Runner) -> Tensor:
    """One E-Branchformer layer (ESPnet's EBranchformerEncoderLayer) with its gates.

    x ─ +0.5 FFN1 ─┬─ attention ─┐
                   └─ cgMLP ─────┴ merge ─ + ─ +0.5 FFN2 ─ norm
    """
    drop = layer.dropout

    def feed_forward(ffn: nn.Module, norm: nn.Module, frames: Tensor) -> Tensor:
        return drop(ffn(norm(frames)))

    def attend(frames: Tensor, mask: Tensor) -> Tensor:
        normed = layer.norm_mha(frames)
        return drop(layer.attn(normed, normed, normed, mask))

    def convolve(frames: Tensor) -> Tensor:
        return drop(layer.cgmlp(layer.norm_mlp(frames), None))

    ffn1 = partial(feed_forward, layer.feed_forward_macaron, layer.norm_ff_macaron)
    ffn2 = partial(feed_forward, layer.feed_forward, layer.norm_ff)
    x_BTD = x_BTD + runner.frames(ffn1, x_BTD, gates.get("ffn1"), layer.ff_scale)
    attended = runner.attention(attend, x_BTD, gates.get("attention"), mask_B1T)
    convolved = runner.utterance(convolve, x_BTD, gates.get("cgmlp"))
    both = torch.cat([attended, convolved], dim=-1)
    fused = layer.depthwise_conv_fusion(both.transpose(1, 2)).transpose(1, 2)
    x_BTD = x_BTD + drop(layer.merge_proj(both + fused))
    x_BTD = x_BTD + runner.frames(ffn2, x_BTD, gates.get("ffn2"), layer.ff_scale)
    return layer.norm_final(x_BTD)


def encode(
    encoder: Any,
    feats_BSF: Tensor,
    lengths_B: Tensor,
    policy: Any = None,
    contexts: dict[str, Tensor] | None = None,
    *,
    path: str = "masked",
) -> EncoderOutput:
    """Encodes normalised features, asking ``policy`` at every layer what to run.

    Args:
        encoder: ESPnet's EBranchformerEncoder.
        feats_BSF: Normalised log-mel features.
        lengths_B: Feature frames of each utterance.
        policy: A gate policy (`localgp.gates`), or None for the dense encoder.
        contexts: What the policy needs besides ``front`` and ``energy``, which are computed here;
            (B, T', C) aligned to T here by repeating the last frame or trimming.
        path: ``masked`` or ``gathered``, the same result; or, for inference, ``packed``: no work on padding, and
            each utterance as if it were alone (`localgp.encoder.packed`). Where all utterances have the length
            of ``feats_BSF`` the three are the same.
    """
    if path == "packed":
        from localgp.encoder.packed import encode_packed

        return EncoderOutput(*encode_packed(encoder, feats_BSF, lengths_B, policy, contexts))
    runner = _Runner(path)
    mask_B1S = (torch.arange(feats_BSF.shape[1], device=feats_BSF.device) < lengths_B.unsqueeze(1)).unsqueeze(
        1
    )
    x_BTD, front_BTD, mask_B1T = subsample(encoder, feats_BSF, mask_B1S)
    state = None
    if policy is not None:
        state = policy.begin(collect_contexts(policy.needs, contexts or {}, front_BTD, feats_BSF))
    record: list[dict[str, Gate]] = []
    for index, layer in enumerate(encoder.encoders):
        gates = policy.gate(index, x_BTD, state) if policy is not None else {}
        check_gated(gates)
        x_BTD = run_layer(layer, x_BTD, mask_B1T, gates, runner)
        record.append(gates)
    x_BTD = encoder.after_norm(x_BTD)
    gates_of_layers = record if policy is not None else []
    return EncoderOutput(x_BTD, mask_B1T.squeeze(1).sum(1), gates_of_layers, front_BTD)
