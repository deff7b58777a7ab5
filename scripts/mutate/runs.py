"""Runs: as loading finds them, and as training, evaluation and report find them one after the other."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mutate.damage import damage_json_line, damage_yaml
from mutate.models import tiny_espnet
from mutate.target import Target

SEED1 = Path("mini/mini/row05/seed1")


def tiny_run(directory: Path) -> None:
    """A finished run of row05 over `tiny_espnet`, without the training."""
    import torch

    from localgp.build import build_model
    from localgp.hub.load import base_config
    from localgp.run import write_atomically
    from localgp.weights import save_weights

    tiny_espnet(directory / "backbone")
    cfg = base_config("conf=row05", "backbone=path", f"backbone.path={directory / 'backbone'}", "device=cpu")
    from omegaconf import OmegaConf

    model = build_model(cfg)
    (directory / "checkpoints").mkdir()
    save_weights(model.state_dict(), directory / "checkpoints" / "model.safetensors")
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    scores = {"wer": {"de": 1.0, "average": 1.0}, "bleu": {"de-fr": 1.0}, "data": {}, "decode": {}, "seed": 1}
    write_atomically(directory / "metrics.json", json.dumps(scores))
    torch.save({"global_step": 3, "state_dict": {}}, directory / "checkpoints" / "last.ckpt")
    torch.save({"global_step": 2, "state_dict": {}}, directory / "checkpoints" / "previous.ckpt")


def read_run(directory: Path) -> int:
    import localgp
    from localgp.training.fit import newest_checkpoint

    # Its backbone lies in the original, which moves with each copy.
    localgp.load(str(directory), device="cpu")
    found = newest_checkpoint(directory / "checkpoints")
    return 0 if found is not None and found[0].name == "last.ckpt" else 1


def _command(directory: Path) -> Any:
    """Row 5's configuration in a place where there is no corpus: what needs one ends with that error."""
    from localgp.hub.load import base_config

    places = [f"exp_dir={directory}", f"data_dir={directory / 'data'}"]
    absent = ["corpus.reader=manifest", "+corpus.manifest=absent.jsonl"]
    launch = ["device=cpu", "trainer.devices=1", "trainer.num_nodes=1"]  # as training writes them down
    return base_config("conf=row05", "corpus=mini", *absent, *launch, "report.utterances=0", *places)


def tiny_results(directory: Path) -> None:
    """What training and evaluation leave of a run, as `localgp.train`, `evaluate` and `report` find it."""
    from omegaconf import OmegaConf

    from localgp.evaluation.gates_file import GateRecord, write_gates
    from localgp.evaluation.measured import measured_ratios
    from localgp.run import Run, write_atomically

    cfg = _command(directory)
    run = Run(cfg)
    run.start()
    run.checkpoints.mkdir()
    run.weights.write_bytes(b"only its presence and its time are read here")
    opened = np.random.default_rng(0).random((2, 2, 3, 20)) < 0.7
    modules = ["ffn1", "attention", "ffn2"]
    gates = GateRecord(["u0", "u1"], modules, opened, np.array([[0, 15], [0, 20]]), 0.04)
    write_gates(run.path / "gates" / "test.npz", gates)
    decode: Any = OmegaConf.to_container(cfg.decode, resolve=True)
    asked = {"decode": decode} | {
        key: cfg.evaluate[key] for key in ("split", "limit", "normalizer", "checkpoint")
    }
    data = {"corpus": "mini", "split": "test", "utterances": 2, "whole_split": True, "audio_seconds": 1.4}
    gflops = {
        "encoder": 0.9,
        "gates": 0.01,
        "dense": 1.0,
        "context": 0.0,
        "total": 0.9,
        "convention": "fvcore, 8 s",
    }
    metrics = {
        "wer": {"de": 20.0, "average": 20.0}, "bleu": {"de-fr": 10.0, "average": 10.0},
        "signature": {"wer": "jiwer", "bleu": "sacrebleu"}, **measured_ratios(gates),
        "gflops": gflops, "seconds": {"encoder": 1.0, "decoder": 2.0, "total": 3.5}, "data": data,
        "decode": decode | {"normalizer": "none"}, "backbone": {"name": "mini", "source": "shipped"},
        "name": "row05", "target": 0.3, "device": "cpu", "threads": 1, "commit": "0" * 40, "seed": 1,
        "asked": asked,
    }  # fmt: skip
    write_atomically(run.path / "metrics.json", json.dumps(metrics) + "\n")


def use_results(directory: Path) -> int:
    """The three commands, one after the other, on a copy: what they write is theirs to write.

    Evaluating compares the stored scores with the corpus, which is not there: it ends with that.
    """
    from localgp import evaluate, train
    from localgp.errors import CorpusError
    from localgp.report.__main__ import main as report

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "exp"
        shutil.copytree(directory, place, symlinks=True)
        train.main(_command(place))
        with contextlib.suppress(CorpusError):
            evaluate.main(_command(place))
        report(_command(place))
        # A run without its configuration or its gates is reported as far as it goes.
        return sum(not (place / SEED1 / name).exists() for name in ("config.yaml", "gates/test.npz"))


TARGETS = {
    "run": Target(
        tiny_run,
        read_run,
        ("config.yaml", "metrics.json", "checkpoints/*"),
        {"config.yaml": damage_yaml},
        optional=("metrics.json", "previous.ckpt"),
    ),
    "results": Target(
        tiny_results,
        use_results,
        tuple(str(SEED1 / name) for name in ("config.yaml", "metrics.json", "gates/test.npz")),
        {str(SEED1 / "config.yaml"): damage_yaml, str(SEED1 / "metrics.json"): damage_json_line},
    ),
}
