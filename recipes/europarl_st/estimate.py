"""Memory and time of a training step, from shapes alone: nothing is allocated, no GPU is needed.

    python recipes/europarl_st/estimate.py [conf=row06] [backbone=owsm_v3.1_medium]

Counted: parameters, gradients and Adam's two moments in fp32; every tensor that autograd keeps for the backward pass
of one step, on PyTorch's meta device, with the types that bf16 autocast gives them; three times the forward FLOPs for
a step (twice the forward again for the backward). Not counted: workspace of the kernels and fragmentation, for which
1.5 GB are added. Time is FLOPs over an assumed share of a GPU's peak, and so an estimate and no measurement.

Shape legend: B utterances, S feature frames, F mel bins, L tokens.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from localgp.backbones import open_backbone
from localgp.backbones.base import Backbone
from localgp.backbones.cost import DecoderCost, EncoderCost
from localgp.build import build_decoder_policy, build_policy
from localgp.cli import CONF_DIR
from localgp.decoder.train import decode_tokens
from localgp.encoder.run import encode
from localgp.gates.cost import gates_cost
from localgp.tables import Column, render

TOKENS = 60  # of a sequence, prompt included
WORKSPACE_GIB = 1.5
BYTES_PER_PARAMETER = 16  # weight, gradient and two moments, fp32
PEAK = {"A100 or H100, 80 GB": 312e12, "RTX 4090, 24 GB": 165e12}  # bf16, dense, FLOP/s as sold (2 per MAC)
UTILISATION = 0.35  # of that peak, assumed


class _Step(nn.Module):
    """One training forward from features to loss terms, as `localgp.model` does it, for shapes."""

    def __init__(self, backbone: Backbone, cfg: Any) -> None:
        super().__init__()
        self.backbone, self.net = backbone, backbone.net
        self.policy = build_policy(cfg, backbone)
        self.decoder_policy = build_decoder_policy(cfg, backbone)

    def forward(self, feats_BSF: Tensor, tokens_BL: Tensor) -> Tensor:
        batch, frames = feats_BSF.shape[:2]
        device = feats_BSF.device
        contexts = {name: _context(self.policy, name, batch) for name in getattr(self.policy, "needs", ())}
        lengths = torch.full((batch,), frames, device=device)
        encoded = encode(self.backbone, feats_BSF, lengths, self.policy, contexts, path="masked")
        given = {
            name: _context(self.decoder_policy, name, batch)
            for name in getattr(self.decoder_policy, "needs", ())
        }
        counts = torch.full((batch,), tokens_BL.shape[1], device=device)
        policy = self.decoder_policy
        decoded = decode_tokens(self.backbone, encoded.x, encoded.lengths, tokens_BL, counts, policy, given)
        attention = decoded.logits.float().log_softmax(-1).sum()
        assert self.backbone.ctc is not None
        ctc = self.backbone.ctc(encoded.x).float().log_softmax(-1).sum()
        return attention + ctc


def _context(policy: Any, name: str, batch: int) -> Tensor:
    """A context of the size that the policy expects."""
    align = getattr(policy, "align", {})
    if name in align:
        weight = getattr(align[name], "weight", None)
        size = policy.context_value.in_features if weight is None else weight.shape[1]
    else:  # GlobalGP's contexts side by side: the share of each does not matter for memory
        size = policy.predictor[0].weight.numel() // len(policy.needs)
    return torch.empty(batch, 1, size, device="meta")


def saved_bytes(step: _Step, frames: int, batch: int) -> int:
    """What autograd keeps of one forward; a tensor that several functions keep counts once."""
    kept: dict[int, Tensor] = {}
    own = {id(p) for p in step.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept[id(base)] = base
        return tensor

    feats = torch.empty(batch, frames, 80, device="meta")
    tokens = torch.zeros(batch, TOKENS, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step(feats, tokens)
    total = sum(math.prod(t.shape) * t.element_size() for t in kept.values())
    del loss
    return total


def estimate(overrides: list[str]) -> list[list[str]]:
    """Rows: batch x accumulation, memory in GiB, and minutes per 1,000 updates on each GPU."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=["backbone=owsm_v3.1_medium", *overrides])
    with torch.device("meta"):
        backbone = open_backbone({**cfg.backbone, "weights": "random"})
        step = _Step(backbone, cfg).train()
    backbone.use_fast_kernels()
    frames = backbone.timeline.feature_frames(backbone.samples)
    parameters = sum(p.numel() for p in step.parameters())
    cost = EncoderCost(backbone, frames)
    forward = cost.encoder() + gates_cost(step.policy, cost.frames)
    decoder = DecoderCost(backbone, cost.frames)
    forward += sum(decoder.terms(TOKENS).values()) + cost.frames * cost.size * decoder.vocabulary  # and CTC
    one = saved_bytes(step, frames, 1) / 2  # bf16 autocast holds most of them in half of fp32's bytes
    rows = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        states = parameters * BYTES_PER_PARAMETER / 2**30
        memory = states + batch * one / 2**30 + WORKSPACE_GIB
        flops = 2 * 3 * forward * batch * accumulate
        minutes = [f"{1000 * flops / (peak * UTILISATION) / 60:.1f}" for peak in PEAK.values()]
        rows.append(
            [
                f"{batch} x {accumulate}",
                f"{states:.1f}",
                f"{batch * one / 2**30:.1f}",
                f"{memory:.1f}",
                *minutes,
            ]
        )
    return rows


HEADER = [
    "batch x accumulate",
    "weights and Adam",
    "activations",
    "GiB in all",
    *(f"min, {gpu}" for gpu in PEAK),
]

if __name__ == "__main__":
    print(render(estimate(sys.argv[1:]), [Column(h, i) for i, h in enumerate(HEADER)]))
