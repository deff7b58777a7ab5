"""What a part adds to frames that it skips: nothing, or what it adds to the nearest one that it runs on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.build import build_policy
from localgp.encoder.run import Masked
from localgp.errors import ConfigError
from localgp.gates.gumbel import Gate
from localgp.kernels.fill import NONE, nearest_other
from localgp.settings import check
from tests.conftest import make_backbone
from tests.test_config import composed


def slowly(open_RN: torch.Tensor, begin_N: list[int], end_N: list[int]) -> list[list[int]]:
    """The definition, frame by frame."""
    found = []
    for open_N in open_RN.tolist():
        row = []
        for n, (begin, end) in enumerate(zip(begin_N, end_N, strict=True)):
            others = [m for m in range(begin, end) if m != n and open_N[m]]
            row.append(min(others, key=lambda m: (abs(m - n), m)) if others else NONE)
        found.append(row)
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_nearest_other_open_frame_of_the_same_utterance(share):
    lengths = [7, 1, 12, 4]
    begin_N = [sum(lengths[:u]) for u, count in enumerate(lengths) for _ in range(count)]
    end_N = [sum(lengths[: u + 1]) for u, count in enumerate(lengths) for _ in range(count)]
    open_RN = torch.rand(5, sum(lengths), generator=torch.Generator().manual_seed(3)) < share
    found = nearest_other(open_RN, torch.tensor(begin_N), torch.tensor(end_N))
    assert found.tolist() == slowly(open_RN, begin_N, end_N)


def test_a_gate_feels_what_its_frame_is_worth_more_than_its_neighbour():
    part = nn.Linear(1, 1, bias=False)
    part.weight.data.fill_(1.0)
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    gate = torch.tensor([[1.0, 0.0, 0.0, 1.0]], requires_grad=True)
    y = Masked({"part": Gate(gate, gate)}, filled=True).frames("part", part, x, 0.5)
    assert y.flatten().tolist() == [0.5, 0.5, 4.0, 4.0]
    y.sum().backward()
    # own less other: 1 - 8, 2 - 1, 4 - 8, 8 - 1
    assert gate.grad.flatten().tolist() == [-3.5, 0.5, -2.0, 3.5]


def test_an_option_says_so():
    backbone = make_backbone()
    parts = "pruning.encoder_modules=[ffn1,attention,ffn2]"
    assert build_policy(composed("conf=row05", parts, "pruning.fill=nearest"), backbone).fill == "nearest"
    assert build_policy(composed("conf=row05", parts), backbone).fill == "zero"


@pytest.mark.parametrize("row", ["row01", "row02", "row12", "rival_layerdrop"])
def test_what_skips_no_frame_by_itself_is_refused(row):
    with pytest.raises(
        ConfigError, match=r"pruning\.fill is 'nearest', and pruning\.encoder=\w+ skips no frame"
    ):
        check(composed(f"conf={row}", "pruning.fill=nearest"))
