"""Samples from NumPy and PyTorch: what they are scaled by, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localgp.errors import AudioError
from localgp.transcription.samples import LOUDEST, as_samples

WAVE = 0.5 * np.sin(np.arange(400) / 7)
INTEGERS = {"int8": 7, "int16": 15, "int32": 31, "uint8": 7, "uint16": 15}


def stored(kind: str) -> np.ndarray:
    """The wave as an audio file of that type holds it."""
    middle = 2 ** INTEGERS[kind] if kind.startswith("u") else 0
    return np.rint(WAVE * 2 ** INTEGERS[kind] + middle).astype(kind)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_integers_are_scaled_by_their_type(kind, make):
    assert as_samples(make(stored(kind)), 16_000) == pytest.approx(
        WAVE, abs=max(1e-7, 2.0 ** -INTEGERS[kind])
    )


@pytest.mark.parametrize(
    "given",
    [
        WAVE,
        WAVE.astype(np.float16),
        WAVE.astype(np.float32)[None],
        torch.from_numpy(WAVE).requires_grad_(),
        torch.from_numpy(WAVE)[None],
        torch.from_numpy(WAVE).bfloat16(),
        np.stack([WAVE, WAVE], axis=1)[:, 0],
    ],
    ids=[
        "float64",
        "float16",
        "one channel",
        "with gradient",
        "one channel of a tensor",
        "bfloat16",
        "strided",
    ],
)
def test_floats_are_taken_as_they_are(given):
    samples = as_samples(given, 16_000)
    assert samples.dtype == np.float32
    assert samples.flags.c_contiguous
    assert samples == pytest.approx(WAVE, abs=2e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (WAVE * 32768, r"peak of 16384; .*divide by 32768"),
        (torch.full((5,), -2 * LOUDEST), "full scale 1"),
        (WAVE.astype(np.int64), r"type int64; give one channel.*int16"),
        (WAVE > 0, "type bool"),
        (WAVE.astype(complex), "type complex128"),
        (torch.tensor([1 + 2j]), "type complex64"),
        (np.array([object()]), "type object"),
        (np.array(["a"]), "type <U1"),
        (np.zeros((2, 9)), r"shape \(2, 9\); give one channel.*16000 Hz"),
        (torch.zeros(1, 1, 9), r"shape \(1, 1, 9\)"),
        (np.float32(0.5), r"shape \(\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.array([0.0, np.nan]), "NaN or infinity"),
        (torch.tensor([float("inf")]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_a_recording_is_refused(given, message):
    with pytest.raises(AudioError, match=message):
        as_samples(np.asarray(given) if isinstance(given, np.generic) else given, 16_000)


def test_a_hot_mix_is_no_mistake():
    assert float(as_samples(np.array([3.0, -2.0]), 16_000).max()) == 3.0
