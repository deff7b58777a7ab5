"""The encoder's time: how many frames a signal makes, and the moment that each stands for.

Shape legend: B utterances, T encoder frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Convolution(NamedTuple):
    """One of a stem's convolutions, along time."""

    width: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class Timeline:
    """Where a stem's frames lie on the signal.

    Feature frame s is centred at s hops (the STFT is centred). A stack of convolutions makes encoder frames of them:
    frame t sees `reach` feature frames from `first` + `stride` t on.

    Attributes:
        hop: Samples from one feature frame to the next.
        convolutions: In their order.
        extra: Feature frames that a signal has beyond its whole hops: 1 where the STFT's last one is kept.
        told: Frames before the signal's, which stand for what an encoder is told of its task: the timeline begins so
            many frames before it.

    Examples:
        >>> owsm = Timeline(160, (Convolution(3, 2), Convolution(3, 2)))
        >>> owsm.frames(owsm.feature_frames(480_000))  # 30 s
        749
        >>> owsm.centres(3).tolist()  # 40 t + 30 ms
        [480.0, 1120.0, 1760.0]
    """

    hop: int
    convolutions: tuple[Convolution, ...]
    extra: int = 1
    told: int = 0

    def feature_frames(self, samples: Any) -> Any:
        """Of one signal, or of each in a tensor."""
        return samples // self.hop + self.extra

    def frames_of(self, feature_frames_B: Tensor) -> Tensor:
        """`frames` of each."""
        for width, stride, padding in self.convolutions:
            feature_frames_B = ((feature_frames_B + 2 * padding - width) // stride + 1).clamp(min=0)
        return feature_frames_B + self.told * (feature_frames_B > 0) if self.told else feature_frames_B

    def frames(self, feature_frames: int) -> int:
        """Encoder frames; 0 where there are too few feature frames for one."""
        for width, stride, padding in self.convolutions:
            feature_frames = max(0, (feature_frames + 2 * padding - width) // stride + 1)
        return feature_frames + self.told if feature_frames else 0

    @cached_property
    def stride(self) -> int:
        """Feature frames from one encoder frame to the next."""
        stride = 1
        for convolution in self.convolutions:
            stride *= convolution.stride
        return stride

    @cached_property
    def reach(self) -> int:
        """Feature frames that an encoder frame sees."""
        reach, stride = 1, 1
        for convolution in self.convolutions:
            reach += (convolution.width - 1) * stride
            stride *= convolution.stride
        return reach

    @cached_property
    def first(self) -> int:
        """The first feature frame that encoder frame 0 sees; negative where it begins in padding, or before the
        signal."""
        first, stride = -self.told * self.stride, 1
        for convolution in self.convolutions:
            first -= convolution.padding * stride
            stride *= convolution.stride
        return first

    @cached_property
    def shortest(self) -> int:
        """Feature frames that make one encoder frame, at least."""
        return next(n for n in range(1, self.reach + 1) if self.frames(n) > 0)

    def centres(self, frames: int) -> np.ndarray:
        """The middle of what each encoder frame sees, (T,), in samples."""
        return (self.stride * np.arange(frames) + self.first + (self.reach - 1) / 2) * self.hop

    def real(self, signal_B2: Tensor, frames: int) -> Tensor:
        """1 for the encoder frames with signal under their centre, 0 for padding; (B, frames).

        Args:
            signal_B2: First sample of the signal, and the first after it.
        """
        centre_T = _on(self, frames, signal_B2.device)
        return ((centre_T >= signal_B2[:, :1]) & (centre_T < signal_B2[:, 1:])).float()


@lru_cache(maxsize=4)
def _on(timeline: Timeline, frames: int, device: torch.device) -> Tensor:
    import torch

    return torch.from_numpy(timeline.centres(frames)).to(device)


def frame_centres(frames: int, length: float) -> np.ndarray:
    """`Timeline.centres` of stored gates, in the unit of ``length``, for stems of OWSM's kind: an input of
    4 (T + 1) hops has T frames, whose middles are at 4 t + 3 hops.

    Args:
        frames: T.
        length: Of the padded input, in samples or seconds.
    """
    return (np.arange(frames) + 0.75) * (length / (frames + 1))
