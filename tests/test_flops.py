"""The formula against fvcore on the real modules."""

from __future__ import annotations

import pytest
import torch

from localgp.backbones.cost import EncoderCost
from localgp.encoder.run import encode
from localgp.gates import LocalGates, RandomGates
from localgp.gates.cost import gates_cost
from tests.fvcore_count import count_with_fvcore


def test_dense_equals_fvcore(backbone):
    assert EncoderCost(backbone, 301).encoder() == count_with_fvcore(backbone, 301)


@pytest.mark.parametrize("target", [0.1, 0.5])
def test_gathered_equals_fvcore(backbone, target):
    policy = RandomGates(["ffn1", "attention", "ffn2"], target).eval()
    gates = encode(backbone, torch.zeros(1, 301, 80), torch.tensor([301]), policy).gates
    kept = [{name: float(gate.mask.sum()) for name, gate in layer.items()} for layer in gates]
    assert EncoderCost(backbone, 301).encoder(kept) == count_with_fvcore(backbone, 301, policy)


def test_local_gates_cost_what_their_products_cost():
    """Counted on the products written as matrix products, which fvcore sees."""
    modules, frames, size = 3, 10, 4
    for sizes, aligned in (
        ({"front": 4}, frames * size**2),
        ({"front": 4, "spk": 5}, frames * size**2 + 5 * size + size**2),  # one vector an utterance
        ({"front": 4, "event": 6}, 2 * frames * size**2 + frames * 6 * size),
    ):
        policy = LocalGates(2, size, ["ffn1", "attention", "ffn2"], sizes)
        attention = sum(2 * frames * (len(sizes) + layer) * size for layer in range(2))
        heads = 2 * modules * frames * size * 2
        assert gates_cost(policy, frames) == attention + heads + frames * size**2 + aligned
