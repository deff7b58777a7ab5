"""Ways of holding a training to its target."""

from __future__ import annotations

import json

import pytest
import torch

from localgp.errors import ConfigError
from localgp.gates import Gate
from localgp.gates.target import SparsityTarget, part_costs, sparsity_target
from localgp.hub.load import base_config
from tests.conftest import make_backbone

FRAMES = torch.ones(1, 10)


def gate(share, grad=False):
    """Kept on that share of ten frames."""
    value = (torch.arange(10) < round(10 * share)).float().view(1, 10).requires_grad_(grad)
    return Gate(value, value)


def test_a_costly_part_counts_more():
    layers = [{"ffn": gate(0.5), "attention": gate(1.0)}]
    term, distance = SparsityTarget(0.25)(layers, FRAMES)
    assert float(distance) == pytest.approx(0.0, abs=1e-6)
    kept = (3 * 0.5 + 1.0) / 4
    term, distance = SparsityTarget(0.25, costs={"ffn": 3.0, "attention": 1.0})(layers, FRAMES)
    assert float(distance) == pytest.approx((kept - 0.75) ** 2 + abs(kept - 0.75))
    assert float(term) == pytest.approx(100 * float(distance))


def test_costs_are_flops_or_what_bench_measured(tmp_path):
    backbone = make_backbone()
    flops = part_costs("flops", backbone, "encoder", ["ffn1", "attention"])
    assert part_costs("equal", backbone, "encoder", ["ffn1"]) is None
    assert flops["attention"] != flops["ffn1"] > 0
    decoder = part_costs("flops", backbone, "decoder", ["source_attention", "ffn"])
    assert decoder["source_attention"] > 0 < decoder["ffn"]
    path = tmp_path / "encoder.json"
    rows = [{"part": "ffn1", "seconds": 0.25}, {"part": "attention", "seconds": 0.5}, {"skipped": 0.3}]
    path.write_text(json.dumps({"rows": rows}))
    assert part_costs(str(path), backbone, "encoder", ["attention", "ffn1"]) == {
        "ffn1": 0.25,
        "attention": 0.5,
    }
    with pytest.raises(ConfigError, match="has no seconds of ffn2; measure them"):
        part_costs(str(path), backbone, "encoder", ["ffn1", "ffn2"])
    with pytest.raises(ConfigError, match=r"pruning\.cost=nowhere is no file that bench wrote"):
        part_costs("nowhere", backbone, "encoder", ["ffn1"])


def test_the_target_rises():
    target = SparsityTarget(0.3, rise=0.5)
    assert [target.at(p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.15, 0.3, 0.3])
    _, distance = target([{"ffn": gate(1.0)}], FRAMES, 0.0)
    assert float(distance) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("share", "progress", "outside"),
    [
        (0.7, 0.0, 0.0),
        (1.0, 0.0, 0.3),  # tight: on the target
        (0.2, 0.0, 0.5),
        (1.0, 1 / 6, 0.0 + 1.0 - 1 + 0.75 * 0.3),
        (0.2, 1 / 6, 0.75 * 0.7 - 0.2),
        (0.2, 0.9, 0.5 * 0.7 - 0.2),  # and no looser than this
        (0.4, 0.9, 0.0),
    ],
)
def test_bounds_loosen(share, progress, outside):
    layers = [{"ffn": gate(share)}, {"ffn": gate(0.7)}]
    bounded = SparsityTarget(0.3, bounds=[1.0, 0.5])
    free = SparsityTarget(0.3)
    more = bounded(layers, FRAMES, progress)[0] - free(layers, FRAMES, progress)[0]
    assert float(more) == pytest.approx(100 * (outside**2 + outside) / 2, abs=1e-3)


def test_multipliers_grow_until_the_target_is_met():
    """Skipping has its price here, which a fixed weight of the same size at the start does not pay."""
    torch.manual_seed(0)
    logit = torch.full((1, 200), 2.0, requires_grad=True)
    target = SparsityTarget(0.3, lagrange=True, step=1.0).train()
    optimizer = torch.optim.Adam([logit], 0.05)
    price_T = torch.rand(200) * 5
    frames = torch.ones(1, 200)
    for _ in range(400):
        soft = logit.sigmoid()
        hard = (soft > 0.5).float() + soft - soft.detach()
        term, _ = target([{"ffn": Gate(hard, hard)}], frames)
        optimizer.zero_grad()
        ((price_T * (1 - hard)).mean() + term).backward()
        optimizer.step()
    assert float((logit > 0).float().mean()) == pytest.approx(0.7, abs=0.05)
    before = target.multipliers.clone()
    target.eval()
    target([{"ffn": gate(1.0)}], FRAMES)
    assert torch.equal(target.multipliers, before), "a dev scoring moves nothing"
    assert "multipliers" in target.state_dict(), "a resumed run goes on with them"


def test_a_configuration_says_which():
    pruning = base_config(
        "conf=row05",
        "pruning.penalty=lagrange",
        "pruning.bounds=[1.0,0.2]",
        "pruning.cost=flops",
        "pruning.rise=0.1",
    ).pruning
    made = sparsity_target(pruning, make_backbone(), "encoder")
    assert (made.lagrange, made.bounds, made.rise) == (True, (1.0, 0.2), 0.1)
    assert set(made.costs) == {"ffn1", "attention", "ffn2"}
