"""Samples that a caller hands over, NumPy's or PyTorch's, as float32 at full scale 1.

Shape legend: N samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from localgp.errors import AudioError

# Mixes and lossy codecs overshoot full scale by a few times; what is this far above it was never scaled to it.
LOUDEST = 16.0
_INTEGERS = (
    "int8",
    "int16",
    "int32",
    "uint8",
    "uint16",
)  # of audio files; an unsigned sample's middle is silence


def is_samples(source: object) -> bool:
    """Whether it is samples and not the name of a file."""
    return isinstance(source, np.ndarray | torch.Tensor)


def as_samples(given: Any, rate: int) -> np.ndarray:
    """Samples (N,), or one channel (1, N), to float32 (N,): integers by the range of their type, floats as they are.

    Args:
        given: A NumPy array, or a tensor on any device.
        rate: Hz that the model expects, for messages.

    Raises:
        AudioError: Of another shape or type, empty, not finite, or not at full scale 1.

    Examples:
        >>> as_samples(np.array([0, 16384, -32768], dtype=np.int16), 16_000).tolist()
        [0.0, 0.5, -1.0]
    """
    kind = str(given.dtype).removeprefix("torch.")
    shape = tuple(given.shape)
    expected = f"give one channel of samples (N,) at {rate} Hz, as floats of full scale 1 or as {', '.join(_INTEGERS)}"
    if isinstance(given, torch.Tensor):
        values = given.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
    else:
        array = given
    if array.dtype.kind != "f" and kind not in _INTEGERS:
        raise AudioError(f"samples of type {kind}; {expected}")
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1 or not len(array):
        raise AudioError(f"samples of shape {shape}; {expected}")
    if array.dtype.kind == "f":
        samples_N = np.ascontiguousarray(array, dtype=np.float32)
        _check_range(samples_N, kind, shape)
        return samples_N
    bits = 8 * array.dtype.itemsize
    middle = 2 ** (bits - 1) if array.dtype.kind == "u" else 0
    return ((array.astype(np.float64) - middle) / 2 ** (bits - 1)).astype(np.float32)


def _check_range(samples_N: np.ndarray, kind: str, shape: tuple[int, ...]) -> None:
    if not np.isfinite(samples_N).all():
        raise AudioError(
            f"samples of type {kind} and shape {shape} hold NaN or infinity; give finite samples"
        )
    peak = float(np.abs(samples_N).max())
    if peak > LOUDEST:
        raise AudioError(
            f"samples of type {kind} with a peak of {peak:g}; floats are of full scale 1: divide by 32768 what holds "
            "16-bit values, or give it in its integer type"
        )
