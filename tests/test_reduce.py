"""Rivals that shorten the sequence from some layer on."""

from __future__ import annotations

import pytest
import torch

from localgp.backbones.cost import EncoderCost
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.reduce import Shortening
from localgp.encoder.run import encode
from localgp.errors import ConfigError
from localgp.evaluation.measured import measured_gflops
from localgp.gates.reduce import AdjacentMerging, AttentiveSparsification, Reduction
from localgp.kernels.ragged import Ragged
from localgp.model import GatedS2T
from localgp.settings import check
from tests.conftest import LAYERS, make_backbone
from tests.fvcore_count import count_with_fvcore
from tests.test_config import composed


@pytest.fixture(params=["eas", "atome"])
def policy(request, backbone):
    attention = [backbone.branches("encoder", index)["attention"] for index in range(LAYERS)]
    if request.param == "eas":
        return AttentiveSparsification(attention, 0.4, after=1)
    return AdjacentMerging(attention, 0.4)


@torch.no_grad()
def test_training_and_inference_shorten_alike_and_each_utterance_by_itself(backbone, policy, feats):
    found = encode(backbone, *feats, policy, path="masked", ragged=True)
    packed = PackedEncoder(backbone).encode(*feats, PackedGates(policy.eval()))
    frames = [backbone.timeline.frames(int(n)) for n in feats[1]]
    assert found.lengths.tolist() == packed.lengths.tolist() == [policy.left(n)[-1] for n in frames]
    assert found.gates == packed.gates == []
    assert packed.front.shape[1] == frames[0] > packed.x.shape[1]
    for b, count in enumerate(packed.lengths.tolist()):
        torch.testing.assert_close(found.x[b, :count], packed.x[b, :count], rtol=1e-4, atol=1e-4)
        alone = encode(backbone, feats[0][b : b + 1, : feats[1][b]], feats[1][b : b + 1], policy)
        torch.testing.assert_close(alone.x[0], packed.x[b, :count], rtol=1e-4, atol=1e-4)


def test_it_can_be_trained(backbone, policy, feats):
    encode(backbone, *feats, policy, path="masked", ragged=True).x.square().sum().backward()
    assert all(p.grad is not None for p in backbone.net.encoder.parameters())
    backbone.net.zero_grad()


@pytest.mark.parametrize("frames", [1, 2, 3, 10, 59, 749])
@pytest.mark.parametrize("removed", [0.0, 0.3, 0.6, 0.9])
def test_what_is_left_is_what_was_asked_for(policy, frames, removed):
    policy.removed = removed
    left = policy.left(frames)
    assert len(left) == LAYERS + 1
    assert left[0] == frames
    assert left == sorted(left, reverse=True)
    assert left[-1] >= 1
    if removed <= 0.6:
        assert left[-1] == max(1, frames - round(removed * frames))
    x_ND, layout = torch.randn(frames, 32), Ragged([frames])
    shorten = Shortening(policy, layout)
    for layer in range(LAYERS):
        x_ND, layout = shorten(layer, x_ND, layout)
        assert layout.lengths == [left[layer + 1]] == [len(x_ND)]


class Given(Reduction):
    """Groups given beforehand."""

    groups = ([0, 0, 1, 1, 2], [0, 0, 1], [-1, 0])

    def left(self, frames):
        return [5, 3, 2, 1]

    def regroup(self, layer, x_TD, count):
        return torch.tensor(self.groups[layer])

    def regroup_flops(self, frames):
        return 100.0 * frames


def test_deciding_is_counted_where_frames_go(policy):
    assert Given(3, 0.8).flops(5) == 1000, "of 5, 3 and 2 frames"
    policy.removed = 0.0
    assert policy.flops(749) == 0, "nothing goes, so nothing is compared"


def test_a_merged_frame_is_the_mean_of_all_that_it_stands_for():
    x_ND = torch.tensor([[1.0], [2.0], [4.0], [9.0], [5.0]])
    layout, policy = Ragged([5]), Given(3, 0.8)
    shorten = Shortening(policy, layout)
    x_ND, layout = shorten(0, x_ND, layout)
    assert x_ND.flatten().tolist() == [1.5, 6.5, 5.0]
    x_ND, layout = shorten(1, x_ND, layout)
    assert x_ND.flatten().tolist() == [4.0, 5.0]
    x_ND, layout = shorten(2, x_ND, layout)
    assert x_ND.flatten().tolist() == [5.0], "one that goes nowhere is gone"


def test_similar_neighbours_are_merged_and_ignored_frames_go():
    backbone = make_backbone()
    attention = [backbone.branches("encoder", index)["attention"] for index in range(LAYERS)]
    torch.manual_seed(0)
    x_TD = torch.randn(8, 32)
    x_TD[5] = x_TD[4]
    assert AdjacentMerging(attention, 0.1).regroup(0, x_TD, 7).tolist() == [0, 1, 2, 3, 4, 4, 5, 6]
    group = AttentiveSparsification(attention, 0.25, after=1).regroup(0, x_TD, 6)
    assert sorted(group.tolist()) == [-1, -1, 0, 1, 2, 3, 4, 5]


def test_flops_are_fvcores(policy, backbone, monkeypatch):
    monkeypatch.setattr(backbone, "padded_seconds", 2.39)
    frames = backbone.timeline.feature_frames(backbone.samples)
    counted = EncoderCost(backbone, frames).shortened(policy.left(backbone.timeline.frames(frames)))
    deciding = policy.flops(backbone.timeline.frames(frames))
    traced = count_with_fvcore(backbone, frames, policy)
    assert deciding == pytest.approx(traced - counted, rel=0.01)
    found = measured_gflops(GatedS2T(backbone, policy), None)
    assert found["encoder"] * 1e9 == pytest.approx(counted + deciding, rel=1e-4)
    assert found["encoder"] < found["dense"]


def test_inner_frames_that_are_gone_cannot_be_compared():
    check(composed("conf=rival_eas", "training.objective=both"))
    with pytest.raises(ConfigError, match=r"distil_encoder has 2, and pruning\.encoder=eas has fewer frames"):
        check(composed("conf=rival_eas", "training.objective=both", "training.distil_encoder=[2,-1]"))


def test_places_say_where_frames_have_gone(backbone, policy, feats):
    found = encode(backbone, *feats, policy, path="masked", ragged=True)
    frames = [backbone.timeline.frames(int(n)) for n in feats[1]]
    assert found.places.shape == (3, frames[0])
    for place_T, count, left in zip(found.places, frames, found.lengths.tolist(), strict=True):
        assert (place_T[count:] == -2).all()
        own = place_T[:count]
        assert sorted({int(p) for p in own if p >= 0}) == list(range(left))
        assert isinstance(policy, AttentiveSparsification) == bool((own < 0).any())
    policy.removed, kept = 0.0, policy.removed
    assert encode(backbone, *feats, policy, ragged=True).places[0].tolist() == list(range(frames[0]))
    policy.removed = kept


def test_a_budget_is_what_is_left(backbone, policy, feats):
    model = GatedS2T(backbone, policy).eval()
    for budget in (0.5, 1.0):
        lengths = model.packed(budget=budget).encode_features(*feats).lengths.tolist()
        frames = [backbone.timeline.frames(int(n)) for n in feats[1]]
        assert lengths == [n - round((1 - budget) * n) for n in frames]
    policy.set_budget(None)
    assert policy.removed == 0.4
