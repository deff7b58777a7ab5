"""The real commands on a corpus of a few sentences: prepare, train, kill, resume, evaluate, report."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.recipe

TINY = [
    "corpus.generate.train_segments=10",
    "corpus.generate.dev_segments=3",
    "corpus.generate.test_segments=3",
    "training.batch_size=2",
    "training.max_steps=6",
    "training.val_every=3",
    "training.val_limit=1",
    "training.val_decode=1",
    "training.checkpoint_every=2",
    "training.log_every=1",
    "training.warmup_steps=2",
    "training.logger=none",
    "device=cpu",
    "threads=1",
]


def command(entry: str, where: Path, *overrides: str) -> list[str]:
    places = [f"data_dir={where / 'data'}", f"exp_dir={where / 'exp'}"]
    return [sys.executable, "-m", f"localgp.{entry}", *places, *TINY, *overrides]


def run(entry: str, where: Path, *overrides: str) -> str:
    result = subprocess.run(command(entry, where, *overrides), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def kill_after_step_5(where: Path, *overrides: str) -> None:
    """Starts a training and kills it with a checkpoint of step 4 behind it."""
    process = subprocess.Popen(
        command("train", where, *overrides), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in process.stdout:
        if line.startswith("step      5/6"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A place with the tiny corpus prepared and row05 trained."""
    place = tmp_path_factory.mktemp("recipe")
    assert "test" in run("prepare", place)
    output = run("train", place, "conf=row05")
    assert "M in gates" in output
    assert "kept ffn1" in output
    return place


def test_run_directory_has_what_the_documentation_says(where):
    path = where / "exp/mini/mini/row05/seed1"
    assert (path / "config.yaml").exists()
    assert (path / "checkpoints/model.safetensors").exists()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "valid"] == [3, 6]
    assert {"loss", "loss_ctc", "loss_att", "loss_sparsity", "grad_norm", "kept/ffn1", "data_share"} <= set(
        lines[0]
    )


def test_finished_run_is_skipped(where):
    assert "is finished" in run("train", where, "conf=row05")


def test_killed_run_resumes_and_ends_in_the_same_weights(where):
    """kill -9 after a checkpoint, then the same command: bit-equal to the run that was never stopped."""
    again = [f"exp_dir={where / 'again'}", "conf=row05"]
    kill_after_step_5(where, *again)
    path = where / "again/mini/mini/row05/seed1"
    assert (path / "checkpoints/last.ckpt").exists()
    assert not (path / "checkpoints/model.safetensors").exists()
    output = run("train", where, *again)
    assert "resuming from" in output
    assert "at step 4 of 6" in output
    unbroken = load_file(where / "exp/mini/mini/row05/seed1/checkpoints/model.safetensors")
    resumed = load_file(path / "checkpoints/model.safetensors")
    assert unbroken.keys() == resumed.keys()
    assert all(unbroken[name].equal(resumed[name]) for name in unbroken)
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert len([s for s in steps if s == 5]) == 1


def test_damaged_checkpoint_is_kept_aside_and_the_one_before_used(where):
    again = [f"exp_dir={where / 'damaged'}", "conf=row05"]
    kill_after_step_5(where, *again)
    checkpoints = where / "damaged/mini/mini/row05/seed1/checkpoints"
    (checkpoints / "last.ckpt").write_bytes((checkpoints / "last.ckpt").read_bytes()[:1000])
    output = run("train", where, *again)
    assert "last.ckpt cannot be read" in output
    assert "at step 2 of 6" in output
    assert (checkpoints / "last.damaged").exists()


def test_evaluate_and_report(where):
    assert "skipped" in run("evaluate", where, "conf=row05", "decode.beam=2", "evaluate.limit=2")
    path = where / "exp/mini/mini/row05/seed1"
    metrics = json.loads((path / "metrics.json").read_text())
    assert set(metrics["wer"]) == {"de", "fr", "it", "average"}
    assert set(metrics["bleu"]) == {"de-fr", "de-it", "fr-de", "fr-it", "it-de", "it-fr", "average"}
    assert metrics["decode"]["beam"] == 2
    assert metrics["gflops"]["encoder"] > 0
    assert set(metrics["kept"]) == {"encoder.ffn1", "encoder.attention", "encoder.ffn2"}
    assert metrics["data"]["utterances"] == 6
    assert not metrics["data"]["whole_split"]
    for name in ("de-de", "de-fr", "it-fr"):
        lines = (path / f"hyp/test.{name}.txt").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
    assert "report" in run("report", where)
    assert (where / "exp/report.html").stat().st_size > 5000
    assert "row05" in (where / "exp/RESULTS.md").read_text(encoding="utf-8")


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# Commands of the README's table that are run, at a size that fits a test, elsewhere.
ELSEWHERE = {
    "bench": "test_bench_encoder.py",
    "transcribe": "test_transcribe.py",
    "pack": "test_pack.py",
    "speechprune": "test_speechprune_reports.py",
}


def test_the_readmes_commands_run_as_they_stand(where, monkeypatch, capsys):
    """Each with what the table says and `TINY` behind it, in order; what an earlier test did is found done."""
    lines = re.findall(r"^\| `python -m localgp\.(\S+) ?([^`]*)` \|", README, re.MULTILINE)
    seen = [entry for entry, _ in lines]
    assert sorted({*seen} - {*ELSEWHERE}) == ["analyze", "evaluate", "flops", "prepare", "report", "train"]
    for entry, arguments in lines:
        if entry in ELSEWHERE:
            assert f"localgp.{entry}" in README
            assert (Path(__file__).parent / ELSEWHERE[entry]).exists()
            continue
        less = ["decode.beam=2", "evaluate.limit=2"]
        argv = command(entry, where, *shlex.split(arguments), *less)[2:]
        monkeypatch.setattr(sys, "argv", argv)
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        printed = capsys.readouterr()
        assert printed.out.strip(), printed.err
        if entry == "flops":
            assert json.loads(printed.out.splitlines()[-1])["gflops"]["encoder"] > 400
    assert (where / "exp/report.html").exists()
    assert list((where / "exp/mini/mini/row05/seed1/analysis").iterdir())


def test_evaluating_what_was_not_trained(where):
    result = subprocess.run(command("evaluate", where, "conf=row01"), capture_output=True, text=True)
    assert result.returncode == 1
    assert "holds no trained model" in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_config_value_has_no_traceback(where):
    result = subprocess.run(
        command("train", where, "conf=row05", "pruning.encoder=locla", "seed=9"),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "error: pruning.encoder is 'locla'; valid:" in result.stderr
    assert "Traceback" not in result.stderr
