"""Encoder cost in the paper's convention: fvcore's counting, 1 multiply-add = 1 FLOP.

`count_with_fvcore` runs fvcore on the real modules. `EncoderCost` is the same count as a formula, term by term,
so that a model pruned on real data is counted exactly for every utterance without tracing each; the two agree
to the last digit (tests/test_flops.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from localgp.contexts import PER_UTTERANCE
from localgp.encoder.run import encode
from localgp.gates import GlobalGates, LocalGates

CONVENTION = "fvcore, 1 MAC = 1 FLOP"


def _norm(size: int) -> int:
    return 5 * size  # fvcore's figure for an affine layer norm, per element


@dataclass(frozen=True)
class EncoderCost:
    """Cost of an E-Branchformer encoder as a function of how many frames each module runs on, in FLOPs.

    Attributes:
        frames: T, encoder frames of the padded input.
        bins: Mel bins; size: D; ffn, cgmlp: hidden units; kernels in frames; layers: number of blocks.
    """

    frames: int
    bins: int
    size: int
    ffn: int
    cgmlp: int
    cgmlp_kernel: int
    merge_kernel: int
    layers: int

    @classmethod
    def of(cls, encoder: Any, feature_frames: int, bins: int) -> EncoderCost:
        """Reads the dimensions off an ESPnet encoder; ``bins`` it does not know (`mel_bins_of`)."""
        layer = encoder.encoders[0]
        return cls(
            frames=((feature_frames - 1) // 2 - 1) // 2,
            bins=bins,
            size=encoder.output_size(),
            ffn=layer.feed_forward.w_1.out_features,
            cgmlp=layer.cgmlp.channel_proj1[0].out_features,
            cgmlp_kernel=layer.cgmlp.csgu.conv.kernel_size[0],
            merge_kernel=layer.depthwise_conv_fusion.kernel_size[0],
            layers=len(encoder.encoders),
        )

    def subsampling(self, feature_frames: int) -> int:
        half_t, half_f = (feature_frames - 1) // 2, (self.bins - 1) // 2
        quarter_t, quarter_f = (half_t - 1) // 2, (half_f - 1) // 2
        first = half_t * half_f * 9 * self.size
        second = quarter_t * quarter_f * 9 * self.size**2
        return first + second + quarter_t * quarter_f * self.size**2

    def ffn_on(self, kept: float) -> float:
        """One feed-forward module with its norm on ``kept`` frames."""
        return kept * (2 * self.size * self.ffn + _norm(self.size))

    def attention_on(self, kept: float) -> float:
        """Self-attention with its norm among ``kept`` frames, which are both queries and keys."""
        return kept * (4 * self.size**2 + _norm(self.size)) + 2 * kept**2 * self.size

    def cgmlp_on(self, kept: float) -> float:
        half = self.cgmlp // 2
        linear = self.size * self.cgmlp + half * self.size
        return kept * (linear + half * self.cgmlp_kernel + _norm(half) + _norm(self.size))

    def merge(self) -> float:
        """Depthwise convolution and projection of the merge, and the layer's final norm: on every frame."""
        return self.frames * (2 * self.size * self.merge_kernel + 2 * self.size**2 + _norm(self.size))

    def module_on(self, name: str, kept: float) -> float:
        return {
            "ffn1": self.ffn_on,
            "ffn2": self.ffn_on,
            "attention": self.attention_on,
            "cgmlp": self.cgmlp_on,
        }[name](kept)

    def encoder(self, feature_frames: int, kept: list[dict[str, float]] | None = None) -> float:
        """The whole encoder without gates.

        Args:
            kept: Per layer, module to frames it runs on; a module that is not named runs on all.
        """
        total = float(self.subsampling(feature_frames)) + self.frames * _norm(self.size)
        for layer in range(self.layers):
            counts = kept[layer] if kept else {}
            total += self.merge()
            for name in ("ffn1", "attention", "cgmlp", "ffn2"):
                total += self.module_on(name, counts.get(name, self.frames))
        return total

    def local_gates(self, policy: LocalGates) -> float:
        """LocalGP: products with keys and values, heads, the values' projections (one per layer but the last),
        and for each context its alignment to D and its value's projection, once per utterance where the context
        is one vector. fvcore counts matrix products and not our element-wise form of them, so this term is by
        formula alone."""
        contexts, modules = len(policy.needs), len(policy.modules_gated)
        per_frame = sum(2 * (contexts + layer) * self.size for layer in range(self.layers))
        per_frame += self.layers * modules * 2 * self.size + (self.layers - 1) * self.size**2
        total = self.frames * per_frame
        for name, align in policy.align.items():
            frames = 1 if name in PER_UTTERANCE else self.frames
            total += frames * (sum(p.numel() for p in align.parameters() if p.ndim == 2) + self.size**2)
        return float(total)

    def gates(self, policy: Any) -> float:
        """What deciding costs: LocalGP at every frame, GlobalGP once, the controls nothing."""
        if isinstance(policy, LocalGates):
            return self.local_gates(policy)
        if isinstance(policy, GlobalGates):
            return float(global_gates(policy))
        counted = getattr(policy, "flops", None)  # of a policy of the user's own
        return float(counted(self.frames)) if callable(counted) else 0.0


def global_gates(policy: GlobalGates) -> int:
    """GlobalGP's predictor, once per utterance or sequence; averaging over time is not counted by fvcore."""
    layers: Any = policy.predictor
    norm, hidden, out = layers[0], layers[1], layers[3]
    return _norm(norm.weight.numel()) + hidden.weight.numel() + out.weight.numel()


def feature_frames_of(train_config: dict[str, Any], seconds: float) -> int:
    """Log-mel frames of an input padded to ``seconds``, from ESPnet's front-end configuration. The STFT is
    centred, so 30 s at a hop of 10 ms are 3001 frames, of which the subsampling makes 749."""
    samples = round(seconds * sample_rate_of(train_config))
    return samples // int(train_config["frontend_conf"]["hop_length"]) + 1


def sample_rate_of(train_config: dict[str, Any]) -> int:
    """Samples a second, as ESPnet's front-end configuration writes them: 16000 or ``16k``.

    Example:
        >>> sample_rate_of({"frontend_conf": {"fs": "8k"}})
        8000
    """
    rate = str((train_config.get("frontend_conf") or {}).get("fs", 16000))
    return 1000 * int(rate[:-1]) if rate.endswith("k") else int(rate)


def mel_bins_of(train_config: dict[str, Any]) -> int:
    """Mel bins of ESPnet's front end, whose default is 80."""
    return int((train_config.get("frontend_conf") or {}).get("n_mels", 80))


class _Encoder(nn.Module):
    """What fvcore traces: features to encoder output, gathered."""

    def __init__(self, encoder: Any, policy: Any) -> None:
        super().__init__()
        self.encoder, self.policy = encoder, policy

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((feats.shape[0],), feats.shape[1], device=feats.device)
        return encode(self.encoder, feats, lengths, self.policy, path="gathered").x


@torch.no_grad()
def count_with_fvcore(encoder: Any, feature_frames: int, policy: Any = None, *, bins: int) -> float:
    """FLOPs of one utterance through the real modules, by ``fvcore.nn.FlopCountAnalysis``."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    feats = torch.zeros(1, feature_frames, bins, device=next(encoder.parameters()).device)
    analysis = FlopCountAnalysis(_Encoder(encoder, policy).eval(), feats)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return float(analysis.total())
