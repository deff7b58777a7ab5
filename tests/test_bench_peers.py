"""Whisper beside what else computes it, on a tiny random model."""

from __future__ import annotations

import pytest
import torch

from localgp.backbones import open_backbone
from localgp.backbones.whisper.peers import CTranslate2, EqualSteps
from localgp.bench import peers
from localgp.bench.decoder import DecoderBench
from localgp.bench.encoder import EncoderBench
from localgp.bench.goals import judge
from localgp.bench.peers import recording_peers, search_peers, step_peers
from localgp.bench.rows import settings
from tests.conftest import make_backbone
from tests.whisper_helpers import VOCABULARY, save_tiny_whisper


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny", max_target_positions=24)
    made = open_backbone({"name": "tiny", "path": str(folder), "weights": "pretrained"})
    made.net.eval()
    return made


@pytest.mark.parametrize("peer", ["transformers", "ctranslate2"])
def test_every_peer_computes_the_same(backbone, peer):
    pytest.importorskip(peer)
    said = []
    wanted = settings("encoder", peers=[peer], espnet_batches=[2], espnet_repeats=1)
    bench = EncoderBench(backbone, "tiny", wanted, said.append)
    bench.peers()
    (row,) = bench.rows
    assert row["relative_error"] < 1e-4
    assert row["against"] == peer
    assert f"tiny fp32: batch 2, seconds {row['seconds']}, against {peer}, " in said[0]
    search = DecoderBench(
        backbone, "tiny", settings("decoder", peers=[peer], utterances=[1], beam=2, repeats=1)
    )
    search_peers(search)
    rows = search.rows
    assert [(row["beam"], row["batch"]) for row in rows] == [(1, 1), (2, 1)]
    if peer == "transformers":  # CTranslate2 lets no output be longer than half of the positions
        assert [row["identical"] for row in rows] == [1, 1]


def test_goals_of_whisper():
    row = {"measure": "peer search", "backbone": "whisper_base", "against": "ctranslate2"}
    rows = [
        {
            "measure": "peer encoder",
            "backbone": "b",
            "against": "transformers",
            "batch": 1,
            "time_ratio": 0.81,
        },
        row | {"batch": 8, "beam": 5, "speed_ratio": 1.5},
        row | {"batch": 8, "beam": 1, "speed_ratio": 1.1},
        row | {"batch": 3, "beam": 1, "speed_ratio": 9.0},
        {
            "measure": "learnt",
            "backbone": "whisper_base row05",
            "batch": 8,
            "time_ratio_vs_dense": 0.3,
            "flop_ratio": 0.26,
        },
    ]
    step = {"measure": "peer step", "backbone": "b", "against": "ctranslate2", "batch": 8}
    rows += [step | {"dtype": "int8", "time_ratio": 0.61}, step | {"dtype": "fp32", "time_ratio": 0.44}]
    goals = {goal["goal"]: goal["met"] for goal in judge(rows)}
    assert goals == {
        "Whisper 1: own dense / transformers, b fp32, 30 s": False,
        "Whisper 3: beam 5, speed / ctranslate2, whisper_base x8": True,
        "Whisper 4: greedy, speed / ctranslate2, whisper_base x8": False,
        "Whisper 2: learnt gates / own dense, whisper_base row05": True,
        "10: decoder step / ctranslate2's, int8, b x8": False,
        "10: decoder step / ctranslate2's, fp32, b x8": True,
    }


def test_what_has_no_peers_is_not_encoded_for_them():
    backbone = make_backbone()
    bench = DecoderBench(backbone, "tiny", settings("decoder", utterances=[1]))
    search_peers(bench)
    assert bench.rows == []


@pytest.mark.parametrize("arithmetic", ["float32", "int8"])
def test_a_peer_leaves_the_weights_alone(backbone, arithmetic):
    pytest.importorskip("ctranslate2")
    before = {name: weight.clone() for name, weight in backbone.net.state_dict().items()}
    CTranslate2(backbone.net, backbone.tokenizer, arithmetic)
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.net.state_dict().items())


def test_short_recordings_one_by_one(backbone):
    pytest.importorskip("ctranslate2")
    wanted = settings("decoder", utterances=[2], beam=2, dtypes=["fp32"], repeats=1, recording_seconds=1.0)
    bench = DecoderBench(backbone, "tiny", wanted)
    recording_peers(bench)
    (row,) = bench.rows
    assert (row["recordings"], row["seconds_of_audio"], row["against"]) == (2, 1.0, "ctranslate2")
    fast = row | {"time_ratio": 0.1}
    met = [judge([fast | {"as_long": as_long}])[0]["met"] for as_long in (True, False)]
    assert met == [True, False], "a model that writes next to nothing is quick for nothing"
    goal = judge(bench.rows)[0]
    assert goal["goal"] == "a recording of 1 s, encoder and decoder, fp32 / ctranslate2 int8, padded, tiny"
    assert goal["value"] == row["time_ratio"]


def test_a_step_beside_one_of_equal_size(backbone, monkeypatch):
    pytest.importorskip("ctranslate2")
    lines = []
    monkeypatch.setattr(peers, "SYMBOLS", 0)
    wanted = settings("decoder", utterances=[1, 2], beam=2, steps=4, dtypes=["fp32"], repeats=1)
    bench = DecoderBench(backbone, "tiny", wanted, lines.append)
    bench.frames = 16
    step_peers(bench)
    rows = bench.rows
    assert [(row["batch"], row["dtype"], row["against"]) for row in rows] == [
        (1, "fp32", "ctranslate2"),
        (2, "fp32", "ctranslate2"),
    ]
    assert len(lines) == 2
    other = EqualSteps(
        size=32, layers=1, heads=2, units=64, vocabulary=VOCABULARY, frames=16, arithmetic="float32"
    )
    for steps in (1, 5):
        assert [len(ids) for ids in other.search(torch.randn(2, 16, 32), 2, steps)()] == [steps] * 2
