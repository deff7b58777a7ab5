"""Seconds of a training step of the encoder: random frames gathered against dense, paired in one run.

A step is the encoder's forward and backward pass. What follows (decoder, losses, optimizer) is the same for both and
left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from localgp.encoder.run import encode
from localgp.evaluation.flops import EncoderCost
from localgp.evaluation.timing import paired, peak_mib
from localgp.evaluation.timing_encoder import (
    MODULES,
    against_dense,
    describe,
    feature_frames,
    make_row,
    saved_share,
    timed,
)
from localgp.gates import RandomGates


def bench_training(
    encoder: Any,
    *,
    backbone: str,
    seconds: float = 30.0,
    bins: int = 80,
    batches: tuple[int, ...] = (1,),
    skipped: tuple[float, ...] = (0.3,),
    repeats: int = 5,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times forward and backward passes.

    Args:
        encoder: ESPnet's; trained through the kernels it has (`localgp.model.use_fast_kernels`).
        backbone: Name for the rows.
        seconds: Of an utterance.
        bins: Mel bins of its input.
        batches: Numbers of utterances.
        skipped: Shares of frames that random gates skip in every gated module.
        repeats: Alternating rounds.
        seed: Of the features.
        progress: Called with a line after each row.

    Returns:
        Rows with ``time_ratio_vs_dense`` and ``flop_ratio`` against the dense step.
    """
    device = next(encoder.parameters()).device
    frames = feature_frames(seconds)
    cost = EncoderCost.of(encoder, frames, bins)
    generator = torch.Generator().manual_seed(seed)
    feats_BSF = torch.randn(max(batches), frames, bins, generator=generator).to(device)
    was_training = encoder.training
    rows = []

    def step(batch: int, policy: Any) -> Callable[[], None]:
        def run() -> None:
            lengths = torch.full((batch,), frames, device=device)
            encode(encoder, feats_BSF[:batch], lengths, policy, path="gathered").x.square().mean().backward()
            encoder.zero_grad(set_to_none=True)

        return run

    encoder.train()
    try:
        for batch in batches:
            for share in skipped:
                gated = step(batch, RandomGates(MODULES, share, seed).train())
                dense = step(batch, None)
                times = paired({"gathered": gated, "dense": dense}, repeats, device)
                kept = dict.fromkeys(MODULES, float(cost.frames - round(share * cost.frames)))
                flops = cost.encoder(frames, [kept] * cost.layers) / cost.encoder(frames)
                row = make_row("training", backbone, "fp32", [seconds] * batch, seconds)
                row |= timed(times, "gathered", "dense") | {"skipped": share}
                row |= against_dense(times.ratio("gathered", "dense"), flops)
                row |= saved_share(row)
                row["peak_mib"], row["dense_peak_mib"] = peak_mib(gated, device), peak_mib(dense, device)
                rows.append(row)
                progress(describe(row))
    finally:
        encoder.train(was_training)
    return rows
