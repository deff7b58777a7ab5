"""Gates of self-attention that feel what their frames are worth as keys."""

from __future__ import annotations

import pytest
import torch

from localgp.decoder.train import decode_tokens
from localgp.encoder.keys import attend_felt
from localgp.encoder.run import encode
from localgp.gates import LocalGates
from tests.conftest import LAYERS, SIZE, make_backbone


def policy(layers, modules, contexts):
    torch.manual_seed(0)
    gates = LocalGates(layers, SIZE, modules, contexts, bias=0.2).train()
    for layer in gates.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight, std=0.3)
    return gates


@pytest.fixture(autouse=True)
def without_noise(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.fill_(1.0))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_the_numbers_are_the_same_and_the_gradient_is_not(feats, side):
    backbone, found = make_backbone(), []
    for felt in (False, True):
        if side == "encoder":
            gates = policy(LAYERS, ["ffn1", "attention"], {"front": SIZE})
            output = encode(backbone, *feats, gates, path="masked", ragged=True, keys_felt=felt)
            x, closed = (
                output.x * output.own().unsqueeze(-1),
                1 - output.gates[0]["attention"].decision.mean(),
            )
        else:
            gates = policy(2, ["self_attention", "ffn"], {})
            tokens = torch.randint(7, 60, (3, 12), generator=torch.Generator().manual_seed(0))
            lengths = torch.tensor([12, 9, 5])
            memory, frames = (
                torch.randn(3, 20, SIZE, generator=torch.Generator().manual_seed(1)),
                torch.tensor([20, 9, 3]),
            )
            output = decode_tokens(backbone, memory, frames, tokens, lengths, gates, {}, keys_felt=felt)
            own = torch.arange(12) < lengths.unsqueeze(1)
            x, closed = (
                output.logits * own.unsqueeze(-1),
                1 - output.gates[0]["self_attention"].decision.mean(),
            )
        assert 0.05 < float(closed) < 0.95
        x.square().mean().backward()
        name = "attention" if side == "encoder" else "self_attention"
        found.append((x.detach(), gates.layers[0].heads[name].weight.grad.clone()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert float((found[0][1] - found[1][1]).norm()) > 1e-3 * float(found[0][1].norm())


def test_a_closed_key_is_felt_as_it_would_be_opened():
    """Against a finite difference of the key's weight in the others' outputs."""
    backbone = make_backbone()
    branch = backbone.branches("encoder", 0)["attention"]
    torch.manual_seed(0)
    x, mask = torch.randn(1, 6, SIZE), torch.ones(1, 1, 6, dtype=torch.bool)
    gate = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]], requires_grad=True)

    def loss(gate):
        output = attend_felt(branch, x, mask, gate)
        return (output[:, [0, 2, 3, 5]] * torch.linspace(-1, 1, SIZE)).sum()

    (felt,) = torch.autograd.grad(loss(gate), gate)
    for key in (1, 4):
        more = gate.detach().clone()
        more[0, key] = 1e-2
        assert float(felt[0, key]) == pytest.approx(float(loss(more) - loss(gate)) / 1e-2, rel=0.05, abs=1e-3)
