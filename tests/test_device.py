"""What is wrong on a GPU alone, as far as it shows without one."""

from __future__ import annotations

import logging

import pytest
import torch

from localgp.backbones.owsm.positions import position_table
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.gates import GlobalGates, LocalGates, RandomGates
from localgp.gates.gumbel import Gate
from localgp.kernels.devices import compiled
from localgp.precision import prepare_cuda, resolve_device, resolve_precision
from localgp.training.module import numbers
from tests.conftest import LAYERS, SIZE, distance, make_backbone

MODULES = ["ffn1", "attention", "ffn2"]
INPUT = torch.randn(2, 80, 80, generator=torch.Generator().manual_seed(4)), torch.tensor([80, 80])


def packed(backbone, policy=None, dtype=torch.float32):
    gates = None if policy is None else PackedGates(policy)
    return PackedEncoder(backbone, dtype).encode(*INPUT, gates)


class Foreign(torch.optim.Optimizer):
    """Writes past PyTorch's count of changes, as other libraries' kernels do."""

    def __init__(self, parameters, lr, fused):
        super().__init__(parameters, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad.data * group["lr"])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, Foreign])
def test_weights_are_laid_out_anew_after_an_optimizer_that_pytorch_does_not_count(kind):
    backbone = make_backbone()
    policy = LocalGates(LAYERS, SIZE, MODULES, {"front": SIZE}, bias=0.0).eval()
    optimizer = kind([*backbone.net.encoder.parameters(), *policy.parameters()], lr=0.05, fused=True)
    before = packed(backbone, policy).x
    encode(backbone, *INPUT, policy, path="masked").x.square().mean().backward()
    for head in policy.parameters():
        head.grad = torch.ones_like(head) if head.grad is None else head.grad
    optimizer.step()
    after, masked = packed(backbone, policy).x, encode(backbone, *INPUT, policy, path="masked").x
    assert (after - before).abs().max() > 0.01
    assert (after - masked).abs().max() <= 2e-5


@pytest.mark.parametrize("pass_", ["masked", "packed", "espnet"])
def test_a_pass_in_bf16_leaves_the_positions_exact(pass_):
    backbone = make_backbone()
    encoding = backbone.net.encoder.embed.out[1]
    exact = encoding.pe.clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if pass_ == "espnet":
            encoding(torch.zeros(1, 9, SIZE, dtype=torch.bfloat16))
        elif pass_ == "packed":
            packed(backbone, dtype=torch.bfloat16)
        else:
            encode(backbone, *INPUT, path=pass_)
    table = position_table(encoding, 9, torch.device("cpu"))
    assert table.dtype == torch.float32
    assert torch.equal(table[:9], exact[0, :9])


def test_triton_that_cannot_compile_is_said_once_and_left_out(caplog):
    pytest.importorskip("triton", reason="this PyTorch comes without Triton")
    compiled.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [compiled(torch.device("cpu")) for _ in range(2)] == [None, None]  # there it cannot
    assert caplog.text.count("Triton cannot compile here") == 1
    assert "C compiler" in caplog.text


@pytest.mark.parametrize(
    "policy",
    [
        LocalGates(LAYERS, SIZE, MODULES, {}),
        LocalGates(LAYERS, SIZE, MODULES, {"front": SIZE}),
        LocalGates(LAYERS, SIZE, MODULES, {}, attention="cosine"),
        GlobalGates(LAYERS, SIZE, MODULES),
    ],
    ids=["no context", "front", "cosine", "global"],
)
def test_every_trained_parameter_of_a_policy_gets_a_gradient(backbone, policy):
    """Or processes that train together wait for it."""
    output = encode(backbone, *INPUT, policy.train(), path="masked")
    sparsity = distance(0.3, output.gates, torch.ones(2, output.x.shape[1]))
    (output.x.square().mean() + sparsity).backward()
    backbone.net.zero_grad()
    assert [name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []


def test_processes_are_asked_once_for_all_sparsity_terms():
    gates = [{name: Gate(torch.rand(2, 5), torch.rand(2, 5)) for name in MODULES} for _ in range(LAYERS)]
    frames, asked = torch.ones(2, 5), []
    alone = distance(0.3, gates, frames, per="module")
    every = distance(0.3, gates, frames, per="module", total=lambda t: asked.append(t) or 2 * t)
    assert len(asked) == 1
    torch.testing.assert_close(every, alone)  # two processes with the same batch


def test_a_steps_terms_become_numbers_at_once():
    terms = numbers({"loss": torch.tensor(0.1, requires_grad=True), "accuracy": 0.5, "kept": torch.tensor(1)})
    assert terms == {"loss": float(torch.tensor(0.1)), "accuracy": 0.5, "kept": 1.0}


def test_random_gates_of_an_evaluation_are_the_same_on_every_device():
    """``meta`` has no numbers, so what is drawn there cannot have been drawn for it."""
    policy = RandomGates(MODULES, 0.4, seed=3).eval()
    first, again = (policy.gate(1, torch.zeros(n, 25, SIZE), {}) for n in (1, 3))
    for name in MODULES:
        assert torch.equal(again[name].value, first[name].value.expand(3, -1))
        assert first[name].value.sum() == 15
        assert policy.gate(1, torch.zeros(2, 25, SIZE, device="meta"), {})[name].value.is_meta
    assert not torch.equal(first["ffn1"].value, first["ffn2"].value)


@pytest.fixture
def cuda_settings(monkeypatch):
    """PyTorch's defaults, as of a process that has not asked for a device, restored afterwards."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    sdp = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept
    torch.backends.cuda.enable_cudnn_sdp(sdp)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_fp32_is_fp32_and_tf32_an_option(cuda_settings, name):
    device = resolve_device(name)
    assert resolve_precision("fp32", device) == torch.float32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert resolve_precision("tf32", device) == torch.float32
    assert torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    prepare_cuda()
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_only_where_it_is_not_emulated(monkeypatch, native, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert resolve_precision("auto", torch.device("cuda")) == expected
