"""Rows 6 to 8 and the shuffled-speaker control train and are evaluated, on a corpus of a few sentences."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from localgp.cli import CONF_DIR
from localgp.evaluation.evaluate_run import evaluate_run
from localgp.training.fit import fit
from tests.test_recipe import TINY

pytestmark = pytest.mark.recipe

SHORT = {
    **dict(option.split("=") for option in TINY),
    "training.max_steps": 2,
    "training.val_every": 2,
    "training.val_decode": 0,
    "decode.beam": 1,
    "decode.maxlenratio": 0.1,
    "evaluate.limit": 1,
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains and evaluates an experiment; returns its metrics, weights and directory."""
    place = tmp_path_factory.mktemp("contexts")

    def run(conf: str):
        options = {**SHORT, "conf": conf, "data_dir": place / "data", "exp_dir": place / "exp"}
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=[f"{key}={value}" for key, value in options.items()])
        fit(cfg)
        _, objects = evaluate_run(cfg)
        run = objects["run"]
        metrics = json.loads((run.path / "metrics.json").read_text())
        return metrics, load_file(run.weights), place

    return run


@pytest.mark.parametrize(
    ("conf", "contexts"),
    [
        ("row06", ["spk"]),
        ("row07", ["event"]),
        ("row08", ["spk", "event"]),
        ("control_shuffled_speaker", ["spk"]),
    ],
)
def test_rows_train_and_report_what_contexts_cost(train, conf, contexts):
    metrics, weights, place = train(conf)
    gflops = metrics["gflops"]
    assert list(gflops["contexts"]) == contexts
    assert gflops["context"] == pytest.approx(sum(gflops["contexts"].values()), abs=1e-5)
    assert 0 < gflops["context"] < gflops["encoder"]
    assert gflops["total"] == pytest.approx(gflops["encoder"] + gflops["context"], abs=1e-5)
    # The extractors are no part of the model: only the projections to D are trained and saved.
    added = {name for name in weights if name.startswith("policy.align.")}
    assert added == {f"policy.align.{name}.{part}" for name in contexts for part in ("weight", "bias")}
    assert not [n for n in weights if "asp" in n or "pos_conv" in n]
    stores = {path.name.split("-")[0] for path in (place / "data/prepared/contexts").iterdir()}
    assert set(contexts) <= stores
