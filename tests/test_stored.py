"""What is stored is refused in words where it is damaged, or of another run than the one asked for."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from localgp import run as run_module
from localgp.encoder.run import EncoderOutput
from localgp.errors import CheckpointError
from localgp.evaluation.decoder_gates_file import DecoderGateRecord, read_decoder_gates, write_decoder_gates
from localgp.evaluation.evaluate_run import load_run_weights, weights_used
from localgp.evaluation.gates_file import GateRecord, read_gates, write_gates
from localgp.gates import Gate
from localgp.model import Losses
from localgp.report.markdown import describe
from localgp.report.runs import Evaluated, Group
from localgp.report.scores import description
from localgp.report.utterances import corpus_root
from localgp.run import Run
from localgp.training.module import kept_by_layer
from tests.test_config import composed


@pytest.fixture
def trained(tmp_path):
    """A run's directory as training leaves it, but for what is in its weights."""
    run = Run(composed("conf=row05", f"exp_dir={tmp_path}", "training.lr=0.1"))
    run.start()
    run.checkpoints.mkdir()
    run.weights.touch()
    return run


def test_evaluation_refuses_another_configuration_and_names_the_way_to_a_variant(trained, tmp_path):
    place = f"exp_dir={tmp_path}"
    assert weights_used(Run(composed("conf=row05", place, "decode.beam=1"))) == trained.weights
    with pytest.raises(CheckpointError, match=r"pruning.threshold: 0.5 there, 0.7 asked for") as caught:
        weights_used(Run(composed("conf=row05", place, "pruning.threshold=0.7")))
    way = str(caught.value).split("name: ")[1].split()
    assert way == ["name=row05-variant", f"evaluate.checkpoint={trained.weights}"]
    variant = Run(composed("conf=row05", place, "pruning.threshold=0.7", *way))
    assert weights_used(variant) == trained.weights
    variant.start(trained=True)
    with pytest.raises(CheckpointError, match="pruning.threshold: 0.7 there, 0.5 asked for"):
        weights_used(Run(composed("conf=row05", place, *way)))
    with pytest.raises(CheckpointError, match=r"evaluate.checkpoint=nowhere: no such file"):
        weights_used(Run(composed("conf=row05", place, "evaluate.checkpoint=nowhere")))


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "3", "\x00", ""])
def test_damaged_config_is_named(trained, text):
    stored = trained.path / "config.yaml"
    stored.write_text(text)
    evaluated = Evaluated(trained.path, "mini", "mini", "row05", 1, {})
    for read in (
        trained.check,
        lambda: corpus_root(evaluated, trained.path),
        lambda: description(Group("row05", (evaluated,))),
    ):
        with pytest.raises(CheckpointError, match=r"config.yaml: .*; restore it, or remove"):
            read()


@pytest.mark.parametrize("config", ["training: 3\n", "corpus: []\n", "pruning: x\n", "contexts: 1\n"])
def test_section_that_is_none_is_another_configuration(trained, config):
    (trained.path / "config.yaml").write_text(config)
    with pytest.raises(CheckpointError, match="holds a run with another configuration"):
        trained.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(3, 2)}, r"weight: \(3, 2\) in the checkpoint, \(2, 2\) in the model"),
        ({"weight": torch.full((2, 2), float("nan"))}, "weight and 0 others hold NaN"),
        ({"other": torch.zeros(1)}, "other: not in the model"),
    ],
)
def test_weights_must_be_the_models(tmp_path, change, message):
    model = torch.nn.Linear(2, 2)
    save_file({**model.state_dict(), **change}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_run_weights(model, tmp_path / "model.safetensors")


def _write_both(folder):
    rng = np.random.default_rng(0)
    write_gates(
        folder / "a.npz",
        GateRecord(["a", "b"], ["ffn1"], rng.random((2, 3, 1, 50)) < 0.6, np.array([[0, 10], [2, 21]]), 0.04),
    )
    write_decoder_gates(
        folder / "b.npz",
        DecoderGateRecord(
            ["ffn"], rng.random((4, 2, 1)) < 0.5, ["a", "b", "a", "c"], ["u"], ["de"], np.array([4])
        ),
    )
    return (folder / "a.npz", read_gates), (folder / "b.npz", read_decoder_gates)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "npy", "text", "shapes", "lacking"])
def test_damaged_gates_are_named(tmp_path, damage):
    for path, read in _write_both(tmp_path):
        read(path)
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "npy":
            with path.open("wb") as file:
                np.save(file, np.zeros(3))
        elif damage in ("shapes", "lacking"):
            with np.load(path) as file:
                arrays = dict(file)
            arrays["bits"] = arrays["bits"][:1]
            if damage == "lacking":
                del arrays["bits"]
            np.savez(path, **arrays)
        else:
            path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"gates"}[damage])
        with pytest.raises(CheckpointError, match=r"cannot be read as stored gates .* evaluate that run"):
            read(path)


def test_every_flipped_byte_of_gates_is_read_or_named(tmp_path):
    rng = np.random.default_rng(1)
    refused = 0
    for path, read in _write_both(tmp_path):
        whole = bytearray(path.read_bytes())
        for position in rng.integers(len(whole), size=150):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
            try:
                read(path)
            except CheckpointError:
                refused += 1
    assert refused > 100


def test_table_says_which_run_differs(tmp_path):
    def group(name, convention):
        metrics = {
            "decode": {"beam": 5, "batch": 16 if name == "row01" else 64},
            "device": "cpu",
            "threads": 1,
            "signature": {"wer": "w", "bleu": "b"},
            "gflops": {"convention": convention},
            "commit": "abc",
        }
        return Group(name, tuple(Evaluated(tmp_path, "c", "b", name, seed, metrics) for seed in (1, 2)))

    groups = [group("control_trim", "own length"), group("row01", "30 s"), group("row05", "30 s")]
    stated = describe(groups)
    assert "GFLOPs: 30 s; but own length for control_trim. Decoded on: cpu, 1 thread. Commit: abc." in stated
    assert "Decoding: beam 5." in stated  # how many utterances were decoded together is no difference
    assert "WER: w. BLEU: sacrebleu, `b`." in describe(groups)


def test_kept_ratio_of_every_gate():
    def gates(share):
        value = (torch.arange(10.0) < 10 * share).float().expand(2, 10)
        return {"ffn1": Gate(value, value), "attention": Gate(torch.ones(2, 1), torch.ones(2, 1))}

    encoded = EncoderOutput(torch.zeros(2, 10, 4), torch.tensor([10, 10]), [gates(0.3), gates(0.8)])
    tokens = torch.tensor([[1.0, 1, 0], [1, 0, 0]])
    written = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    zero = torch.zeros(())
    losses = Losses(zero, zero, 1.0, 0.0, None, [{"ffn": Gate(written, written)}], tokens, {})
    assert kept_by_layer(encoded, losses) == pytest.approx(
        {
            "kept/ffn1/layer1": 0.3,
            "kept/attention/layer1": 1.0,
            "kept/ffn1/layer2": 0.8,
            "kept/attention/layer2": 1.0,
            "kept/decoder.ffn/layer1": 1 / 3,
        }
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_commit_is_of_our_own_repository(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip

    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    installed = tmp_path / "venv" / "localgp"
    installed.mkdir(parents=True)
    monkeypatch.setattr(run_module, "__file__", str(installed / "run.py"))
    assert run_module.commit() == "unknown"
    (tmp_path / "localgp").mkdir()
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "localgp" / "run.py"))
    assert len(run_module.commit()) == 40
