"""The encoder, dense and gated, under `torch.compile`: the same numbers, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from localgp.encoder.packed import PackedEncoder
from localgp.encoder.run import encode
from localgp.gates import LocalGates
from tests.conftest import LAYERS, SIZE, make_backbone

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(forward, encoder, policy, feats, lengths, contexts):
    """Output and gradients of a training step; the same noise in gates and dropout every time."""
    torch.manual_seed(0)
    x = forward(feats, lengths, contexts)
    parameters = [p for module in (encoder, policy) for p in module.parameters()]
    gradients = torch.autograd.grad(x.square().mean(), parameters, allow_unused=True)
    return x.detach(), gradients


@pytest.mark.parametrize("path", ["dense", "masked", "gathered"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_training_step(feats, path, backend):
    backbone = make_backbone()
    encoder = backbone.net.encoder.train()
    backbone.use_fast_kernels()  # as in training
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # Inductor draws other random numbers
    torch.manual_seed(0)
    policy = LocalGates(LAYERS, SIZE, ["ffn1", "attention", "ffn2"], {"front": SIZE, "spk": 6}).eval()
    for module in policy.layers:
        for head in module.heads.values():
            torch.nn.init.normal_(head.weight, std=0.2)
    contexts = {"spk": torch.randn(3, 1, 6)}

    def forward(feats, lengths, contexts):
        if path == "dense":
            return encode(backbone, feats, lengths).x
        return encode(backbone, feats, lengths, policy, contexts, path=path).x

    expected, expected_gradients = step(forward, encoder, policy, *feats, contexts)
    compiled = torch.compile(forward, backend=backend)
    x, gradients = step(compiled, encoder, policy, *feats, contexts)
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-5)
    assert sum(g is not None for g in expected_gradients) > 100
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_packed_path_inside_a_compiled_function(feats):
    """It runs as it is, whatever compiles what is around it."""
    packed = PackedEncoder(make_backbone())
    values, lengths = feats[0], feats[1].tolist()

    def double(values):
        return 2 * packed(values, lengths).x

    assert torch.equal(torch.compile(double, backend="inductor")(values), double(values))
