"""The encoder's time: the moment that a frame stands for."""

from __future__ import annotations

import numpy as np


def frame_centres(frames: int, length: float) -> np.ndarray:
    """The middle of what each encoder frame sees, (T,), in the unit of ``length``.

    Frame t of the two 3x3 stride-2 convolutions sees the feature frames 4 t to 4 t + 6, and feature frame s is centred
    at s hops (the STFT is centred). So the middle is at 4 t + 3 hops, and an input of 4 (T + 1) hops has T frames.

    Args:
        frames: T.
        length: Of the padded input, in samples or seconds.

    Example:
        >>> frame_centres(749, 480_000)[:3].tolist()  # 30 s: 40 t + 30 ms
        [480.0, 1120.0, 1760.0]
    """
    return (np.arange(frames) + 0.75) * (length / (frames + 1))
