"""Beam search and training on the device.

Shape legend: B utterances, N samples, T encoder frames, D model size.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu.boxed import Found
from gpu.counted import waits
from gpu.models import MODULES, encode, features, mini
from gpu.right import FP32, relative
from localgp.backbones.base import Backbone
from localgp.gates import LocalGates
from localgp.model import GatedS2T
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions

STEPS = 40
DECODER_MODULES = ("self_attention", "source_attention", "ffn")


def gated(backbone: Backbone, bias: float = 0.5) -> GatedS2T:
    """LocalGP in encoder and decoder, open for about 60 % of what comes."""
    torch.manual_seed(2)
    size = backbone.shape.size
    sides = (
        (backbone.shape.encoder_layers, MODULES, {"front": size}),
        (backbone.shape.decoder_layers, DECODER_MODULES, {"front": size}),
    )
    policies = [LocalGates(layers, size, modules, sizes, bias=bias) for layers, modules, sizes in sides]
    for policy in policies:
        for layer in policy.layers:
            for head in layer.heads.values():  # type: ignore[union-attr, operator]
                nn.init.normal_(head.weight, std=size**-0.5)
    return GatedS2T(backbone, *policies).to(backbone.device).eval()


@torch.no_grad()
def decoding(found: Found) -> None:
    """Tokens and scores of the beam search here and on the CPU, without gates and with LocalGP's."""
    backbone = mini("cpu")
    model = gated(backbone)
    lengths_B = torch.tensor([801, 400, 799, 650])
    encoded = encode(backbone, features(4, "cpu", 801)[0], lengths_B, path="packed")
    tokenizer = backbone.tokenizer
    tasks = [("deu", "deu"), ("deu", "fra"), ("fra", "fra"), ("ita", "ita")]
    prompts = [tokenizer.prompt(*task) for task in tasks]
    primers = [[*tokenizer.start, *prompt] for prompt in prompts]
    results: dict[str, dict[str, Any]] = {}
    for device in ("cpu", "cuda"):
        model.to(device)
        here = encoded._replace(x=encoded.x.to(device), lengths=encoded.lengths.to(device))
        here = here._replace(front=encoded.front.to(device))  # type: ignore[union-attr]
        owner = torch.arange(4, device=device)
        prompt_Q2 = torch.tensor([prompt[:2] for prompt in prompts], device=device)
        for dtype in (torch.float32, torch.bfloat16):
            for ctc_weight in (0.0, 0.3):
                for kind in ("dense", "gated"):
                    options = DecodeOptions(beam=5, ctc_weight=ctc_weight, maxlenratio=-STEPS)
                    search = BeamSearch(backbone, options, dtype=dtype)
                    gates = None
                    if kind == "gated":
                        gates = model.step_gates(here, owner, [f"{a}-{b}" for a, b in tasks], prompt_Q2)
                    best = [h[0] for h in search(here.x, here.lengths, primers, gates)]
                    results.setdefault(f"{kind} ctc {ctc_weight} {str(dtype)[6:]}", {})[device] = best
    for what, by_device in results.items():
        pairs = list(zip(by_device["cpu"], by_device["cuda"], strict=True))
        same = sum(one.tokens == other.tokens for one, other in pairs)
        apart = max(abs(float(one.score) - float(other.score)) for one, other in pairs)
        if what.endswith("float32"):
            found.true(f"{what}: the CPU's tokens", same == len(pairs), same=same, of=len(pairs))
            found.near(f"{what}: scores apart", apart, 1e-2)
        else:
            found.say(what, same=same, of=len(pairs), scores_apart=round(apart, 4))


def training(found: Found) -> None:
    """Three steps: dense as on the CPU; gated on both paths and in bf16, and packed afterwards."""
    losses = {device: list(_dense_losses(device)) for device in ("cpu", "cuda")}
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses["cpu"], losses["cuda"], strict=True))
    found.near("dense: losses against the CPU's, relative", apart, 1e-3)
    for path, precision in (("masked", "fp32"), ("gathered", "fp32"), ("masked", "bf16")):
        name = f"{path} {precision}"
        backbone = mini("cuda")
        backbone.use_fast_kernels()
        model = gated(backbone).train()
        module, optimizer = _module(model, path)
        inputs = features(2, "cuda", 801)
        terms, batch = [], _batch("cuda")
        with waits() as waited:
            for step in range(3):
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                    loss = module.training_step(batch, step)
                loss.backward()
                optimizer.step()
                without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
                optimizer.zero_grad()
                terms.append(loss.detach())
        terms = [float(term) for term in terms]
        found.say(
            f"{name}: a step waits", times=round(sum(waited.values()) / 3, 1), at=dict(waited.most_common(12))
        )
        found.true(f"{name}: losses are finite", all(v == v and abs(v) < 1e9 for v in terms), losses=terms)
        found.say(f"{name}: parameters without gradient", count=len(without), some=without[:4])
        model.eval()
        with torch.no_grad():
            packed, masked = (encode(backbone, *inputs, model.policy, path=p) for p in ("packed", "masked"))
        found.near(f"{name}: packed after the fused optimizer", relative(packed.x, masked.x), FP32)


def _dense_losses(device: str) -> Iterator[float]:
    backbone = mini(device)
    backbone.use_fast_kernels()
    module, optimizer = _module(GatedS2T(backbone).train(), "masked")
    for step in range(3):
        loss = module.training_step(_batch(device), step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def _module(model: GatedS2T, path: str) -> tuple[Any, Any]:
    """The training module of the configured rows, and its optimizer."""
    from hydra import compose, initialize_config_dir

    from localgp.cli import CONF_DIR
    from localgp.training.module import TrainingModule
    from localgp.training.schedule import build_optimizer

    with initialize_config_dir(str(Path(CONF_DIR).resolve()), version_base="1.3"):
        chosen = ["training.lr=0.001", "training.optimizer=adamw", "training.scheduler=constant"]
        cfg = compose("config", overrides=["conf=row10", f"pruning.path={path}", *chosen])
    module = TrainingModule(model, cfg, sample_rate=16_000)
    return module, build_optimizer(model, cfg.training, 3)["optimizer"]


def _batch(device: str) -> dict[str, Any]:
    """Two utterances, three sequences."""
    generator = torch.Generator().manual_seed(3)
    speech = torch.randn(2, 8 * 16_000, generator=generator) * 0.1
    speech[1, 80_000:] = 0.0
    text = torch.randint(400, 600, (3, 12), generator=generator)
    text[1, 9:] = -1
    batch = {
        "speech": speech,
        "speech_lengths": torch.full((2,), speech.shape[1]),
        "signal": torch.tensor([[0, 128_000], [0, 80_000]]),
        "text": text,
        "text_lengths": torch.tensor([12, 9, 12]),
        "text_ctc": text[[0, 2]],
        "text_ctc_lengths": torch.tensor([12, 12]),
        "text_prev": torch.full((3, 1), 2),
        "text_prev_lengths": torch.ones(3, dtype=torch.long),
        "utterance": torch.tensor([0, 0, 1]),
    }
    moved: dict[str, Any] = {name: value.to(device) for name, value in batch.items()}
    return moved | {"utt_ids": ["a", "b"], "tasks": ["de", "de-fr", "fr"], "contexts": {}}
