"""Seconds of a training step of the encoder: random frames gathered against dense, paired in one run.

A step is the encoder's forward and backward pass. What follows (decoder, losses, optimizer) is the same for both and
left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from localgp.backbones.base import Backbone
from localgp.backbones.cost import EncoderCost
from localgp.bench.encoder import (
    against_dense,
    describe,
    make_row,
    saved_share,
    seconds_of,
)
from localgp.bench.harness import paired, peak_mib
from localgp.encoder.run import encode
from localgp.gates import RandomGates
from localgp.gates.base import GatePolicy


def bench_training(
    backbone: Backbone,
    *,
    name: str,
    seconds: float = 30.0,
    batches: tuple[int, ...] = (1,),
    skipped: tuple[float, ...] = (0.3,),
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times forward and backward passes.

    Args:
        backbone: Its encoder is trained, through the kernels it has.
        name: For the rows.
        seconds: Of an utterance.
        batches: Numbers of utterances.
        skipped: Shares of frames that random gates skip in every gated module.
        repeats: Alternating rounds.
        seed: Of the features.
        progress: Called with a line after each row.

    Returns:
        Rows with ``time_ratio_vs_dense`` and ``flop_ratio`` against the dense step.
    """
    device, net = backbone.device, backbone.net
    frames = backbone.timeline.feature_frames(round(seconds * backbone.sample_rate))
    cost = EncoderCost(backbone, frames)
    generator = torch.Generator().manual_seed(seed)
    feats_BSF = torch.randn(max(batches), frames, backbone.shape.mels, generator=generator).to(device)
    was_training = net.training
    rows = []

    def step(batch: int, policy: GatePolicy | None) -> Callable[[], None]:
        def run() -> None:
            lengths = torch.full((batch,), frames, device=device)
            encode(backbone, feats_BSF[:batch], lengths, policy).x.square().mean().backward()
            net.zero_grad(set_to_none=True)

        return run

    net.train()
    try:
        for batch in batches:
            for share in skipped:
                modules = backbone.frame_parts()
                gated = step(batch, RandomGates(modules, share, seed).train())
                dense = step(batch, None)
                times = paired({"gathered": gated, "dense": dense}, repeats, device)
                kept = dict.fromkeys(modules, float(cost.frames - round(share * cost.frames)))
                flops = cost.encoder([kept] * cost.layers) / cost.encoder()
                row = make_row("training", name, "fp32", [seconds] * batch, seconds)
                row |= seconds_of(times, "gathered", "dense") | {"skipped": share}
                row |= against_dense(times.ratio("gathered", "dense"), flops)
                row |= saved_share(row)
                row["peak_mib"], row["dense_peak_mib"] = peak_mib(gated, device), peak_mib(dense, device)
                rows.append(row)
                progress(describe(row))
    finally:
        net.train(was_training)
    return rows
