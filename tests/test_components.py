"""ESPnet models built part by part against ESPnet's own task."""

from __future__ import annotations

import argparse
from functools import partial

import pytest
import torch

from localgp.backbones.owsm.build import build_espnet_model
from localgp.backbones.owsm.components import COMPONENTS, component_class, quiet_espnet
from localgp.backbones.owsm.files import read_train_config
from localgp.errors import BackboneError


@pytest.fixture(scope="module")
def s2t():
    """ESPnet's task module."""
    with quiet_espnet():
        from espnet2.tasks import s2t
    return s2t


def test_the_table_is_that_of_espnets_two_tasks(s2t):
    with quiet_espnet():
        from espnet2.tasks import s2t_ctc
    for component in sorted(set(COMPONENTS) - {"ctc"}):
        tables = (getattr(task, f"{component}_choices", None) for task in (s2t, s2t_ctc))
        theirs = {name: kind for table in tables if table is not None for name, kind in table.classes.items()}
        assert set(COMPONENTS[component]) == set(theirs), component
        for name, kind in theirs.items():
            assert component_class(component, name) is kind, (component, name)
    assert component_class("ctc", "ctc") is s2t.CTC


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"specaug": "specaug", "specaug_conf": {"time_mask_width_range": [0, 10]}},
        {"normalize": "utterance_mvn", "normalize_conf": {}, "init": "xavier_uniform"},
        {"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 24}},
        {"input_size": 80, "normalize": None, "normalize_conf": {}},
        {"encoder": "conformer", "encoder_conf": {"output_size": 16, "linear_units": 32, "num_blocks": 1}},
    ],
    ids=["mini", "specaug", "init", "preencoder", "features", "conformer"],
)
def test_a_seed_gives_the_weights_that_espnet_gives(s2t, changes):
    config = read_train_config({"name": "mini", "path": "embedded"}) | changes
    torch.manual_seed(7)
    ours, after = build_espnet_model(config), torch.rand(1)
    torch.manual_seed(7)
    theirs = s2t.S2TTask.build_model(argparse.Namespace(**config))
    assert repr(ours) == repr(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(after, torch.rand(1))  # as many numbers were drawn


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("encoder", "e-branchformer"),
        ("encoder", None),
        ("decoder", 3),
        ("normalize", "none"),
        ("frontend", ["default"]),
    ],
)
def test_an_unknown_component_is_named_with_the_known(component, name):
    config = read_train_config({"name": "mini", "path": "embedded"}) | {component: name}
    with pytest.raises(
        BackboneError, match=f"{component}: .*unknown.*valid: .*{next(iter(COMPONENTS[component]))}"
    ):
        build_espnet_model(config)


def test_a_component_without_its_packages_says_so(monkeypatch):
    monkeypatch.setitem(COMPONENTS["encoder"], "absent", "espnet2.asr.encoder.absent_encoder.AbsentEncoder")
    build = partial(
        build_espnet_model, read_train_config({"name": "mini", "path": "embedded"}) | {"encoder": "absent"}
    )
    with pytest.raises(BackboneError, match="absent cannot be imported here .*ModuleNotFoundError"):
        build()
