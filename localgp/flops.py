"""``python -m localgp.flops conf=row01 backbone=owsm_v3.1_medium``: encoder GFLOPs, without weights or data.

Gated rows are counted at exactly ``pruning.target``: every gated module on that share of frames less, or, utterance by
utterance (GlobalGP), that share of the modules less.
"""

from __future__ import annotations

import json

from omegaconf import DictConfig

from localgp.cli import entry_point


def count(cfg: DictConfig) -> dict:
    """Returns ``{"gflops": {...}, "terms": {...}}``, in GFLOPs."""
    import torch

    from localgp.backbone.owsm import build_encoder, read_train_config
    from localgp.build import build_policy
    from localgp.evaluation.flops import CONVENTION, EncoderCost, feature_frames_of
    from localgp.gates import GlobalGates

    config = read_train_config(cfg.backbone)
    seconds = float(config["preprocessor_conf"]["speech_length"])
    feature_frames = feature_frames_of(config, seconds)
    with torch.device("meta"):  # shapes without memory
        encoder = build_encoder(config)
    cost = EncoderCost.of(encoder, feature_frames)
    dense = cost.encoder(feature_frames)
    policy = build_policy(cfg, encoder)
    pruned, gates = dense, 0.0
    if policy is not None and cfg.pruning.encoder != "open":
        target, modules = cfg.pruning.target, list(cfg.pruning.encoder_modules)
        if isinstance(policy, GlobalGates):  # a share of the modules, each on all frames or on none
            pruned -= target * cost.layers * sum(cost.module_on(name, cost.frames) for name in modules)
        else:  # every module on a share of the frames
            kept = dict.fromkeys(modules, (1 - target) * cost.frames)
            pruned = cost.encoder(feature_frames, [kept] * cost.layers)
        gates = cost.gates(policy)
    terms = {
        "subsampling": cost.subsampling(feature_frames),
        **{
            name: cost.layers * cost.module_on(name, cost.frames)
            for name in ("ffn1", "attention", "cgmlp", "ffn2")
        },
        "merge and norms": cost.layers * cost.merge() + cost.frames * 5 * cost.size,
        "saved by gates": pruned - dense,
        "gates": gates,
    }
    total = pruned + gates
    return {
        "gflops": {
            "encoder": round(total / 1e9, 3),
            "context": 0.0,
            "total": round(total / 1e9, 3),
            "convention": f"{CONVENTION}, {seconds:g} s",
        },
        "terms": {name: round(value / 1e9, 3) for name, value in terms.items()},
        "name": cfg.name,
        "backbone": cfg.backbone.name,
    }


def main(cfg: DictConfig) -> None:
    from localgp.evaluation.table import format_table

    result = count(cfg)
    rows = [[name, f"{value:.3f}"] for name, value in result["terms"].items() if value]
    print(format_table(["term", "GFLOPs"], [*rows, ["encoder", f"{result['gflops']['encoder']:.3f}"]]))
    print(json.dumps(result))


if __name__ == "__main__":
    entry_point(main)()
