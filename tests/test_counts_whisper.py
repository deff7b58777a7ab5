"""What Whisper starts on a GPU and waits for, counted as in tests/test_counts.py."""

from __future__ import annotations

import pytest
import torch

from localgp.model import GatedS2T
from localgp.training.module import TrainingModule
from tests.count_helpers import (
    BATCHES,
    FORWARD,
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
from tests.decoding_helpers import make_memory
from tests.test_config import composed
from tests.whisper_helpers import tiny_whisper

# ruff: noqa: F811 (fixtures)

pytest.importorskip("transformers")
LAYERS = 2
# kind: launches of a layer, of the rest for utterances of one length, more for each of different lengths, waits
ENCODE = {"dense": (10, 9, 4, 0), "local": (12, 12, 5, 0), "global": (10, 20, 16, 1)}


@pytest.fixture
def backbone():
    return tiny_whisper()


@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("kind", ENCODE)
def test_encoding(device, backbone, kind, lengths):
    of_layer, launches, of_utterance, waits = ENCODE[kind]
    launches += LAYERS * of_layer
    if lengths == "ragged":
        launches += of_utterance * len(BATCHES[lengths])
    encode_twice(device, backbone, kind, BATCHES[lengths])
    check(device, launches, waits)
    lists = LAYERS if kind == "global" and lengths != "one" else 0
    ends = lengths == "ragged"  # which the convolutions are told
    assert sum(device.copies.values()) <= waits + lists + ends  # else a CUDA graph can hold it
    encode_batches(device, backbone, kind, BATCHES[lengths])
    check(device, launches + 8, waits + 1)


@pytest.mark.parametrize("kind", ["local", "global"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("path", FORWARD)
def test_the_forward_pass_of_training(device, backbone, path, window, kind):
    backbone.net.train()
    forward_of_training(device, backbone, kind, path, window)
    check(device, 10**6, FORWARD[path] * LAYERS + WINDOWS[window])


# path: launches, waits
TRAINING = {"masked": (782, 2), "gathered": (854, 2 + LAYERS)}


@pytest.mark.parametrize("path", TRAINING)
def test_a_training_step(device, backbone, path):
    """Forward and backward, with the terms of its loss as numbers: a second one, as filters are then there."""
    launches, waits = TRAINING[path]
    tokens = backbone.tokenizer
    text = torch.tensor([[*tokens.prompt("de", target), 65, 66, 67] for target in ("de", "en", "fr")])
    text[1, -1] = -1
    batch = {
        "speech": 0.1 * torch.randn(2, 24_000),
        "speech_lengths": torch.tensor([24_000, 24_000]),
        "signal": torch.tensor([[0, 24_000], [0, 24_000]]),
        "text": text,
        "text_prev": torch.full((3, 1), tokens.na),
        "utterance": torch.tensor([0, 0, 1]),
    }
    named = {"tasks": ["de", "de-en", "fr"], "utt_ids": ["a", "b"], "contexts": {}}
    with device:
        model = GatedS2T(backbone, gates("local", backbone).train()).train()
        cfg = composed("backbone=whisper_base", f"pruning.path={path}")
        module = TrainingModule(model, cfg, sample_rate=16_000)
        device.put([model, list(batch.values())])
        for _ in range(2):
            device.reset()
            module.training_step(batch | named, 0).backward()
    check(device, launches, waits)


# kind: launches of a layer, of the rest, waits
STEP = {
    "dense": (16, 93, 1),
    "local": (27, 94, 1),
    "with times": (16, 120, 1),
    "greedy": (16, 46, 1),
    "drawn": (16, 37, 1),  # by a generator of each utterance
}


@pytest.mark.parametrize("kind", STEP)
def test_a_decoding_step(device, backbone, kind):
    of_layer, launches, waits = STEP[kind]
    tokens = backbone.tokenizer
    with torch.no_grad():
        backbone.net.proj_out.weight[tokens.eos] = 0.0  # not likely
    primer = [*tokens.start, *tokens.prompt("de", "de", timestamps=kind == "with times")]
    found = search_steps(device, backbone, make_memory(0, [40, 40])[0], primer, kind)
    check(device, (STEPS - 1) * (LAYERS * of_layer + launches), (STEPS - 1) * waits)
    check_found(*found, kind)
