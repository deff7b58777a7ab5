"""What encoding, decoding and training start on a GPU and wait for, counted on a CPU against budgets: OWSM's.

A budget is what is needed now: who needs less lowers it, and who needs more has to say why.
"""

from __future__ import annotations

import pytest
import torch

from localgp.backbones import open_backbone
from localgp.encoder.run import encode
from localgp.model import GatedS2T
from localgp.training.module import TrainingModule
from tests.conftest import LAYERS, make_backbone, make_encoder
from tests.count_helpers import (
    BATCHES,
    FORWARD,
    FULL,
    STEPS,
    WINDOWS,
    check,
    check_found,
    device,  # noqa: F401 (a fixture)
    encode_batches,
    encode_twice,
    forward_of_training,
    gates,
    search_steps,
)
from tests.decoding_helpers import PRIMER, make_memory, make_model
from tests.owsm_helpers import describe
from tests.test_config import composed
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)
from tests.whisper_helpers import tiny_whisper

# ruff: noqa: F811 (fixtures)


def transformer():
    """Of OWSM v1 to v3's kind."""
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    torch.manual_seed(0)
    return TransformerEncoder(
        80, output_size=32, attention_heads=4, linear_units=64, num_blocks=LAYERS
    ).eval()


FAMILIES = {
    "v3.1": (make_encoder, 80),
    "v3": (transformer, 80),
    "v4": (lambda: make_encoder(mels=128, input_layer="conv2d8"), 128),
}  # encoder, mel bins
# kind: launches of a layer, of the rest for utterances of one length, more for each of different lengths, waits
ENCODE = {
    "v3.1": {"dense": (24, 10, 4, 0), "local": (26, 12, 4, 0), "global": (26, 20, 16, 1)},
    "v3": {"dense": (10, 10, 2, 0), "local": (12, 12, 5, 0), "global": (10, 20, 16, 1)},
    "v4": {"dense": (24, 12, 2, 0), "local": (26, 14, 5, 0), "global": (26, 22, 16, 1)},
}


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("kind", ["dense", "local", "global"])
@pytest.mark.parametrize("family", FAMILIES)
def test_encoding(device, family, kind, lengths):
    of_layer, launches, of_utterance, waits = ENCODE[family][kind]
    encoder, mels = FAMILIES[family]
    lengths = [
        max(n, 15) if family == "v4" else n for n in BATCHES[lengths]
    ]  # which eight frames make one of
    backbone = make_backbone(encoder())
    launches += LAYERS * of_layer
    if len(set(lengths)) > 1:
        launches += of_utterance * len(lengths)
    encode_twice(device, backbone, kind, lengths, mels)
    check(device, launches, waits)
    # Where nothing is waited for there are launches alone: a CUDA graph can hold it. Decisions on utterances need a
    # list of frames for each layer, and none if it is one utterance.
    lists = LAYERS if kind == "global" and len(lengths) > 1 else 0
    assert sum(device.copies.values()) <= waits + lists
    encode_batches(device, backbone, kind, lengths, mels)
    check(device, launches + 8, waits + 1)


@pytest.mark.parametrize("family", ["v3.1", "v3"])  # v4 has the layers of v3.1
@pytest.mark.parametrize("kind", ["local", "global"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("path", FORWARD)
def test_the_forward_pass_of_training(device, path, window, kind, family):
    encoder, mels = FAMILIES[family]
    forward_of_training(device, make_backbone(encoder().train()), kind, path, window, mels)
    check(device, 10**6, FORWARD[path] * LAYERS + WINDOWS[window])


@pytest.mark.parametrize("family", ["owsm", "whisper"])
@pytest.mark.parametrize("window", ["full", "utterance"])
def test_attention_has_a_mask_where_one_is_needed_alone(device, monkeypatch, window, family):
    """For which a GPU has its fastest kernel; a CPU computes what it always has."""
    backbone = make_backbone() if family == "owsm" else tiny_whisper()
    backbone.use_fast_kernels()
    masks, fused = [], torch.nn.functional.scaled_dot_product_attention

    def attend(query, key, value, attn_mask=None, **more):
        masks.append(attn_mask is not None)
        return fused(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    own = {"whole": window == "full", "ragged": window != "full"}
    lengths = torch.tensor([FULL, FULL if window == "full" else 120])
    feats, policy = torch.randn(2, FULL, 80), gates("local", backbone)
    layers = backbone.shape.encoder_layers
    on_cpu = encode(backbone, feats, lengths, **own)
    with device:
        device.put([backbone.net, policy, feats, lengths])
        found = encode(backbone, feats, lengths, **own)
        encode(backbone, feats, lengths, policy, path="masked", **own)
    assert masks == [True] * layers + [window != "full"] * layers + [True] * layers
    torch.testing.assert_close(found.x, on_cpu.x, atol=1e-5, rtol=1e-5)


# kind: launches, more for each utterance where their lengths differ, waits: one for the mask of ESPnet's prompt encoder
TOLD = {"dense": (210, 2, 1), "local": (218, 2, 1), "global": (195, 9, 2)}


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc") / "model"
    describe("ctc_v4", folder, cgmlp_linear_units=64)  # oneDNN's bf16 hangs on 16 channels
    return {"name": "tiny", "path": str(folder), "weights": "random"}


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("kind", TOLD)
def test_encoding_by_ctc(device, ctc, kind, lengths):
    """Of an encoder that is told what to write: its prompt is read with each batch."""
    launches, of_utterance, waits = TOLD[kind]
    lengths = [max(n, 15) for n in BATCHES[lengths]]
    backbone = open_backbone(ctc)
    backbone.net.eval()
    encode_twice(device, backbone, kind, lengths, 128)
    check(device, launches + of_utterance * len(lengths) * (len(set(lengths)) > 1), waits)


# path: launches, waits, of these the package's own (those left are of ESPnet's losses)
TRAINING = {"masked": (1405, 16, 3), "gathered": (1719, 16 + LAYERS, 3 + LAYERS)}


@pytest.mark.parametrize("path", TRAINING)
def test_a_training_step(device, espnet, batch, path):
    """Forward and backward, with the terms of its loss as numbers."""
    launches, waits, own = TRAINING[path]
    batch |= {"tasks": ["de", "de-fr", "fr"], "utt_ids": ["a", "b", "c"]}
    backbone = make_backbone(net=espnet)
    with device:
        model = GatedS2T(backbone, gates("local", backbone).train()).train()
        module = TrainingModule(model, composed(f"pruning.path={path}"), sample_rate=16_000)
        batch["signal"] = torch.tensor([[0, 24_000]] * 3)
        device.put([model, list(batch.values())])
        device.reset()
        module.training_step(batch, 0).backward()
    check(device, launches, waits)
    assert sum(count for line, count in device.waits.items() if line.startswith("localgp/")) <= own


# kind: launches of a layer, of the rest, waits; with CTC for a third of the score
STEP = {
    "dense": (16, 79, 1),
    "local": (27, 80, 1),
    "dense with CTC": (16, 174, 1),
    "with times": (16, 141, 1),
    "greedy": (16, 32, 1),
    "random, by utterance": (26, 79, 1),
}


@pytest.mark.parametrize("kind", STEP)
def test_a_decoding_step(device, kind):
    """Of a search of five tokens less one of a single one."""
    of_layer, launches, waits = STEP[kind]
    backbone = make_model(0, eos_bias=-30.0).backbone  # none ends before it has to
    primer = PRIMER[:-1] if kind == "with times" else PRIMER
    found = search_steps(device, backbone, make_memory(0, [40, 40])[0], primer, kind)
    layers = backbone.shape.decoder_layers
    check(device, (STEPS - 1) * (layers * of_layer + launches), (STEPS - 1) * waits)
    check_found(*found, kind)
