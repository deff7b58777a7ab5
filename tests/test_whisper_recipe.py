"""recipes/whisper from the prepared corpus to the packed model, on noise and a tiny random Whisper."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import localgp
from localgp.corpora.audio import write_audio
from localgp.window import Window
from tests.whisper_helpers import save_tiny_whisper

RECIPE = Path(__file__).parent.parent / "recipes" / "whisper"
TINY = [
    *("training.batch_size=1", "training.accumulate=1", "training.max_steps=1"),
    *("training.max_epochs=null", "training.val_limit=1", "training.val_decode=0", "training.logger=none"),
    *(
        "decode.beam=1",
        "decode.maxlenratio=-3",
        "device=cpu",
        "threads=1",
        "report.utterances=0",
        "corpus.workers=1",
    ),
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
    model = save_tiny_whisper(tmp_path / "tiny")
    rng = np.random.default_rng(0)
    lines = []
    for part in ("train", "dev", "test"):
        write_audio(tmp_path / f"corpus/{part}.wav", rng.normal(0, 0.1, 12_000).astype(np.float32), 16_000)
        text = {"fr": f"un {part}", "en": f"a {part}"}
        lines.append({"audio": f"{part}.wav", "language": "fr", "split": part, "id": part, "text": text})
    manifest = tmp_path / "corpus/manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    places = [
        "--corpus_root",
        str(manifest.parent),
        "--data_dir",
        str(tmp_path / "data"),
        "--path",
        str(model),
    ]
    result = run(
        *places,
        "--exp_dir",
        str(tmp_path / "exp"),
        "--backbone",
        "path",
        "--confs",
        "row05,row12,row13",
        "--",
        *TINY,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert re.findall(r"== stage (\d)", result.stdout) == list("1234567")
    metrics = json.loads(
        (tmp_path / "exp/prompts/path/row05-pair/seed1/metrics.json").read_text(encoding="utf-8")
    )
    assert set(metrics["kept"]) == {"encoder.attention", "encoder.ffn"}
    assert set(metrics["bleu"]) == {"fr-en", "average"}
    folders = [path for path in (tmp_path / "exp/packed").iterdir() if path.is_dir()]
    packed = {path.name: localgp.load(str(path), device="cpu").model for path in folders}
    assert len(packed) == 4
    assert packed.pop("dense_window").policy is None
    fills = {name.split("-prompts")[0]: model.policy.fill for name, model in packed.items()}
    assert fills == {
        "localgp-path-row05-pair": "pair",
        "localgp-path-row12": "zero",
        "localgp-path-row13": "pair",
    }
    for model in packed.values():
        assert model.policy is not None
        assert model.window == Window("utterance", 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "1"], "unknown option --stages"),
        (["--stage", "8"], "stage 8; valid: 1 to 7"),
        (["--stage"], "--stage needs a value"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_prompt_is_in_one_part():
    """Single words are for training; others where their name puts them."""
    spec = importlib.util.spec_from_file_location("prompts", RECIPE / "prompts.py")
    prompts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prompts)
    long = "please enter your extension now"
    parts = {name: prompts.part_of(name, long) for name in (f"prompt{i}" for i in range(200))}
    assert {part: list(parts.values()).count(part) for part in ("train", "dev", "test")} == {
        "train": 150,
        "dev": 13,
        "test": 37,
    }
    assert {prompts.part_of(name, "please enter") for name in parts} == {"train"}
