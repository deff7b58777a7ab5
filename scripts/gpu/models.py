"""Models, gates and inputs of known make.

Shape legend: B utterances, S feature frames, T encoder frames, D model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones import open_backbone
from localgp.backbones.base import Backbone
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import EncoderOutput
from localgp.encoder.run import encode as run_encoder
from localgp.gates import LocalGates
from localgp.gates.base import GatePolicy
from localgp.gates.control import ControlGates
from localgp.gates.gumbel import RUN, Gate

MODULES = ("ffn1", "attention", "ffn2")
WINDOW = 3001  # feature frames of 30 s


def described(name: str, weights: str = "random") -> dict[str, str]:
    path = "embedded" if name == "mini" else f"espnet/{name}"
    if name.startswith("whisper_"):
        path = f"openai/{name.replace('_', '-')}"
    return {"name": name, "path": path, "weights": weights}


def random_backbone(name: str, device: str) -> Backbone:
    """A published shape with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        backbone = open_backbone(described(name))
    backbone.net.to(device).eval()
    return backbone


def mini(device: str) -> Backbone:
    """The embedded backbone with its trained weights."""
    backbone = open_backbone(described("mini", "pretrained"))
    backbone.net.to(device).eval()
    return backbone


def encode(
    backbone: Backbone, feats_BSF: Tensor, lengths_B: Tensor, policy: Any = None, *, path: str
) -> EncoderOutput:
    """By any of the three paths, in the type that autocast says."""
    if path != "packed":
        return run_encoder(backbone, feats_BSF, lengths_B, policy, path=path)
    device = feats_BSF.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    gates = None if policy is None else PackedGates(policy)
    return PackedEncoder(backbone, dtype).encode(feats_BSF, lengths_B, gates)


def features(
    batch: int, device: str | torch.device, frames: int = WINDOW, seed: int = 0, mels: int = 80
) -> tuple[Tensor, Tensor]:
    """Noise (B, S, F), the same on every device, and its lengths."""
    generator = torch.Generator().manual_seed(seed)
    feats_BSF = torch.randn(batch, frames, mels, generator=generator)
    return feats_BSF.to(device), torch.full((batch,), frames).to(device)


def windows(backbone: Backbone, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same of a backbone's full windows, on its device."""
    frames = backbone.timeline.feature_frames(backbone.samples)
    return features(batch, backbone.device, frames, seed, backbone.shape.mels)


class FixedGates(ControlGates):
    """Decisions made beforehand: (layers, B, T) by module."""

    def __init__(self, decisions: dict[str, Tensor]) -> None:
        super().__init__(list(decisions))
        self._decisions = decisions

    def decide(self, layer: int, name: str, x_BTD: Tensor, state: Any) -> Tensor:
        return self._decisions[name][layer].to(x_BTD.device)


def local_gates(
    backbone: Backbone, feats_BSF: Tensor, lengths_B: Tensor, share: float, attention: str = "dot"
) -> LocalGates:
    """LocalGP's gates over the context ``front`` with random heads, that close ``share`` of these frames."""
    size, layers = backbone.shape.size, backbone.shape.encoder_layers
    torch.manual_seed(1)
    parts = backbone.frame_parts()
    gates = LocalGates(layers, size, parts, {"front": size}, bias=0.0, attention=attention)
    for layer in gates.layers:
        for head in layer.heads.values():  # type: ignore[union-attr, operator]
            nn.init.normal_(head.weight, std=size**-0.5)
    gates = gates.to(feats_BSF.device).eval()
    with torch.no_grad():
        run_encoder(backbone, feats_BSF, lengths_B, _Calibrating(gates, share), path="gathered")
    return gates


class _Calibrating(GatePolicy):
    """Sets the heads' biases layer by layer, each from what the layers before it let through."""

    def __init__(self, gates: LocalGates, share: float) -> None:
        super().__init__()
        self._gates, self._share = gates, share
        self.needs = gates.needs

    def begin(self, contexts: dict[str, Tensor]) -> Any:
        return self._gates.begin(contexts)

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
