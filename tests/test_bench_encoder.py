"""The encoder benchmark on a tiny model: its rows, goals and command."""

from __future__ import annotations

import json
import time

import pytest
import torch
from hydra import compose, initialize_config_dir

from localgp.bench import benches
from localgp.bench.__main__ import main as bench
from localgp.bench.encoder import EncoderBench
from localgp.bench.goals import judge
from localgp.bench.harness import paired, peak_mib
from localgp.bench.parts import INSIDE
from localgp.bench.rows import settings
from localgp.cli import CONF_DIR
from localgp.errors import CheckpointError, ConfigError
from localgp.settings import SCHEMAS, check
from tests.conftest import make_backbone

PARTS = ("subsampling", "ffn1", "attention", "cgmlp", "merge", "ffn2", "norm")


def test_paired_runs_alternate():
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.004)

    times = paired({"fast": lambda: order.append("fast"), "slow": slow}, 3, torch.device("cpu"))
    # One round of warming up; then each of them begins in its turn
    assert order == ["fast", "slow", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert times.ratio("slow", "fast") > 1
    assert times.median("slow") >= 0.004


def test_peak_memory_of_a_run():
    """Whatever the allocator kept warm, again and again; what is released before the peak is no part of it."""

    def run() -> None:
        torch.ones(2**20)
        both = torch.ones(16 * 2**20), torch.ones(2**20)
        del both

    assert [peak_mib(run, torch.device("cpu")) for _ in range(3)] == [68.0] * 3


def test_rows_and_goals(columns):
    torch.manual_seed(0)
    backbone = make_backbone()
    encoder = backbone.net.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    lines: list[str] = []
    wanted = settings("encoder", seconds=2.0, repeats=1, espnet_repeats=1)
    tiny = EncoderBench(backbone, "tiny", wanted, lines.append)
    tiny.dense("fp32", 1)
    tiny.dense("fp32", 1, 0.5)
    tiny.pruned("fp32", 2, 0.5)
    tiny.pruned("fp32", 1, 0.5)
    tiny.gates("fp32", 1)
    tiny.ragged("fp32", [2.0, 1.0, 0.5])
    tiny.window("fp32", 1, 0.5)
    rows = tiny.rows
    assert [row["measure"] for row in rows] == [
        "dense",
        "padded",
        "pruned",
        "pruned",
        "gates",
        "ragged",
        "window",
    ]
    assert 0.2 < rows[-1]["flop_ratio"] < 0.5, "0.7 s of 2"
    assert len(lines) == len(rows)
    assert all(row["seconds"] > 0 and row["peak_mib"] > 0 for row in rows)
    assert all(columns <= set(row) for row in rows)
    assert [row["seconds_of_audio"] for row in rows[:3]] == [[2.0], [0.5], [2.0, 2.0]]
    assert rows[5]["seconds_of_audio"] == [2.0, 1.0, 0.5]
    assert [row["padded_to"] for row in rows] == [2.0] * 5 + [None, 2.0]
    measured = {
        "dense": {"time_ratio_vs_espnet", "flop_ratio"},
        "pruned": {"time_ratio_vs_dense", "flop_ratio"},
    }
    measured |= {
        "padded": measured["dense"],
        "ragged": measured["dense"],
        "window": measured["pruned"],
        "gates": {"overhead_share"},
    }
    measured["pruned"] |= {"overhead_share"}
    figures = {"flop_ratio", "time_ratio_vs_dense", "time_ratio_vs_espnet", "overhead_share"}
    for row in rows:
        assert {name for name in figures if row[name] is not None} == measured[row["measure"]]
    assert all(row["relative_error"] <= 1e-5 for row in rows[:2])
    pruned = rows[3]
    assert pruned["flop_ratio"] < 1
    beyond = pruned["time_ratio_vs_dense"] - pruned["flop_ratio"]
    assert pruned["overhead_share"] == pytest.approx(beyond, abs=2e-4)
    became = (1 - pruned["time_ratio_vs_dense"]) / (1 - pruned["flop_ratio"])
    assert pruned["saved_flops_became_time"] == pytest.approx(became, abs=2e-3)
    assert 1 < rows[5]["share_of_work"] < 3  # one whole, a half and a quarter
    assert rows[5]["flop_ratio"] == pytest.approx(rows[5]["share_of_work"] / 3, abs=1e-4)
    assert rows[4]["overhead_flop_share"] < 0.1
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    goals = judge(rows)
    assert [goal["goal"][:2] for goal in goals] == ["2:", "2:", "1:", "7:", "3:", "3:"]  # batch 2 has none
    for goal in goals:
        held = goal["value"] <= goal["limit"] if goal["sense"] == "<=" else goal["value"] >= goal["limit"]
        assert goal["met"] == held
    assert goals[2]["limit"] == pytest.approx(pruned["flop_ratio"] + 0.03)


def test_judge():
    row = {
        "measure": "dense",
        "backbone": "owsm_v3.1_small",
        "dtype": "fp32",
        "utterances": 8,
        "ctc_weight": 0.0,
        "skipped": 0.0,
        "speedup_vs_espnet": 30.0,
        "identical_hypotheses": True,
        "step_time_ratio_vs_dense": None,
    }
    step = row | {"measure": "pruned", "decided_per": "hypothesis", "skipped": 0.3, "speedup_vs_espnet": None}
    step["step_time_ratio_vs_dense"] = 0.9
    fast, slow = judge([row, step])
    assert (fast["met"], fast["limit"], fast["sense"]) == (True, 25.0, ">=")
    assert (slow["met"], slow["limit"], slow["sense"]) == (False, 0.85, "<=")
    utterance, half, other = (
        step | {"decided_per": "utterance"},
        step | {"skipped": 0.5},
        step | {"skipped": 0.7},
    )
    assert [goal["limit"] for goal in judge([utterance, half, other])] == [0.8, 0.7]
    mini = step | {"backbone": "mini", "utterances": 1, "step_time_ratio_vs_dense": 1.0}
    assert [(goal["limit"], goal["met"]) for goal in judge([mini])] == [(1.05, True)]
    kept = step | {"measure": "kept", "left_out": 0.7, "source_share_ratio": 0.41}
    assert [(goal["limit"], goal["met"]) for goal in judge([kept])] == [(0.4, False)]
    assert not judge([row | {"identical_hypotheses": False}])[0]["met"]


@pytest.fixture
def run_bench(monkeypatch, tmp_path, capsys):
    """The command's function with a tiny encoder in place of the published shapes."""
    monkeypatch.setattr(benches, "_random_backbone", lambda name, device: make_backbone())

    def run(*overrides: str) -> dict:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=[f"exp_dir={tmp_path}", "device=cpu", *overrides])
        check(cfg, SCHEMAS["config"])
        bench(cfg)
        printed = capsys.readouterr().out
        result = json.loads(printed.splitlines()[-1])
        assert json.loads((tmp_path / "bench" / f"{result['bench']}.json").read_text()) == result
        return result

    return run


TINY = ["bench.seconds=1.0", "bench.repeats=1"]


def test_the_command_writes_what_it_prints(run_bench, columns):
    result = run_bench(
        "bench=encoder",
        *TINY,
        "bench.backbones=[tiny]",
        "bench.batches=[1,2]",
        "bench.dtypes=[fp32]",
        "bench.speech_seconds=0.5",
        "bench.window_seconds=0.5",
        "bench.skipped=[0.3]",
        "bench.ragged=[1.0,0.5]",
        "bench.espnet_repeats=1",
    )
    measures = [row["measure"] for row in result["rows"]]
    every = ["window", "pruned", "gates"]
    assert measures[:9] == ["dense", "padded", *every, *every, "ragged"]
    assert all(columns <= set(row) for row in result["rows"])
    parts = {row["part"]: row for row in result["rows"] if row["measure"] == "profile"}
    assert set(parts) == {*PARTS, INSIDE}
    assert all(row["seconds"] > 0 and row["against_seconds"] > 0 for row in parts.values())
    fastest = [row["of_product_rate"] * row["seconds"] / row["flop_share"] for row in parts.values()]
    assert max(fastest) == pytest.approx(min(fastest), rel=0.2)  # one rate for all; the figures are rounded
    for share in ("time_share", "flop_share"):
        assert sum(parts[part][share] for part in PARTS) == pytest.approx(1, abs=0.02)
    assert {goal["goal"][0] for goal in result["goals"]} >= {"1", "2", "3", "7"}
    assert result["machine"]["cores"] >= 1


def test_unknown_choices_and_runs_are_named(run_bench, tmp_path):
    with pytest.raises(ConfigError, match=r"bench.measures is \['dens'\]; valid: .*dense, padded"):
        run_bench("bench=encoder", "bench.measures=[dens]")
    with pytest.raises(ConfigError, match=r"bench.dtypes is \['int8'\]; valid: .*fp32, bf16"):
        run_bench("bench=encoder", "bench.dtypes=[int8]")  # that is a measure here
    with pytest.raises(CheckpointError, match="holds no finished run"):
        run_bench("bench=encoder", "bench.backbones=[]", f"bench.run={tmp_path}")
    with pytest.raises(ConfigError, match="bench.name is 'gpu'; valid: encoder, decoder, training"):
        run_bench("bench.name=gpu")
