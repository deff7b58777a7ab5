"""Models, gates and inputs of known make.

Shape legend: B utterances, S feature frames, T encoder frames, D model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.owsm.model import build_encoder, load_backbone, read_train_config
from localgp.encoder.run import encode
from localgp.gates import LocalGates
from localgp.gates.control import ControlGates
from localgp.gates.gumbel import RUN, Gate

MODULES = ("ffn1", "attention", "ffn2")
WINDOW = 3001  # feature frames of 30 s


def described(name: str, weights: str = "random") -> dict[str, str]:
    return {"name": name, "path": "embedded" if name == "mini" else f"espnet/{name}", "weights": weights}


def random_encoder(name: str, device: str) -> Any:
    """A published shape with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        encoder = build_encoder(read_train_config(described(name)))
    return encoder.to(device).eval()


def mini(device: str) -> Any:
    """The embedded backbone with its trained weights."""
    backbone = load_backbone(described("mini", "pretrained"))
    backbone.model.to(device).eval()
    return backbone


def features(batch: int, device: str, frames: int = WINDOW, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise (B, S, 80), the same on every device, and its lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, 80, generator=generator).to(device), torch.full((batch,), frames).to(
        device
    )


class FixedGates(ControlGates):
    """Decisions made beforehand: (layers, B, T) by module."""

    def __init__(self, decisions: dict[str, Tensor]) -> None:
        super().__init__(list(decisions))
        self._decisions = decisions

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        return self._decisions[name][layer].to(x_BTD.device)


def local_gates(
    encoder: Any, feats_BSF: Tensor, lengths_B: Tensor, share: float, attention: str = "dot"
) -> LocalGates:
    """LocalGP's gates over the context ``front`` with random heads, that close ``share`` of these frames."""
    size = encoder.output_size()
    torch.manual_seed(1)
    gates = LocalGates(len(encoder.encoders), size, MODULES, {"front": size}, bias=0.0, attention=attention)
    for layer in gates.layers:
        for head in layer.heads.values():  # type: ignore[union-attr, operator]
            nn.init.normal_(head.weight, std=size**-0.5)
    gates = gates.to(feats_BSF.device).eval()
    with torch.no_grad():
        encode(encoder, feats_BSF, lengths_B, _Calibrating(gates, share), path="gathered")
    return gates


class _Calibrating(nn.Module):
    """Sets the heads' biases layer by layer, each from what the layers before it let through."""

    def __init__(self, gates: LocalGates, share: float) -> None:
        super().__init__()
        self._gates, self._share = gates, share
        self.needs, self.begin = gates.needs, gates.begin

    def gate(self, layer: int, x_BTD: Tensor, memory: Any) -> dict[str, Gate]:
        predictor: Any = self._gates.layers[layer]
        found = {}
        for name, logits in predictor(x_BTD, memory).items():
            lead = logits[..., RUN] - logits[..., 1 - RUN]
            least = lead.flatten().quantile(self._share)
            predictor.heads[name].bias.data[RUN] -= least
            decision = (lead > least).to(x_BTD.dtype)
            found[name] = Gate(decision, decision)
        return found
