"""One model for all budgets, and other methods' ways of skipping."""

from __future__ import annotations

import math

import pytest
import torch

from localgp.errors import ConfigError
from localgp.gates import LayerDropGates, LocalGates, TopKGates
from localgp.model import GatedS2T
from localgp.search.options import DecodeOptions
from tests.conftest import LAYERS, SIZE, make_backbone

MODULES = ["ffn1", "attention", "ffn2"]


@pytest.fixture
def local():
    torch.manual_seed(0)
    gates = LocalGates(LAYERS, SIZE, MODULES, {"front": SIZE}, attention="cosine", bias=0.3, kept=0.7).eval()
    for layer in gates.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight)
    torch.nn.init.uniform_(gates.slope, 0.5, 1.5)
    return gates


def kept(gates, x_BTD):
    state = gates.begin({"front": x_BTD})
    found = [gate for layer in range(LAYERS) for gate in gates.gate(layer, x_BTD, state).values()]
    return float(torch.stack([gate.decision.mean() for gate in found]).mean())


def test_a_larger_budget_keeps_more(local):
    x_BTD = torch.randn(2, 40, SIZE, generator=torch.Generator().manual_seed(1))
    own = kept(local, x_BTD)
    course = []
    for budget in (0.2, 0.5, 0.7, 0.9):
        local.set_budget(budget)
        course.append(kept(local, x_BTD))
    assert course == sorted(course)
    assert course[0] < course[-1] - 0.2
    assert course[2] == own, "the share that it was trained for"
    local.set_budget(None)
    assert kept(local, x_BTD) == own


@pytest.mark.parametrize("budget", [None, 0.4, 1.0])
@torch.no_grad()
def test_packed_gates_know_the_budget(local, feats, budget):
    model = GatedS2T(make_backbone(), local).eval()
    packed = model.packed(budget=budget).encode_features(*feats)
    local.set_budget(budget)
    from localgp.encoder.run import encode

    masked = encode(model.backbone, *feats, local, ragged=True)
    own_BT = packed.own()
    for one, other in zip(packed.gates, masked.gates, strict=True):
        for name, gate in one.items():
            assert torch.equal(gate.mask & own_BT, other[name].mask & own_BT)


def test_budgets_that_cannot_be_are_refused():
    backbone = make_backbone()
    with pytest.raises(
        ConfigError, match=r"decode\.budget is 0\.5, and these gates were trained for one share"
    ):
        GatedS2T(backbone, LocalGates(LAYERS, SIZE, MODULES, {})).eval().packed(budget=0.5)
    with pytest.raises(ConfigError, match="no gates that know of one"):
        GatedS2T(backbone).eval().packed(budget=0.5)
    with pytest.raises(ConfigError, match=r"budget is 1\.5; valid: null, a number above 0 to 1"):
        DecodeOptions(budget=1.5)


@pytest.mark.parametrize(("share", "frames"), [(0.7, 10), (0.7, 11), (1.0, 5), (0.3, 7)])
def test_top_k_runs_so_many_frames_of_each_utterance(share, frames):
    gates = TopKGates(LAYERS, SIZE, MODULES, share)
    x_BTD = torch.randn(3, frames, SIZE)
    for training in (True, False):
        found = gates.train(training).gate(1, x_BTD, gates.begin({}))
        for gate in found.values():
            assert gate.value.sum(1).tolist() == pytest.approx([math.ceil(share * frames - 1e-9)] * 3)
    scores_BT = gates.routers[1](x_BTD)[..., 0]
    ran = found["ffn1"].mask
    assert scores_BT[ran].view(3, -1).min() >= scores_BT.masked_fill(ran, -torch.inf).max(1).values.min()
    gates.train().gate(0, x_BTD, None)["ffn2"].value.sum().backward()
    assert gates.routers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("layers", "target", "dropped"), [(4, 0.3, 1), (6, 0.3, 2), (18, 0.3, 5), (2, 0.5, 0)]
)
def test_layers_that_are_dropped_lie_within(layers, target, dropped):
    gates = LayerDropGates(layers, MODULES, target)
    assert len(gates.dropped) == dropped
    assert not gates.dropped & {0, layers - 1}
    x_BTD = torch.zeros(2, 5, 4)
    closed = {i for i in range(layers) if not gates.gate(i, x_BTD, None)["ffn1"].mask.any()}
    assert closed == gates.dropped
