"""recipes/europarl_st from the first stage to the last, on a fixture in the real layout with random weights."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus_helpers import write_corpus

RECIPE = Path(__file__).parent.parent / "recipes" / "europarl_st"

TINY = [
    "backbone.weights=random",
    "corpus.asr_direction=union",
    "corpus.workers=1",
    "training.batch_size=1",
    "training.max_steps=1",
    "training.val_every=1",
    "training.val_limit=1",
    "training.val_decode=0",
    "training.average=1",
    "training.logger=none",
    "decode.beam=1",
    "decode.ctc_weight=0",
    "decode.maxlenratio=-3",
    "device=cpu",
    "threads=1",
    "report.utterances=0",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(RECIPE / "run.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )


@pytest.mark.recipe
def test_all_stages(tmp_path):
    write_corpus(tmp_path / "corpus")
    places = ["--corpus_root", str(tmp_path / "corpus"), "--data_dir", str(tmp_path / "data")]
    places += ["--exp_dir", str(tmp_path / "exp"), "--backbone", "mini"]
    result = run(*places, "--confs", "row01,row09", "--seeds", "1", "--", *TINY)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert re.findall(r"== stage (\d)", result.stdout) == list("1234567")
    assert "row09: lang2vec (578 values)" in result.stdout
    for conf in ("row01", "row09"):
        path = tmp_path / f"exp/europarl_st/mini/{conf}/seed1"
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        assert set(metrics["bleu"]) == {"de-fr", "de-it", "fr-de", "fr-it", "it-de", "it-fr", "average"}
    assert "decoder.ffn" in metrics["kept"]
    text = (tmp_path / "exp/RESULTS.md").read_text(encoding="utf-8")
    assert "row09 - row01" in text  # tested for significance
    assert list((tmp_path / "exp/packed").iterdir())


def test_missing_corpus_says_where_to_get_it(tmp_path):
    result = run("--stage", "1", "--stop_stage", "1", "--corpus_root", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "mllp.upv.es/europarl-st/v1.1.tar.gz" in result.stderr
    assert "--corpus_root DIR" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "1"], "unknown option --stages"),
        (["--stage", "9"], "stage 9; valid: 1 to 7"),
        (["--stage"], "--stage needs a value"),
        (["--stage", "4"], "row07 sees acoustic events: give --event"),
    ],
)
def test_bad_arguments_are_explained(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_help_names_every_stage():
    text = run("--help").stdout
    for stage in ("1 data", "2 prepare", "3 contexts", "4 train", "5 evaluate", "6 report", "7 pack"):
        assert stage in text


def test_readme_has_the_estimates_that_the_command_prints():
    spec = importlib.util.spec_from_file_location("estimate", RECIPE / "estimate.py")
    estimate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(estimate)
    readme = (RECIPE / "README.md").read_text(encoding="utf-8")
    rows = estimate.estimate(["conf=row05"])
    assert len(rows) == 3
    for row in rows:
        assert f"| {' | '.join(row)} |" in readme
