"""A short window against its padded self: equal at the start where nothing is cut, and closer after training."""

from __future__ import annotations

import json

import pytest
import torch

from localgp.errors import ConfigError
from localgp.gates.reduce import AdjacentMerging
from localgp.model import GatedS2T
from localgp.training.distil import Layers, Teacher, distil_loss
from localgp.training.fit import fit
from localgp.window import Window
from tests.analysis_helpers import shared_place
from tests.conftest import LAYERS, make_backbone
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)

BOTH = Layers((1, LAYERS, -1), (1, -1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return shared_place(tmp_path_factory)


@pytest.fixture
def backbone(espnet):  # noqa: F811
    made = make_backbone(net=espnet)
    made.padded_seconds = 1.5
    return made


def short(batch):  # noqa: F811
    """Speech of 1.5 s whose signal ends before."""
    speech = torch.zeros(len(batch["speech"]), 24_000)
    ends = torch.tensor([14_000, 9_000, 12_000, 8_000])[: len(speech)]
    for row, signal, end in zip(speech, batch["speech"], ends, strict=True):
        row[:end] = signal[:end]
    count = len(batch["text"])
    return batch | {
        "speech": speech,
        "signal": torch.stack([torch.zeros_like(ends), ends], 1),
        "utt_ids": [f"u{i}" for i in range(len(speech))],
        "tasks": ["de"] * count,
    }


def distance(model, teacher, given):
    keep = teacher.layers
    encoded = model.encode(given["speech"], given["signal"][:, 1], path="masked", keep=keep.encoder)
    losses = model.losses(encoded, given, keep.decoder)
    return distil_loss(encoded, losses, teacher.states(given, encoded.began(), losses.tokens > 0))


def test_a_full_window_is_no_distance_from_itself(backbone, batch):  # noqa: F811
    given = short(batch)
    teacher = Teacher(backbone, BOTH)
    assert float(distance(GatedS2T(backbone), teacher, given)) < 1e-9
    own = Window("utterance")
    assert float(distance(GatedS2T(backbone, window=own), teacher, given)) > 1e-4
    assert float(distance(GatedS2T(backbone, window=own), Teacher(backbone, BOTH, own), given)) < 1e-9


def test_merged_frames_are_compared_with_the_mean_of_the_teachers(backbone, batch):  # noqa: F811
    given = short(batch)
    teacher = Teacher(backbone, Layers((-1,), (-1,)))
    attention = [backbone.branches("encoder", index)["attention"] for index in range(LAYERS)]
    same = GatedS2T(backbone, AdjacentMerging(attention, 0.0))
    assert float(distance(same, teacher, given)) < 1e-9
    for window in (Window(), Window("utterance")):
        merged = distance(GatedS2T(backbone, AdjacentMerging(attention, 0.4), window=window), teacher, given)
        assert 0 < float(merged) < 3
        merged.backward()


def test_the_teacher_stays_as_it_was_and_is_approached(backbone, batch):  # noqa: F811
    given = short(batch)
    teacher = Teacher(backbone, BOTH)
    before = {name: p.clone() for name, p in teacher.backbone.net.named_parameters()}
    model = GatedS2T(backbone, window=Window("utterance"))
    optimizer = torch.optim.Adam(model.parameters(), 3e-5)
    course = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = distance(model, teacher, given)
        loss.backward()
        optimizer.step()
        course.append(float(loss))
    assert course[-1] < 0.6 * course[0]
    assert all(torch.equal(before[name], p) for name, p in teacher.backbone.net.named_parameters())


def test_weights_that_are_not_trained_are_held_once(backbone):
    assert Teacher(backbone, BOTH).backbone.net is not backbone.net
    backbone.net.requires_grad_(False)
    try:
        assert Teacher(backbone, BOTH).backbone is backbone
    finally:
        backbone.net.requires_grad_(True)


def test_states_that_are_kept_are_those_that_were_computed(backbone, batch, monkeypatch):  # noqa: F811
    given = short(batch)
    model = GatedS2T(backbone, window=Window("utterance"))
    teacher = Teacher(backbone, BOTH, repeats=True)
    once = distance(model, teacher, given)
    monkeypatch.setattr(teacher, "_computed", lambda batch: pytest.fail("computed again"))
    torch.testing.assert_close(distance(model, teacher, given), once)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Layers((7,), ()), r"training\.distil_encoder has 7; valid: 1 to 3, or -1"),
        (Layers((), (0,)), r"training\.distil_decoder has 0; valid: 1 to 2"),
        (Layers((), ()), "are \\[\\]; give layers"),
    ],
)
def test_layers_that_there_are_not_are_refused(backbone, layers, message):
    with pytest.raises(ConfigError, match=message):
        Teacher(backbone, layers)


def test_a_short_window_is_trained_without_transcripts(place):
    """Two steps on the teacher's own texts, with gates."""
    cfg = place.config(
        *(
            "conf=row05",
            "name=taught",
            "window.length=utterance",
            "training.objective=distil",
            "training.transcripts=teacher",
        ),
        *("training.max_steps=2", "training.batch_size=2", "training.logger=none", "training.init_silence=0"),
        *("training.val_every=2", "training.val_limit=1", "training.val_decode=0", "training.log_every=1"),
    )
    metrics, objects = fit(cfg)
    run = objects["run"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    for line in steps:
        expected = 100 * line["loss_distil"] + 100 * line["loss_sparsity"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["valid/loss"] == pytest.approx(100 * metrics["valid/loss_distil"], rel=1e-4)
    written = json.loads((run.path / "teacher.json").read_text())
    assert {"de", "de-fr"} <= written.keys()
    assert any(text for texts in written.values() for text in texts.values())
    assert run.finished
