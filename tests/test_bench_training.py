"""The training benchmark on a tiny model, and the gathered path's gradients."""

from __future__ import annotations

import pytest
import torch

from localgp.bench.encoder import EncoderBench
from localgp.bench.goals import judge
from localgp.bench.rows import settings
from localgp.encoder.run import Gathered, Masked
from localgp.gates.gumbel import Gate
from tests.conftest import make_backbone


def test_rows_and_goals(columns):
    backbone = make_backbone()
    encoder = backbone.net.encoder
    lines: list[str] = []
    bench = EncoderBench(backbone, "tiny", settings("training", seconds=1.0, repeats=1), lines.append)
    for batch in (1, 2):
        bench.training(batch, 0.5)
    rows = bench.rows
    assert [row["batch"] for row in rows] == [1, 2]
    assert len(lines) == 2
    assert all(columns <= set(row) for row in rows)
    assert [row["seconds_of_audio"] for row in rows] == [[1.0], [1.0, 1.0]]
    assert all(0 < row["flop_ratio"] < 1 and row["time_ratio_vs_dense"] > 0 for row in rows)
    assert all(row["time_ratio_vs_espnet"] is None and row["padded_to"] == 1.0 for row in rows)
    # Two utterances need the same gradients as one, and more of everything else.
    assert rows[1]["peak_mib"] > rows[0]["peak_mib"] > 0
    assert not encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    goals = judge(rows)
    assert [goal["limit"] for goal in goals] == [round(row["flop_ratio"] + 0.05, 4) for row in rows]


filled = pytest.mark.parametrize("filled", [False, True], ids=["zero", "pair"])


@filled
def test_gathered_gradients_equal_masked_ones(filled):
    """Of inputs, weights and open gates; frames of one utterance all open, of another all closed."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())
    decisions = (torch.rand(3, 7) < 0.5).float()
    decisions[1], decisions[2] = 1.0, 0.0
    felt = decisions.clone()
    if filled:
        decisions[:, ::2], felt[:, ::2] = 1.0, 0.0  # which are open whatever gates say
    found = {}
    for kind in (Masked, Gathered):
        x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        gate = decisions.clone().requires_grad_()
        module.zero_grad()
        y = x + kind({"part": Gate(gate, gate)}, filled=filled).frames("part", module, x, 0.5)
        (y * torch.arange(6.0)).square().sum().backward()
        found[kind] = (y, x.grad, module[0].weight.grad.clone(), gate.grad * felt)
    for ours, theirs in zip(found[Gathered], found[Masked], strict=True):
        torch.testing.assert_close(ours, theirs)


@filled
def test_gathered_attention_gradients_equal_masked_ones(filled):
    torch.manual_seed(0)
    project = torch.nn.Linear(6, 18)

    def attention(x, mask_B1T):
        query, key, value = project(x).chunk(3, dim=-1)
        scores = (query @ key.transpose(1, 2)).masked_fill(~mask_B1T, torch.finfo(x.dtype).min)
        return torch.softmax(scores, dim=-1) @ value

    decisions = (torch.rand(3, 7) < 0.5).float()
    decisions[1], decisions[2] = 1.0, 0.0
    if filled:
        decisions[:, ::2] = 1.0
    mask_B1T = torch.arange(7).expand(3, 1, 7) < torch.tensor([7, 5, 7]).view(3, 1, 1)
    decisions = felt = decisions * mask_B1T.squeeze(1)
    if filled:
        felt = felt * (torch.arange(7) % 2)
    found = {}
    for kind in (Masked, Gathered):
        x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        gate = decisions.clone().requires_grad_()
        project.zero_grad()
        run = kind({"part": Gate(gate, gate)}, mask_B1T.transpose(1, 2), filled=filled)
        y = run.attention("part", attention, x, mask_B1T) * mask_B1T.transpose(1, 2)  # an utterance's own
        (y * torch.arange(6.0)).square().sum().backward()
        found[kind] = (y, x.grad, project.weight.grad.clone(), gate.grad * felt)
    for ours, theirs in zip(found[Gathered], found[Masked], strict=True):
        torch.testing.assert_close(ours, theirs)
