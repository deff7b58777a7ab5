"""What encoding, decoding and training start on a GPU and wait for, counted on a CPU against budgets.

A budget is what is needed now: who needs less lowers it, and who needs more has to say why.
"""

from __future__ import annotations

import pytest
import torch

from localgp import timeline
from localgp.decoder.gates import StepGates
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.gates import GlobalGates, LocalGates
from localgp.kernels import ragged
from localgp.model import GatedS2T
from localgp.pruning import DECODER_MODULES
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from localgp.training.module import TrainingModule
from tests.conftest import LAYERS, SIZE, make_backbone, make_encoder
from tests.counting import CountingDevice
from tests.decoding_helpers import PRIMER, make_memory, make_model
from tests.test_config import composed
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)

MODULES = ["ffn1", "attention", "ffn2"]
FULL = 241  # feature frames
BATCHES = {"one": [FULL], "four": [FULL] * 4, "ragged": [FULL, 120, 63, 7]}


@pytest.fixture
def device(monkeypatch):
    """With the kernels that a GPU has and a CPU has not."""
    for kept in (ragged.layout_of, timeline._on):  # on a device of another test
        kept.cache_clear()
    counting = CountingDevice()
    counting.lend_kernels(monkeypatch)
    return counting


def gates(kind: str):
    torch.manual_seed(0)
    if kind == "dense":
        return None
    if kind == "global":
        policy = GlobalGates(LAYERS, SIZE, [*MODULES, "cgmlp"])
        torch.nn.init.normal_(policy.predictor[-1].bias)
        return policy.eval()
    policy = LocalGates(LAYERS, SIZE, MODULES, {"front": SIZE}, bias=0.0)
    for layer in policy.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight, std=0.2)
    return policy.eval()


def run_packed(backbone, policy, feats, lengths, method="__call__"):
    encode_packed = getattr(PackedEncoder(backbone, torch.bfloat16), method)
    decide = None if policy is None else PackedGates(policy)
    return lambda: encode_packed(feats, lengths, decide)


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


# kind: launches of a layer, of the rest for utterances of one length, more for each of different lengths, waits
ENCODE = {"dense": (24, 10, 4, 0), "local": (26, 12, 4, 0), "global": (26, 20, 16, 1)}


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("kind", ENCODE)
def test_encoding(device, kind, lengths):
    of_layer, launches, of_utterance, waits = ENCODE[kind]
    feats = torch.randn(len(BATCHES[lengths]), FULL, 80, generator=torch.Generator().manual_seed(2))
    backbone, policy = make_backbone(), gates(kind)
    expected = run_packed(backbone, policy, feats, BATCHES[lengths])()
    with torch.no_grad(), device:
        device.put([backbone.net, policy, feats])
        run = run_packed(backbone, policy, feats, BATCHES[lengths])
        output = run()
        device.reset()
        run()
    assert (output.x - expected.x).norm() < 0.05 * expected.x.norm()  # the GPU's kernels add up to the same
    if lengths == "ragged":
        launches += of_utterance * len(BATCHES[lengths])
    check(device, LAYERS * of_layer + launches, waits)
    if not waits:  # nothing then but launches: a CUDA graph can hold it
        assert not device.copies
    with device:  # with lengths that the device has, and gates as batches
        lengths_B = device.put(torch.tensor(BATCHES[lengths]))
        run = run_packed(backbone, policy, feats, lengths_B, "encode")
        device.reset()
        run()
    check(device, LAYERS * of_layer + launches + 8, waits + 1)


@pytest.mark.parametrize("kind", ["local", "global"])
@pytest.mark.parametrize(("path", "waits"), [("dense", 0), ("masked", 0), ("gathered", LAYERS)])
def test_the_forward_pass_of_training(device, path, waits, kind):
    """At most one wait for each layer, and none where every frame is computed."""
    feats, lengths = torch.randn(2, FULL, 80), torch.tensor([FULL, FULL])
    with device:
        backbone, policy = make_backbone(make_encoder().train()), gates(kind).train()
        device.put([backbone.net, policy, feats, lengths])
        dense = path == "dense"
        encode(backbone, feats, lengths, None if dense else policy, path="masked" if dense else path)
    check(device, 10**6, waits)


# path: launches, waits, of these the package's own (those left are of ESPnet's losses)
TRAINING = {"masked": (1403, 16, 3), "gathered": (1717, 16 + LAYERS, 3 + LAYERS)}


@pytest.mark.parametrize("path", TRAINING)
def test_a_training_step(device, espnet, batch, path):  # noqa: F811
    """Forward and backward, with the terms of its loss as numbers."""
    launches, waits, own = TRAINING[path]
    batch |= {"tasks": ["de", "de-fr", "fr"], "utt_ids": ["a", "b", "c"]}
    with device:
        model = GatedS2T(make_backbone(net=espnet), gates("local").train()).train()
        module = TrainingModule(model, composed(f"pruning.path={path}"), sample_rate=16_000)
        batch["signal"] = torch.tensor([[0, 24_000]] * 3)
        device.put([model, list(batch.values())])
        device.reset()
        module.training_step(batch, 0).backward()
    check(device, launches, waits)
    assert sum(count for line, count in device.waits.items() if line.startswith("localgp/")) <= own


# kind: launches of a layer, of the rest, waits; with CTC for a third of the score
STEP = {"dense": (16, 79, 1), "local": (27, 80, 1), "dense with CTC": (16, 174, 1)}


@pytest.mark.parametrize("kind", STEP)
def test_a_decoding_step(device, kind):
    """Of a search of five tokens less one of a single one."""
    of_layer, launches, waits = STEP[kind]
    model = make_model(0, eos_bias=-30.0)  # none ends before it has to
    memory, lengths = make_memory(0, [40])
    layers = len(model.decoder.decoders)
    policy = LocalGates(layers, SIZE, DECODER_MODULES, {"front": SIZE}, bias=0.0).eval()
    for layer in policy.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight, std=0.2)

    def decode(steps, dtype):
        options = DecodeOptions(beam=3, maxlenratio=-steps, ctc_weight=0.3 if "CTC" in kind else 0.0)
        search = BeamSearch(model.backbone, options, dtype=dtype)
        decide = StepGates(policy, {"front": memory.mean(1, keepdim=True)}) if kind == "local" else None
        device.reset()
        return search(memory, lengths, [PRIMER], decide)[0]

    expected = decode(5, torch.float32)
    found = {}
    with torch.no_grad(), device:
        device.put([model.decoder, model.ctc, memory, lengths, policy])
        for steps in (1, 5):
            decode(steps, torch.bfloat16)
            found[steps] = device.launches.copy(), device.waits.copy()
        output = decode(5, torch.float32)
        device.reset()
        device.launches.update(found[5][0] - found[1][0])
        device.waits.update(found[5][1] - found[1][1])
    check(device, 4 * (layers * of_layer + launches), 4 * waits)
    assert [one.tokens for one in output] == [one.tokens for one in expected]
    if kind == "local":
        for ours, theirs in zip(output, expected, strict=True):
            assert torch.equal(ours.open_PLM, theirs.open_PLM)
            assert 0 < theirs.open_PLM.float().mean() < 1
