"""What a family's counts are counted of: encodes, forward passes of training, training steps, steps of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from localgp import timeline
from localgp.bench.steps import random_gates
from localgp.decoder.gates import StepGates
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.gates import GlobalGates, LocalGates
from localgp.kernels import ragged
from localgp.pruning import DECODER_MODULES
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from tests.counting import CountingDevice

FULL = 241  # feature frames
BATCHES = {"one": [FULL], "four": [FULL] * 4, "ragged": [FULL, 120, 63, 7]}
STEPS = 5
AROUND = 7  # waits of a search besides its steps, for any number of utterances
FORWARD = {"dense": 0, "masked": 0, "keys felt": 0, "gathered": 1}  # waits of a layer in training
WINDOWS = {"full": 0, "utterance": 1}  # and of what comes before the first, where lengths differ


@pytest.fixture
def device(monkeypatch):
    """With the kernels that a GPU has and a CPU has not."""
    for kept in (ragged.layout_of, timeline._on):  # on a device of another test
        kept.cache_clear()
    counting = CountingDevice()
    counting.lend_kernels(monkeypatch)
    return counting


def check(device: CountingDevice, launches: int, waits: int) -> None:
    """Fails with the lines that count most."""
    for what, found, budget in (
        ("tensors of two devices", device.mixed, 0),
        ("waits of the host", device.waits, waits),
        ("launches", device.launches, launches),
    ):
        lines = "\n  ".join(f"{count} {line}" for line, count in found.most_common(20))
        if sum(found.values()) > budget:
            pytest.fail(f"{sum(found.values())} {what}, budget {budget}:\n  {lines}", pytrace=False)


def gates(kind: str, backbone: Any, side: str = "encoder") -> Any:
    """Of all parts that can be gated, a part of them closed; None for ``dense``."""
    if kind == "dense":
        return None
    torch.manual_seed(0)
    size, layers = backbone.shape.size, getattr(backbone.shape, f"{side}_layers")
    if kind == "global":
        policy: Any = GlobalGates(layers, size, backbone.part_names(side))
        torch.nn.init.normal_(policy.predictor[-1].bias)
        return policy.eval()
    modules = DECODER_MODULES if side == "decoder" else backbone.frame_parts()
    policy = LocalGates(layers, size, modules, {"front": size}, bias=0.0)
    for layer in policy.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight, std=0.2)
    return policy.eval()


def packed(
    backbone: Any, policy: Any, feats: Any, lengths: Any, method: str = "__call__"
) -> Callable[[], Any]:
    """An encode in bf16 that is ready to run."""
    encode = getattr(PackedEncoder(backbone, torch.bfloat16), method)
    decide = None if policy is None else PackedGates(policy)
    return lambda: encode(feats, lengths, decide)


def encode_twice(
    device: CountingDevice, backbone: Any, kind: str, lengths: list[int], mels: int = 80
) -> None:
    """Counts a second encode, and compares it with one on the CPU."""
    feats = torch.randn(len(lengths), max(lengths), mels, generator=torch.Generator().manual_seed(2))
    policy = gates(kind, backbone)
    expected = packed(backbone, policy, feats, lengths)()
    with torch.no_grad(), device:
        device.put([backbone.net, policy, feats])
        run = packed(backbone, policy, feats, lengths)
        output = run()
        device.reset()
        run()
    assert (output.x - expected.x).norm() < 0.05 * expected.x.norm()  # the GPU's kernels add up to the same


def encode_batches(
    device: CountingDevice, backbone: Any, kind: str, lengths: list[int], mels: int = 80
) -> None:
    """Counts an encode with lengths that the device has, and gates as batches."""
    policy = gates(kind, backbone)
    with device:
        feats = torch.randn(len(lengths), max(lengths), mels)
        lengths_B = torch.tensor(lengths)
        device.put([backbone.net, policy, feats, lengths_B])
        run = packed(backbone, policy, feats, lengths_B, "encode")
        run()
        device.reset()
        run()


def forward_of_training(
    device: CountingDevice, backbone: Any, kind: str, path: str, window: str, mels: int = 80
) -> None:
    """Counts one, in fp32 and with what a backward pass needs."""
    policy = gates(kind, backbone).train()
    feats, lengths = torch.randn(2, FULL, mels), torch.tensor([FULL, FULL if window == "full" else 120])
    with device:
        device.put([backbone.net, policy, feats, lengths])
        encode(
            backbone,
            feats,
            lengths,
            None if path == "dense" else policy,
            path="gathered" if path == "gathered" else "masked",
            ragged=window != "full",
            keys_felt=path == "keys felt",
        )


def search_steps(
    device: CountingDevice, backbone: Any, memory: Any, primer: list[int], kind: str
) -> tuple[Any, Any]:
    """Counts ``STEPS - 1`` steps of a search; what it finds on the device, and on the CPU, in fp32."""
    policy = gates("local", backbone, "decoder") if kind == "local" else None
    lengths = torch.full((len(memory),), memory.shape[1])

    def decode(steps: int, dtype: torch.dtype) -> Any:
        ctc = 0.3 if kind == "dense with CTC" else 0.0
        beam = 1 if kind in ("greedy", "drawn") else 3
        options = DecodeOptions(beam=beam, maxlenratio=-steps, ctc_weight=ctc)
        search = BeamSearch(backbone, options, dtype=dtype)
        decide: Any = random_gates(0.3, 0, "utterance") if kind.startswith("random") else None
        if policy is not None:
            decide = StepGates(policy, {"front": memory.mean(1, keepdim=True)})
        device.reset()
        temperature = 0.5 if kind == "drawn" else 0.0
        return search(memory, lengths, [primer] * len(memory), decide, temperature=temperature)

    expected = decode(STEPS, torch.float32)
    found = {}
    with torch.no_grad(), device:
        device.put([backbone.net, memory, lengths, policy])
        for steps in (1, STEPS):
            decode(steps, torch.bfloat16)
            found[steps] = device.launches.copy(), device.waits.copy()
        output = decode(STEPS, torch.float32)
        device.reset()
        device.waits.update(found[1][1])
        check(device, 0, AROUND)
        device.reset()
        device.launches.update(found[STEPS][0] - found[1][0])
        device.waits.update(found[STEPS][1] - found[1][1])
    return output, expected


def check_found(output: Any, expected: Any, kind: str) -> None:
    for ours, theirs in zip(output, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens == other.tokens
            if kind == "local":
                assert torch.equal(one.open_PLM, other.open_PLM)
                assert 0 < other.open_PLM.float().mean() < 1
