"""`scripts/gpu_check.py`, as far as it runs without a card."""

from __future__ import annotations

import json
import time

import pytest
import torch

from localgp.errors import ConfigError
from localgp.report.__main__ import main as report
from localgp.report.gpu import NOT_MEASURED, gpu_section
from localgp.report.markdown import results as results_of
from localgp.report.markdown import section_of
from tests.conftest import make_backbone
from tests.scripts_as_modules import script
from tests.test_config import composed
from tests.whisper_helpers import tiny_whisper

check = script("gpu_check")
boxed, models, timings = (script(f"gpu.{name}") for name in ("boxed", "models", "timings"))


def whisper():
    return tiny_whisper(max_source_positions=120)


@pytest.mark.parametrize("make", [make_backbone, whisper])
@torch.no_grad()
def test_encodes_that_are_timed_are_of_the_same_thing(make):
    """Ours and the third-party library's; and gates of all kinds close what they are made for."""
    backbone = make()
    inputs = models.features(2, "cpu", frames=240)
    runs = timings.encodes(backbone, *inputs)
    assert list(runs) == ["dense", backbone.library, "random 30 %", "local 30 %", "local 50 %"]
    dense, theirs = runs["dense"]().x, runs[backbone.library]().float().flatten(0, 1)
    assert (dense - theirs).norm() < 0.03 * dense.norm()
    for name, share in (("random 30 %", 0.3), ("local 30 %", 0.3), ("local 50 %", 0.5)):
        gates = [gate.float().mean() for layer in runs[name]().gates for gate in layer.values()]
        assert 1 - torch.stack(gates).mean() == pytest.approx(share, abs=0.06)


def test_a_full_window_is_the_backbones():
    feats, lengths = models.windows(whisper(), 3)
    assert feats.shape == (3, 240, 80)
    assert lengths.tolist() == [240] * 3


def found_something(found):
    found.near("a", 0.1, 0.2)
    found.time("encode", "m", 4, "dense", wall_ms=1.5)


def found_wrong(found):
    found.near("b", 0.3, 0.2)


def sleeps(found):
    found.say("before")
    time.sleep(60)


def dies(found):
    raise SystemExit(3)


def test_parts_end_alone_and_all_together_in_time(tmp_path, capfd):
    """Each in a process of its own; what there is no time left for has failed."""
    out = tmp_path / "check.json"
    parts = [
        boxed.Part("fine", found_something, 20, needs_card=False),
        boxed.Part("wrong", found_wrong, 20, needs_card=False),
        boxed.Part("dies", dies, 20, needs_card=False),
        boxed.Part("with a card", found_something, 20),
        boxed.Part("slow", sleeps, 0.3, needs_card=False),
    ]
    assert check.run(parts[:1], out) == 0
    assert check.run(parts, out) == 1
    report = json.loads(out.read_text())
    status = {part["part"]: part["status"] for part in report["parts"]}
    assert status == {
        "fine": "passed",
        "wrong": "failed",
        "dies": "failed",
        "with a card": "skipped",
        "slow": "timed out",
    }
    assert report["parts"][0]["rows"][1] == {
        "figure": "encode m x4 dense",
        "measure": "encode",
        "model": "m",
        "batch": 4,
        "run": "dense",
        "wall_ms": 1.5,
    }
    assert report["parts"][3]["rows"] == []
    assert "encode m x4 dense: wall_ms 1.5" in capfd.readouterr().out
    late = [boxed.Part(name, sleeps, 20, needs_card=False) for name in ("late", "last")]
    assert check.run(late, out, minutes=0.02) == 1
    report = json.loads(out.read_text())
    assert [part["status"] for part in report["parts"]] == ["timed out", "not reached"]


def test_parts_are_named_and_fit_into_the_time():
    names = [part.name for part in check.parts()]
    assert len(set(names)) == len(names)
    assert {"counts", "time-encode-base", "graphs-base", "time-encode-medium", "time-train-base"} <= set(
        names
    )
    assert all(part.seconds <= 60 * check.MINUTES / 4 for part in check.parts())


def timed(measure, run, **figures):
    figures = {"launches": 450, "waits": 0, "copies": 1, "kernel_ms": 8.5, "peak_mib": 900, **figures}
    found = {"measure": measure, "model": "whisper_base", "batch": 16, "run": run}
    return {"figure": "…", **found, **figures}


REPORT = {
    "card": "A Card",
    "torch": "2.12",
    "python": "3.11",
    "commit": "0123456789abcdef",
    "parts": [
        {"part": "counts", "status": "passed", "rows": []},
        {"part": "kernels", "status": "failed", "rows": [{"check": "times", "value": 0.3, "limit": 0.1, "ok": False}]},
        {"part": "paths", "status": "failed", "rows": [], "error": "Traceback\nRuntimeError: no kernel image\n"},
        {"part": "ragged", "status": "not reached", "rows": []},
        {
            "part": "time-encode-base",
            "status": "passed",
            "rows": [
                timed("encode", "dense", wall_ms=10.0, of_dense=1.0),
                timed("encode", "transformers", wall_ms=20.0, of_dense=1.9),
                timed("encode", "local 30 %", wall_ms=8.0, of_dense=0.81, waits=2),
                timed("graph", "local 30 % as a graph", wall_ms=6.0, of_dense=0.6),
            ],
        },
        {
            "part": "time-decode-medium",
            "status": "passed",
            "rows": [
                timed("decode", "dense", speedup_vs_espnet=20.5, skipped=0.0),
                timed("decode", "pruned", step_time_ratio_vs_dense=0.97, skipped=0.3, decided_per="hypothesis"),
                timed("step", "local, all open"),
            ],
        },
    ],
}  # fmt: skip


def test_the_report_has_a_section_of_it(tmp_path):
    (tmp_path / "gpu_check.json").write_text(json.dumps(REPORT))
    lines = gpu_section(tmp_path / "gpu_check.json").splitlines()
    assert lines[0] == (
        "`make gpu` on A Card; PyTorch 2.12, Python 3.11, commit 0123456789ab. Weights and inputs are random, in bf16: "
        "times say nothing of quality. Parts passed: 3 of 6. kernels failed: times is 0.3, at most 0.1. "
        "paths failed: RuntimeError: no kernel image. ragged not reached: no time left."
    )
    for row in (
        "| whisper_base | 16 | dense | 10.00 | 1.00 | 0.50 | 8.50 | 450 | 0 | 1 | 900 |",
        "| whisper_base | 16 | transformers | 20.00 | 1.90 | 1.00 | 8.50 | 450 | 0 | 1 | 900 |",
        "| whisper_base | 16 | local 30 % | 8.00 | 0.81 | 0.40 | 8.50 | 450 | 2 | 1 | 900 |",
        "| whisper_base | 16 | local 30 % as a graph | 6.00 | 0.60 | - | 8.50 | 450 | 0 | 1 | 900 |",
        "| whisper_base | 16 | dense | - | - | 20.50 | - |",
        "| whisper_base | 16 | pruned | 30 % | hypothesis | - | 0.97 |",
        "| whisper_base | 16 | local, all open | 8.50 | 450 | 0 | 1 |",
    ):
        assert row in lines


def test_a_machine_without_a_card_has_no_times(tmp_path):
    parts = [*REPORT["parts"][:1], {"part": "time-encode-base", "status": "skipped", "rows": []}]
    (tmp_path / "gpu_check.json").write_text(json.dumps(REPORT | {"card": None, "parts": parts}))
    text = gpu_section(tmp_path / "gpu_check.json")
    assert "on a machine without a card, so that nothing is timed here" in text
    assert text.endswith("Parts passed: 1 of 1.")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"parts": [{}]}'])
def test_another_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "other.json").write_text(content)
    with pytest.raises(ConfigError, match="is not what `make gpu` writes .*valid: its gpu_check.json"):
        gpu_section(tmp_path / "other.json")


def test_the_section_is_replaced_when_it_is_reported_again(tmp_path, capsys):
    """The rest of the file is nobody's to touch, and there need be no runs."""
    given, results = tmp_path / "gpu_check.json", tmp_path / "RESULTS.md"
    before = results_of([]).replace("# Results", "# Mine", 1)
    results.write_text(before)
    cfg = composed(f"exp_dir={tmp_path / 'exp'}", f"++report.results={results}", f"++report.gpu={given}")
    for card in ("A Card", "Another"):
        given.write_text(json.dumps(REPORT | {"card": card}))
        report(cfg)
        text = results.read_text()
        assert text.count("`make gpu` on ") == text.count(f"`make gpu` on {card};") == 1
        assert text.replace(section_of(results, "gpu"), NOT_MEASURED) == before
    assert capsys.readouterr().out == f"tables: {results}\n" * 2
    results.write_text("no markers")
    with pytest.raises(ConfigError, match="has not exactly one <!-- gpu:begin -->"):
        report(cfg)
