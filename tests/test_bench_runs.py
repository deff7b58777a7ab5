"""The benchmark of trained runs: what is timed is what an evaluation runs, and its command finds the runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from localgp.bench.__main__ import main as bench
from localgp.bench.runs import RunTimer, TrainedRun
from localgp.build import build_model
from localgp.corpora.prepared import load_prepared
from localgp.corpora.rows import padded_speech
from localgp.errors import CheckpointError, ConfigError
from localgp.evaluation.trained import trained_config
from localgp.run import Run
from localgp.search.options import DecodeOptions
from localgp.settings import SCHEMAS, check
from localgp.weights import save_weights
from tests.analysis_helpers import add_run, shared_place

QUICK = ["decode.beam=1", "decode.ctc_weight=0", "decode.maxlenratio=0.05", "device=cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return shared_place(tmp_path_factory)


@pytest.fixture(scope="module")
def exp(place, tmp_path_factory):
    """Evaluated runs with the shipped backbone's weights and gates as they begin."""
    path = tmp_path_factory.mktemp("timed") / "exp"
    rows = load_prepared(place.config())["test"]
    for name, seed in (
        ("row01", 2),
        ("row01", 1),
        ("row06", 1),
        ("row09", 1),
        ("control_random", 1),
        ("control_trim", 1),
    ):
        given = [f"conf={name}", f"seed={seed}", f"exp_dir={path}"]
        add_run(place, rows, None, *given)
        run = Run(place.config(*given))
        run.checkpoints.mkdir()
        save_weights(build_model(run.cfg).state_dict(), run.weights)
    return path


def test_what_is_timed_is_what_an_evaluation_encodes(place):
    """Features and encoder one after the other are the model's own `encode`, padded, gated, or at its own length."""
    rows = load_prepared(place.config())["test"].select([0, 7])
    samples = 8 * 16_000
    for name in ("control_random", "control_trim"):
        model = build_model(place.config(f"conf={name}"))
        timer = RunTimer(TrainedRun(name, 1, model.eval()), rows, DecodeOptions(beam=1, maxlenratio=0.02), 2)
        (timed,) = timer.encoder()
        items = sorted((rows[0], rows[1]), key=lambda row: row["seconds"])
        speech_BN, ends_B = padded_speech(items, samples)
        with torch.inference_mode():
            own = model.packed().encode(speech_BN, ends_B)
        assert torch.equal(timed.x, own.x)
        assert torch.equal(timed.lengths, own.lengths)
        assert (timed.x.shape[1] < 199) == model.window.ragged
        assert timer.decoder() > 0


def test_all_runs_are_timed_in_turns(place, exp, capsys):
    cfg = place.config(
        "bench=runs",
        f"exp_dir={exp}",
        *QUICK,
        "bench.utterances=2",
        "bench.repeats=2",
        "bench.decoder_repeats=1",
    )
    bench(cfg)
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert json.loads((exp / "bench/runs.json").read_text()) == result
    rows = {row["run"]: row for row in result["rows"]}
    assert list(rows) == ["row01", "row06", "row09", "control_random", "control_trim"]
    assert {row["seed"] for row in rows.values()} == {1}, "the first seed of each"
    assert result["goals"] == []
    for row in rows.values():
        parts = [row[f"{part}_seconds"] for part in ("contexts", "features", "encoder", "decoder")]
        assert row["total_seconds"] == pytest.approx(sum(parts), abs=1e-3)
        assert min(parts[1:]) > 0
        assert (row["contexts_seconds"] > 0) == (row["run"] == "row06")
        assert row["time_ratio_spread"][0] <= row["time_ratio_vs_dense"] <= row["time_ratio_spread"][1]
        assert (row["corpus"], row["backbone"], row["utterances"]) == ("mini", "mini", 2)
        assert row["tokens"] > 0
    assert rows["row01"]["time_ratio_vs_dense"] == rows["row01"]["total_time_ratio_vs_dense"] == 1
    assert rows["row01"]["flop_ratio"] == rows["row01"]["decoder_flop_ratio"] == 1
    assert rows["control_random"]["skipped"] == pytest.approx(0.3, abs=0.01)
    assert rows["control_random"]["flop_ratio"] < 0.95
    assert rows["control_trim"]["flop_ratio"] < rows["control_random"]["flop_ratio"]
    assert rows["row06"]["flop_ratio"] > rows["control_random"]["flop_ratio"], "gates begin open"
    assert rows["row09"]["decoder_flop_ratio"] != 1


def test_wanted_runs_must_be_there(place, exp, tmp_path, capsys):
    with pytest.raises(ConfigError, match="bench.repeats is 0"):
        check(place.config("bench=runs", f"exp_dir={exp}", "bench.repeats=0"), SCHEMAS["config"])
    with pytest.raises(
        ConfigError, match=r"bench.confs: row07 not among the evaluated runs .*: row01, row06"
    ):
        bench(place.config("bench=runs", f"exp_dir={exp}", "bench.confs=[row01,row07]"))
    shutil.copytree(exp / "mini/mini/row06", tmp_path / "mini/mini/row06")
    (tmp_path / "mini/mini/row06/seed1/checkpoints/model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no evaluated run with its weights under"):
        bench(place.config("bench=runs", f"exp_dir={tmp_path}"))
    assert "left out: mini/mini/row06/seed1, whose weights" in capsys.readouterr().out


def test_a_stored_configuration_goes_by_where_data_lie_now(place, exp, tmp_path):
    directory = exp / "mini/mini/row06/seed1"
    weights = directory / "checkpoints/model.safetensors"
    found = trained_config(directory, weights, place.config("data_dir=elsewhere", "corpus.root=there"))
    assert (found.data_dir, found.corpus.root) == ("elsewhere", "there")
    assert list(found.pruning.context) == ["front", "spk"]
    listed = place.config()
    OmegaConf.set_struct(listed, False)
    listed.corpus = {"name": "mini", "manifest": "there.jsonl"}
    assert trained_config(directory, weights, listed).corpus.manifest == "there.jsonl"
    (tmp_path / "config.yaml").write_text("name: row05\n")
    with pytest.raises(CheckpointError, match="lacks backbone, pruning, corpus, seed"):
        trained_config(tmp_path, weights, place.config())
    with pytest.raises(CheckpointError, match="holds no finished run"):
        trained_config(tmp_path, tmp_path / "none.safetensors", place.config())
