"""What a part adds to frames that it skips: nothing, or what it adds to the frame before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.build import build_policy
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import Masked
from localgp.errors import ConfigError
from localgp.gates import RandomGates, SimilarGates
from localgp.gates.gumbel import Gate
from localgp.settings import check
from tests.conftest import make_backbone
from tests.test_config import composed


def test_a_pairs_first_frame_always_runs_and_its_second_gets_the_same(backbone, feats):
    """Whatever gates say; in batches of several lengths, where every utterance has pairs of its own."""
    policy = RandomGates(["ffn1", "attention", "ffn2"], 0.5).eval()
    policy.fill = "pair"
    values, lengths = feats
    output = PackedEncoder(backbone).encode(values, lengths, PackedGates(policy))
    for layer in output.gates:
        for gate in layer.values():
            for open_T, count in zip(gate.mask, output.lengths.tolist(), strict=True):
                assert open_T[:count:2].all()
                assert not open_T[1:count:2].any(), "half is asked for"


def test_a_gate_feels_what_its_frame_is_worth_more_than_its_neighbour():
    part = nn.Linear(1, 1, bias=False)
    part.weight.data.fill_(1.0)
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    gate = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    y = Masked({"part": Gate(gate, gate)}, filled=True).frames("part", part, x, 0.5)
    assert y.flatten().tolist() == [0.5, 0.5, 2.0, 4.0]
    y.sum().backward()
    assert gate.grad[0, 1::2].tolist() == [0.5 * (2 - 1), 0.5 * (8 - 4)]


def test_frames_that_sound_like_their_neighbour_are_skipped():
    front = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    front[0, 3], front[1, 7] = 2 * front[0, 2], front[1, 6]
    front[1, 2] = front[1, 1]  # of two pairs
    gates = SimilarGates(["ffn"], 1 / 9, 8)
    assert gates.begin({"front": front}).argmin(1).tolist() == [3, 7]
    gates.set_budget(0.5)
    assert gates.begin({"front": front}).tolist() == [[1, 0, 1, 0, 1, 0, 1, 0, 1]] * 2, "one of two"
    gates.set_budget(1.0)
    assert gates.begin({"front": front[:, :1]}).tolist() == [[1]] * 2


def test_an_option_says_so():
    backbone = make_backbone()
    parts = "pruning.encoder_modules=[ffn1,attention,ffn2]"
    assert build_policy(composed("conf=row05", parts, "pruning.fill=pair"), backbone).fill == "pair"
    assert build_policy(composed("conf=row05", parts), backbone).fill == "zero"


@pytest.mark.parametrize("row", ["row01", "row02", "row12", "rival_topk", "control_vad"])
def test_what_does_not_choose_among_second_frames_is_refused(row):
    with pytest.raises(
        ConfigError, match=r"pruning\.fill is 'pair', and pruning\.encoder=\w+ does not choose"
    ):
        check(composed(f"conf={row}", "pruning.fill=pair"))


def test_more_than_every_second_frame_cannot_go():
    with pytest.raises(ConfigError, match=r"pruning\.target is 0\.6, and with pruning\.fill=pair"):
        check(composed("conf=row13", "pruning.target=0.6"))
    with pytest.raises(ConfigError, match=r"pruning\.budgets is \[0\.4, 1\.0\], and with pruning\.fill=pair"):
        check(composed("conf=row11", "pruning.fill=pair", "pruning.budgets=[0.4,1.0]"))
    with pytest.raises(ConfigError, match=r"decode\.budget is 0\.4, and of two frames one always runs"):
        SimilarGates(["ffn"], 0.5, 8).set_budget(0.4)
