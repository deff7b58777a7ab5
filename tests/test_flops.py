"""The formula against fvcore on the real modules."""

from __future__ import annotations

import pytest
import torch

from localgp.encoder.run import encode
from localgp.evaluation.flops import EncoderCost, count_with_fvcore
from localgp.gates import LocalGates, RandomGates


def test_dense_equals_fvcore(encoder):
    assert EncoderCost.of(encoder, 301, 80).encoder(301) == count_with_fvcore(encoder, 301, bins=80)


@pytest.mark.parametrize("target", [0.1, 0.5])
def test_gathered_equals_fvcore(encoder, target):
    policy = RandomGates(["ffn1", "attention", "ffn2"], target).eval()
    gates = encode(encoder, torch.zeros(1, 301, 80), torch.tensor([301]), policy).gates
    kept = [{name: float(gate.mask.sum()) for name, gate in layer.items()} for layer in gates]
    assert EncoderCost.of(encoder, 301, 80).encoder(301, kept) == count_with_fvcore(
        encoder, 301, policy, bins=80
    )


def test_local_gates_cost_what_their_products_cost():
    """Counted on the products written as matrix products, which fvcore sees."""
    cost = EncoderCost(frames=10, bins=80, size=4, ffn=8, cgmlp=8, cgmlp_kernel=3, merge_kernel=3, layers=2)
    modules, frames, size = 3, 10, 4
    for sizes, aligned in (
        ({"front": 4}, frames * size**2),
        ({"front": 4, "spk": 5}, frames * size**2 + 5 * size + size**2),  # one vector an utterance
        ({"front": 4, "event": 6}, 2 * frames * size**2 + frames * 6 * size),
    ):
        policy = LocalGates(2, size, ["ffn1", "attention", "ffn2"], sizes)
        attention = sum(2 * frames * (len(sizes) + layer) * size for layer in range(2))
        heads = 2 * modules * frames * size * 2
        assert cost.local_gates(policy) == attention + heads + frames * size**2 + aligned
