"""Times on the device: ours and the third-party library's in turns, in bf16.

``wall_ms``: the host's clock around a run and the wait for its end. ``event_ms``: between two events on the stream.
``kernel_ms``: the kernels' times added up; what wall time has beyond it is the device waiting for the host.

Shape legend: B utterances, S feature frames, T encoder frames, D model size.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gpu.boxed import Found
from gpu.counted import count
from gpu.models import local_gates, random_backbone, windows
from gpu.whole import DECODER_MODULES
from localgp.backbones.base import Backbone
from localgp.bench.decoder import DecoderBench
from localgp.bench.harness import peak_mib
from localgp.bench.rows import settings
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode as run_encoder
from localgp.gates import LocalGates, RandomGates

BF16 = torch.bfloat16
WARM_UPS, ROUNDS = 5, 20
SHARES = (0.3, 0.5)
BATCHES = (1, 16)
BUDGET = 40.0  # seconds for one comparison; fewer rounds where a run is long


def compare(runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, dict[str, Any]]:
    """Medians of runs that alternate, every round beginning with another one, and what each does on the device."""
    for _ in range(WARM_UPS):
        for run in runs.values():
            run()
    began = time.perf_counter()
    names = list(runs)
    wall: dict[str, list[float]] = {name: [] for name in runs}
    event: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            by_wall, by_event = _milliseconds(runs[name])
            wall[name].append(by_wall)
            event[name].append(by_event)
        if time.perf_counter() - began > BUDGET:
            break
    found = {}
    for name, run in runs.items():
        against = wall[names[0]]
        found[name] = {
            "wall_ms": round(statistics.median(wall[name]), 3),
            "event_ms": round(statistics.median(event[name]), 3),
            f"of_{names[0]}": round(
                statistics.median(a / b for a, b in zip(wall[name], against, strict=True)), 4
            ),
            "rounds": len(wall[name]),
            "peak_mib": round(peak_mib(run, torch.device("cuda"))),
            **count(run),
        }
    return found


def encoders(name: str) -> Callable[[Found], None]:
    """Of full windows."""

    @torch.no_grad()
    def run(found: Found) -> None:
        backbone = random_backbone(name, "cuda")
        for batch in BATCHES:
            for what, figures in compare(encodes(backbone, *windows(backbone, batch))).items():
                found.time("encode", name, batch, what, **figures)

    return run


def encodes(backbone: Backbone, feats_BSF: Tensor, lengths_B: Tensor) -> dict[str, Callable[[], Any]]:
    """Ours dense, the third-party library's, ours with LocalGP's gates at 30 and 50 %, and with random ones, which cost
    nothing."""
    packed = PackedEncoder(backbone, BF16)
    runs = {
        "dense": _ours(packed, feats_BSF),
        backbone.library: _theirs(backbone, feats_BSF, lengths_B),
        "random 30 %": _ours(packed, feats_BSF, RandomGates(backbone.frame_parts(), 0.3).eval()),
    }
    for share in SHARES:
        policy = local_gates(backbone, feats_BSF[:4], lengths_B[:4], share)
        runs[f"local {100 * share:.0f} %"] = _ours(packed, feats_BSF, policy)
    return runs


def _ours(packed: PackedEncoder, feats_BSF: Tensor, policy: Any = None) -> Callable[[], Any]:
    lengths = [feats_BSF.shape[1]] * len(feats_BSF)
    gates = None if policy is None else PackedGates(policy)
    return lambda: packed(feats_BSF, lengths, gates)


def _theirs(backbone: Backbone, feats_BSF: Tensor, lengths_B: Tensor) -> Callable[[], Any]:
    """As the library is run in bf16: `transformers` with weights in it, ESPnet's ``Speech2Text`` by autocast."""
    if backbone.library == "transformers":
        net: Any = copy.deepcopy(backbone.net).to(BF16)
        net.set_attn_implementation("sdpa")
        feats_BFS = feats_BSF.to(BF16).transpose(1, 2)
        return lambda: net.model.encoder(feats_BFS).last_hidden_state

    def run() -> Any:
        with torch.autocast(feats_BSF.device.type, BF16):
            return backbone.reference_encoder(feats_BSF, lengths_B)

    return run


def decoder(name: str) -> Callable[[Found], None]:
    """Steps of a beam search of 5 over 749 frames: ESPnet, ours dense, and with gates closed at random."""

    def run(found: Found) -> None:
        backbone = random_backbone(name, "cuda")
        wanted = settings(
            "decoder", utterances=BATCHES, steps=20, ctc_weights=[0.0], skipped=[0.3], dtypes=["bf16"]
        )
        wanted.repeats, wanted.espnet_repeats = 5, 2
        rows = DecoderBench(backbone, name, wanted).measure()
        for row in rows:
            kept = {
                key: value
                for key, value in row.items()
                if value is not None and key not in ("measure", "backbone")
            }
            found.time("decode", name, row["utterances"], row["measure"], **kept)
        for kind, figures in _steps(backbone).items():
            found.time("step", name, 1, kind, **figures)

    return run


def _steps(backbone: Backbone) -> dict[str, dict[str, float]]:
    """Launches and waits of a step: of a search of 21 tokens less one of a single token."""
    from localgp.decoder.cached import CachedDecoder
    from localgp.decoder.gates import StepGates
    from localgp.search.beam import BeamSearch
    from localgp.search.options import DecodeOptions

    size, layers = backbone.shape.size, backbone.shape.decoder_layers
    local = LocalGates(layers, size, DECODER_MODULES, {"front": size}).cuda().eval()
    memory_BTD = torch.randn(1, 749, size, device="cuda")
    dense = CachedDecoder(backbone, dtype=BF16)
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt(tokens.languages[0], tokens.languages[0])]

    def search(steps: int, gated: bool) -> Callable[[], Any]:
        options = DecodeOptions(beam=5, maxlenratio=-steps)
        beam = BeamSearch(backbone, options, dense)
        lengths_B = torch.tensor([749], device="cuda")

        def run() -> Any:
            gates = StepGates(local, {"front": memory_BTD.mean(1, keepdim=True)}) if gated else None
            return beam(memory_BTD, lengths_B, [primer], gates)

        return run

    found = {}
    for kind, gated in (("dense", False), ("local, all open", True)):
        search(21, gated)()
        many, one = (count(search(steps, gated)) for steps in (21, 1))
        keys = ("launches", "copies", "waits", "kernel_ms")
        found[kind] = {key: round((many[key] - one[key]) / 20, 2) for key in keys} | {
            "waits_at": many["waits_at"]
        }
    return found


def training(name: str) -> Callable[[Found], None]:
    """Forward and backward pass and fused AdamW of the encoder, batch 4 of 30 s, as fine-tuning runs it."""

    def run(found: Found) -> None:
        backbone = random_backbone(name, "cuda")
        backbone.use_fast_kernels()
        feats_BSF, lengths_B = windows(backbone, 4)
        backbone.net.train()
        size, layers = backbone.shape.size, backbone.shape.encoder_layers
        parts = backbone.frame_parts()
        local = LocalGates(layers, size, parts, {"front": size}, bias=0.85).cuda().train()  # 30 % skipped
        every = [
            *backbone.net.parameters(),
            *local.parameters(),
        ]  # the decoder's have no gradient, and no part
        optimizer = torch.optim.AdamW(every, lr=1e-6, fused=True)

        def step(policy: Any, path: str) -> Callable[[], None]:
            def once() -> None:
                with torch.autocast("cuda", BF16):
                    output = run_encoder(backbone, feats_BSF, lengths_B, policy, path=path, whole=True)
                    loss = output.x.float().square().mean()
                    for gates in output.gates:
                        loss = loss + sum(gate.decision.mean() for gate in gates.values())
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            return once

        runs = {
            "dense": step(None, "masked"),
            "local masked": step(local, "masked"),
            "local gathered": step(local, "gathered"),
            "random 30 % gathered": step(RandomGates(parts, 0.3).train(), "gathered"),
        }
        for what, figures in compare(runs, 10).items():
            found.time("training", name, 4, what, **figures)

    return run


def _milliseconds(run: Callable[[], Any]) -> tuple[float, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3, begin.elapsed_time(end)
