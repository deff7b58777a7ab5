"""fvcore's own count on the real modules, which `localgp.backbones.cost` has as a formula."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from localgp.backbones.base import Backbone
from localgp.encoder.run import encode
from localgp.gates.base import GatePolicy


class _Encoder(nn.Module):
    """What fvcore traces: features to encoder output, gathered."""

    def __init__(self, backbone: Backbone, policy: GatePolicy | None) -> None:
        super().__init__()
        self.backbone, self.net, self.policy = backbone, backbone.net, policy

    def forward(self, feats_BSF: Tensor) -> Tensor:
        lengths = torch.full((feats_BSF.shape[0],), feats_BSF.shape[1], device=feats_BSF.device)
        return encode(self.backbone, feats_BSF, lengths, self.policy, path="gathered").x


@torch.no_grad()
def count_with_fvcore(backbone: Backbone, feature_frames: int, policy: GatePolicy | None = None) -> float:
    """FLOPs of one utterance, by ``fvcore.nn.FlopCountAnalysis``."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    feats = torch.zeros(1, feature_frames, backbone.shape.mels, device=backbone.device)
    analysis = FlopCountAnalysis(_Encoder(backbone, policy).eval(), feats)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return float(analysis.total())
