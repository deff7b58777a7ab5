"""GFLOPs of a backbone with the gates of an experiment, without weights or data; the last line is JSON.

    python -m localgp.flops conf=row01 backbone=owsm_v3.1_medium
    python -m localgp.flops conf=row05 pruning.target=0.5

Gated rows are counted at exactly ``pruning.target``: every gated module on that share of frames (encoder) or tokens
(decoder) less, or, utterance by utterance (GlobalGP), that share of the modules less. The paper's column is the
encoder's; the decoder's figure stands apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from localgp.backbones import open_backbone
from localgp.cli import entry_point
from localgp.report.paper import TABLE_1
from localgp.tables import Column, render
from localgp.window import window_of

if TYPE_CHECKING:
    from localgp.backbones.cost import DecoderCost
    from localgp.gates.base import GatePolicy

DECODER_TOKENS = 100  # of the hypothesis for which the decoder is counted, prompt included


def count(cfg: DictConfig) -> dict:
    """Returns ``{"gflops": {...}, "terms": {...}, "decoder_terms": {...}, "paper": {...} or None}``, in GFLOPs.

    The decoder's figure is for one hypothesis of ``DECODER_TOKENS`` tokens.
    """
    import torch

    from localgp.backbones.cost import CONVENTION, DecoderCost, EncoderCost
    from localgp.build import build_decoder_policy, build_policy
    from localgp.contexts.cost import with_contexts
    from localgp.gates import GlobalGates, LayerDropGates
    from localgp.gates.cost import gates_cost
    from localgp.gates.reduce import Reduction

    with torch.device("meta"):  # shapes without memory
        backbone = open_backbone({**cfg.backbone, "weights": "random"})
        policy, decoder_policy = build_policy(cfg, backbone), build_decoder_policy(cfg, backbone)
    window = window_of(cfg)
    samples = window.longest(backbone.samples, backbone.sample_rate)
    cost = EncoderCost(backbone, backbone.timeline.feature_frames(samples))
    dense = cost.encoder()
    modules = list(cfg.pruning.encoder_modules)

    def at(share: float) -> float:
        """The encoder's modules where ``share`` is skipped."""
        if isinstance(policy, GlobalGates):  # a share of the modules, each on all frames or on none
            return dense - share * sum(cost.part(name) for name in modules)
        kept = dict.fromkeys(modules, (1 - share) * cost.frames)  # every module on a share of the frames
        return cost.encoder([kept] * cost.layers)

    pruned, gates = dense, 0.0
    if policy is not None and cfg.pruning.encoder != "open":
        pruned, gates = at(cfg.pruning.target), gates_cost(policy, cost.frames)
    if isinstance(policy, LayerDropGates):
        here = [{} if i not in policy.dropped else dict.fromkeys(modules, 0.0) for i in range(cost.layers)]
        pruned = cost.encoder(here)
    if isinstance(policy, Reduction):
        pruned = cost.shortened(policy.left(cost.frames))
    terms = {
        "subsampling": cost.stem,
        **{name: cost.part(name) for name in backbone.part_names("encoder")},
        "merge and norms": cost.always(),
        "saved by gates": pruned - dense,
        "gates": gates,
    }
    total = pruned + gates
    decoder_terms = {}
    if backbone.shape.decoder_layers:
        decoder_terms = count_decoder(cfg, DecoderCost(backbone, cost.frames), decoder_policy)
    length = f"{samples / backbone.sample_rate:g} s"
    if window.ragged:  # what its own, shorter inputs cost depends on data, which are not looked at here
        length += (
            ", the longest input: each utterance costs what its own length does (localgp.evaluate counts it)"
        )
    return {
        "gflops": with_contexts(
            {
                "encoder": round(total / 1e9, 3),
                "context": 0.0,
                "total": round(total / 1e9, 3),
                "decoder": round(sum(decoder_terms.values()) / 1e9, 3),
                "convention": f"{CONVENTION}, {length}",
            },
            cfg,
            [samples],
        ),
        "terms": {name: round(value / 1e9, 3) for name, value in terms.items()},
        "decoder_tokens": DECODER_TOKENS,
        "decoder_terms": {name: round(value / 1e9, 3) for name, value in decoder_terms.items()},
        "paper": against_paper(cfg, total, dense, gates, at),
        "name": cfg.name,
        "backbone": cfg.backbone.name,
    }


def count_decoder(cfg: DictConfig, cost: DecoderCost, policy: GatePolicy | None) -> dict[str, float]:
    """The decoder's terms, in FLOPs, at ``pruning.target`` where it is gated."""
    from localgp.gates import GlobalGates
    from localgp.gates.cost import gates_cost

    dense = cost.terms(DECODER_TOKENS)
    if policy is None or cfg.pruning.decoder == "open":
        return dense
    kept = 1 - cfg.pruning.target
    pruned = {name: kept * value for name, value in dense.items()}  # a share of the modules
    if not isinstance(policy, GlobalGates):  # a share of the tokens, in every layer
        pruned = cost.terms(DECODER_TOKENS, kept)
    saved = sum(pruned[name] - dense[name] for name in cfg.pruning.decoder_modules)
    return {**dense, "saved by gates": saved, "gates": gates_cost(policy, DECODER_TOKENS, decoder=True)}


def against_paper(
    cfg: DictConfig, total: float, dense: float, gates: float, at: Callable[[float], float]
) -> dict[str, Any] | None:
    """Our count beside the paper's, and which term the difference is in; None where the paper has no figure."""

    printed = TABLE_1[cfg.name][-1] if cfg.name in TABLE_1 else None
    if printed is None or cfg.backbone.name != "owsm_v3.1_medium":
        return None
    found: dict[str, Any] = {
        "encoder": printed,
        "ours_minus_paper": round(total / 1e9 - printed, 3),
        "dense_minus_paper": round(dense / 1e9 - TABLE_1["row01"][-1], 3),  # type: ignore[operator]
        "explanation": "the same count",
    }
    if abs(found["ours_minus_paper"]) <= 1.0:
        return found
    low, high = 0.0, 1.0  # skipped shares; more skipped costs less
    for _ in range(60):
        middle = (low + high) / 2
        if at(middle) + gates > printed * 1e9:
            low = middle
        else:
            high = middle
    found["skipped_share_at_paper"] = round(low, 4)
    found["explanation"] = (
        f"the dense encoder agrees to {abs(found['dense_minus_paper']):.2f}, the gates cost {gates / 1e9:.1f} of our "
        f"figure and extractors no part of it, so the difference is in the term 'saved by gates': with our terms the "
        f"paper's {printed} is what skipping {100 * low:.1f} % of the frames costs, not {100 * cfg.pruning.target:g} % "
        "(its column is of measured gates, ours of gates exactly at the target)"
    )
    return found


def main(cfg: DictConfig) -> None:

    def show(heading: str, terms: dict[str, float]) -> None:
        print(render(terms.items(), [Column(heading, 0), Column("GFLOPs", 1, ".3f")]))

    result = count(cfg)
    gflops = result["gflops"]
    terms = {name: value for name, value in result["terms"].items() if value} | {"encoder": gflops["encoder"]}
    if gflops["contexts"]:
        terms |= {f"extracting {name}": value for name, value in gflops["contexts"].items()}
        terms["encoder and contexts"] = gflops["total"]
    show("term", terms)
    decoder = {name: value for name, value in result["decoder_terms"].items() if value}
    if decoder:
        print()
        show(f"term, {DECODER_TOKENS} tokens", decoder | {"decoder": gflops["decoder"]})
    if result["paper"] is not None:
        paper = result["paper"]
        print(
            f"\nthe paper prints {paper['encoder']}, ours is {paper['ours_minus_paper']:+.1f}: {paper['explanation']}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    entry_point(main, "pruning", "window")()
