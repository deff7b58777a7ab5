"""Gates under another speaker's embedding, on a run with invented gate weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from localgp.build import build_model
from localgp.evaluation.evaluate_run import evaluate_run
from localgp.report.analyze import analyze
from localgp.report.encoded_again import attention_table, swap_table
from localgp.report.runs import read_run
from localgp.run import Run
from localgp.weights import save_weights
from tests.analysis_helpers import MODULES, shared_place

pytestmark = pytest.mark.recipe

SMALL = [
    "conf=row06",
    "evaluate.limit=2",
    "decode.beam=1",
    "decode.maxlenratio=-1",
    "decode.batch=5",
    "device=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The shared corpus, and runs of our own beside it."""
    place = shared_place(tmp_path_factory)
    return place, [*SMALL, f"exp_dir={tmp_path_factory.mktemp('swap') / 'exp'}"]


@pytest.fixture(scope="module")
def evaluated(own):
    place, options = own
    cfg = place.config(*options)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():  # gates that hang on the speaker
        for name, parameter in model.policy.named_parameters():
            if name.startswith("align.spk"):
                parameter.normal_(std=20.0)
            elif "align" not in name:
                parameter.normal_(std=0.1)
    run = Run(cfg)
    run.start()
    run.checkpoints.mkdir()
    save_weights(model.state_dict(), run.weights)
    evaluate_run(cfg)
    return run


def test_swapped_speakers_flip_gates_and_the_same_ones_do_not(own, evaluated):
    place, options = own
    text, files = analyze(place.config(*options, "analyze.swap_utterances=4"))
    found = json.loads(files[0].read_text(encoding="utf-8"))["speaker_swap"]
    assert (found["utterances"], found["trained_with"]) == (4, "own")
    assert list(found["swapped"]) == MODULES
    for module in MODULES:
        assert sum(found["unchanged"][module]) == pytest.approx(0, abs=0.005)
    shares = [share for by_layer in found["swapped"].values() for share in by_layer]
    assert max(shares) > 0.02
    assert max(shares) <= 1
    assert "gate flips with another speaker's embedding, 4 utterances" in text
    table = swap_table([read_run(evaluated.path)])
    assert table.rows[0][:3] == ["row06, seed 1", "own", "4"]
    assert table.rows[0][3] == f"{100 * np.mean(found['swapped']['ffn1']):.2f}"


def test_attention_over_contexts_is_measured(own, evaluated):
    place, options = own
    text, files = analyze(place.config(*options, "analyze.swap_utterances=4"))
    found = json.loads(files[0].read_text(encoding="utf-8"))["context_attention"]
    assert list(found["weights"])[:3] == ["front", "spk", "layer 1"]
    by_layer = np.array(list(found["weights"].values())).T
    np.testing.assert_allclose(by_layer.sum(1), 1.0, atol=1e-3)
    assert (by_layer[0, 2:] == 0).all()  # the first layer has the contexts alone
    assert "mean attention of the gates over contexts" in text
    (row,) = attention_table([read_run(evaluated.path)]).rows
    assert row[0] == "row06, seed 1"
    assert sum(map(float, row[1:])) == pytest.approx(100, abs=0.1)


def test_swap_is_left_out_with_its_reason_or_on_request(own, evaluated):
    place, options = own
    text, files = analyze(place.config(*options, "analyze.swap_utterances=0"))
    assert "speaker_swap" not in json.loads(files[0].read_text(encoding="utf-8"))
    away = evaluated.weights.rename(evaluated.weights.with_name("away"))
    try:
        text, files = analyze(place.config(*options))
    finally:
        away.rename(evaluated.weights)
    assert json.loads(files[0].read_text(encoding="utf-8"))["speaker_swap"] is None
    assert "left out, since" in text
    assert "holds no trained model" in text
