"""The generated speed section: from the benchmarks' files alone, with the command for what is missing."""

from __future__ import annotations

import json

import pytest

from localgp.bench.goals import Goal
from localgp.bench.rows import ENCODER, make_row
from localgp.errors import ConfigError
from localgp.report.markdown import replace_between_markers
from localgp.report.speed import COMMANDS, read_benchmarks, speed_section

MACHINE = {"cpu": "A", "cores": 2, "threads": 1, "capability": "AVX2", "gpu": None, "torch": "2.12"}


def write(folder, name, rows, goals=(), kind=None):
    (folder / "bench").mkdir(exist_ok=True)
    content = {
        "bench": kind or name,
        "command": f"python -m localgp.bench bench={kind or name}",
        "machine": MACHINE,
        "commit": "0123456789abcdef",
        "rows": rows,
        "goals": [*goals],
    }
    (folder / "bench" / f"{name}.json").write_text(json.dumps(content))


def encoder_row(measure, said):
    figures = {"batch": len(said), "seconds_of_audio": said, "padded_to": 30.0}
    return make_row(ENCODER, measure, "owsm_v3.1_small", "fp32", **figures)


def goal(name, value, limit):
    return Goal(name, "dense", "figure", "", {}).judged({"figure": value}, limit)


@pytest.fixture
def measured(tmp_path):
    """Rows as `EncoderBench` and `DecoderBench` make them."""
    dense = encoder_row("dense", [30.0]) | {
        "seconds": 1.63, "flop_ratio": 1.0, "time_ratio_vs_espnet": 0.526, "peak_mib": 401.2,
    }  # fmt: skip
    pruned = encoder_row("pruned", [30.0]) | {
        "seconds": 1.3, "skipped": 0.3, "flop_ratio": 0.811, "time_ratio_vs_dense": 0.834, "peak_mib": 390.0,
    }  # fmt: skip
    many = encoder_row("pruned", [30.0] * 8) | {
        "seconds": 10.4, "skipped": 0.3, "flop_ratio": 0.811, "time_ratio_vs_dense": 0.82,
    }  # fmt: skip
    ragged = encoder_row("ragged", [30.0, 20.0, 10.0, 5.0]) | {
        "seconds": 3.1, "padded_to": None, "flop_ratio": 0.51, "time_ratio_vs_espnet": 0.28,
    }  # fmt: skip
    gates = encoder_row("gates", [30.0]) | {
        "seconds": 0.05, "overhead_share": 0.0312, "overhead_flop_share": 0.0214,
    }  # fmt: skip
    profile = encoder_row("profile", [30.0]) | {
        "part": "cgmlp", "seconds": 0.4, "against_seconds": 0.9, "time_ratio_vs_espnet": 0.44, "time_share": 0.25,
        "flop_share": 0.2,
    }  # fmt: skip
    goals = [goal("2: own dense / ESPnet", 0.526, 0.58), goal("1: pruned 30% / own dense", 0.89, 0.841)]
    write(tmp_path, "encoder", [dense, pruned, many, ragged, gates, profile], goals)
    decoder = {
        "backbone": "owsm_v3.1_small", "dtype": "fp32", "utterances": 8, "beam": 5, "steps": 60, "ctc_weight": 0.3,
        "skipped": 0.0, "speedup_vs_espnet": 13.4, "step_time_ratio_vs_dense": None, "identical_hypotheses": True,
    }  # fmt: skip
    step = decoder | {
        "measure": "pruned", "skipped": 0.3, "decided_per": "hypothesis", "agree": 0.174, "flop_ratio": 0.73,
        "speedup_vs_espnet": None, "step_time_ratio_vs_dense": 0.78,
    }  # fmt: skip
    more = step | {"skipped": 0.5, "step_time_ratio_vs_dense": 0.66}
    other = decoder | {"identical_hypotheses": False}
    write(tmp_path, "decoder", [decoder, step, more, other])
    learnt = step | {"measure": "learnt", "skipped": 0.281, "agree": 0.77, "step_time_ratio_vs_dense": 1.2}
    write(tmp_path, "decoder_learnt", [learnt], kind="decoder")
    return tmp_path


def test_what_is_missing_has_its_command(tmp_path):
    text = speed_section(read_benchmarks(tmp_path), whole=False)
    for command in COMMANDS.values():
        assert f"Not measured yet: `{command}` measures it." in text
    assert "|" not in text, "no table without a measurement"


def test_a_readme_has_the_main_rows_and_the_goals_not_met(measured):
    text = speed_section(read_benchmarks(measured), whole=False)
    lines = text.splitlines()
    assert (
        "`python -m localgp.bench bench=encoder` on A (AVX2), 1 thread of 2 cores, PyTorch 2.12; commit 0123456789ab."
        in lines
    )
    assert "| dense, 30 s | owsm_v3.1_small, fp32 | 1.630 | 0.53 | - | 1.00 |" in lines
    assert "| 30 % of frames skipped, 30 s | owsm_v3.1_small, fp32 | 1.300 | - | 0.83 | 0.81 |" in lines
    assert (
        "| ragged batch of 30, 20, 10, 5 s, packed | owsm_v3.1_small, fp32 | 3.100 | 0.28 | - | 0.51 |"
        in lines
    )
    assert "| LocalGP's own share | owsm_v3.1_small, fp32 | 0.050 | - | 0.031 | 0.021 |" in lines
    assert "batch 8" not in text
    assert "cgmlp" not in text
    assert "Goals met: 1 of 2. Not met: 1: pruned 30% / own dense: 0.89 instead of <= 0.841." in lines
    assert "| owsm_v3.1_small, fp32 | 8 | 0.3 | 13.4 x | yes | - |" in lines
    assert "| owsm_v3.1_small, fp32 | 8 | 0.3 | 13.4 x | NO | - |" in lines
    assert "| owsm_v3.1_small, fp32 | 8 | 30 % | hypothesis | 17 % | 0.78 | 0.73 |" in lines
    assert "| 50 % |" not in text
    assert "| owsm_v3.1_small, fp32, learnt gates | 8 | 28 % | hypothesis | 77 % | 1.20 | 0.73 |" in lines
    assert "`python -m localgp.bench bench=training` measures it." in text


def test_the_results_have_every_row_and_goal(measured):
    text = speed_section(read_benchmarks(measured), whole=True)
    assert (
        "| 30 % of frames skipped, 30 s, batch 8 | owsm_v3.1_small, fp32 | 10.4 | - | 0.82 | 0.81 | - |"
        in text
    )
    assert "| owsm_v3.1_small, fp32: cgmlp | 0.400 | 0.900 | 0.44 | 25 % | 20 % |" in text
    assert "| 1: pruned 30% / own dense | 0.89 | <= 0.841 | NOT MET |" in text
    assert "| 2: own dense / ESPnet | 0.526 | <= 0.58 | met |" in text


def test_agreement_with_espnet_has_both_in_each_precision(tmp_path):
    exact = {
        "utterances": 200, "beam": 5, "ctc_weight": 0.3, "precision": "fp32", "identical": 200,
        "max_score_difference": 2.7e-4, "max_encoder_difference": 7.6e-6, "seconds": 20.6, "espnet_seconds": 146.8,
    }  # fmt: skip
    rounded = exact | {
        "precision": "bf16", "identical": 190, "espnet_identical": 180, "espnet_max_score_difference": 0.36,
        "espnet_max_encoder_difference": 0.125,
    }  # fmt: skip
    write(tmp_path, "espnet_agreement", [exact, rounded])
    lines = speed_section(read_benchmarks(tmp_path), whole=False).splitlines()
    assert "| ours, fp32 | 5 | 0.3 | 200 of 200 | 2.7e-04 | 7.6e-06 | 20.6 |" in lines
    assert "| ESPnet, fp32 | 5 | 0.3 | - | - | - | 146.8 |" in lines
    assert "| ours, bf16 | 5 | 0.3 | 190 of 200 | 2.7e-04 | 7.6e-06 | 20.6 |" in lines
    assert "| ESPnet, bf16 | 5 | 0.3 | 180 of 200 | 3.6e-01 | 1.2e-01 | 146.8 |" in lines


def test_the_section_goes_between_its_own_markers(tmp_path):
    readme = tmp_path / "README.md"
    before = "a\n<!-- results:begin -->\n<!-- results:end -->\nb\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nc\n"
    readme.write_text(before)
    replace_between_markers(readme, {"results": "R", "speed": "S"})
    after = before.replace("begin -->\n<!-- results", "begin -->\n\nR\n\n<!-- results").replace(
        "\nold\n", "\n\nS\n\n"
    )
    assert readme.read_text() == after
    readme.write_text(before.replace("<!-- speed:end -->", ""))
    with pytest.raises(ConfigError, match="has not exactly one <!-- speed:begin -->"):
        replace_between_markers(readme, {"results": "R", "speed": "S"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("decoder", '{"bench": "decoder"}'),
        ("encoder", "{"),
        ("encoder", '{"bench": "encoder", "machine": "m", "rows": [], "goals": [{"goal": "g"}]}'),
        ("runs", '{"bench": "runs", "machine": "m", "rows": [{"seed": 1}]}'),
    ],
)
def test_a_damaged_benchmark_is_named(tmp_path, name, content):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / f"{name}.json").write_text(content)
    with pytest.raises(
        ConfigError, match=rf"{name}.json is not what python -m localgp.bench bench={name} writes"
    ):
        read_benchmarks(tmp_path)
