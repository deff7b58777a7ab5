"""How many frames each gate opens, utterance by utterance and region by region: what all statistics start from.

Shape legend: U utterances, L layers, M gated modules of a layer, T encoder frames, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localgp.analysis.sources import Truth
from localgp.evaluation.gates_file import GateRecord
from localgp.timeline import frame_centres

REGIONS = ("speech", "pause", "padding")


def frames_in(intervals: Sequence[tuple[float, float]], frames: int, seconds_per_frame: float) -> np.ndarray:
    """True for the frames whose centre lies in one of the intervals (seconds), (T,).

    Example:
        >>> frames_in([(0.04, 0.12)], 4, 0.04).tolist()
        [False, True, True, False]
    """
    centre = frame_centres(frames, frames * seconds_per_frame)
    inside = np.zeros(frames, dtype=bool)
    for start, end in intervals:
        inside |= (centre >= start) & (centre < end)
    return inside


def speech_frames(record: GateRecord, truth: dict[str, Truth]) -> np.ndarray | None:
    """(U, T), True in true speech; None unless the truth about every utterance is known.

    Speech after the last frame with signal (a segment cut to the padded length) does not count.
    """
    if not all(utt_id in truth for utt_id in record.utt_ids):
        return None
    frames = record.open.shape[-1]
    offsets = record.real[:, 0] * record.seconds_per_frame
    inside = [
        frames_in(
            [(a + offset, b + offset) for a, b in truth[utt_id].speech], frames, record.seconds_per_frame
        )
        for utt_id, offset in zip(record.utt_ids, offsets, strict=True)
    ]
    return np.stack(inside) & record.real_mask()


@dataclass(frozen=True)
class GateCounts:
    """Attributes:
    regions: Names of the R regions, which divide all frames: `REGIONS`, or signal and padding.
    frames_UR: Frames of each region.
    open_ULMR: Those on which the module runs.
    """

    modules: tuple[str, ...]
    regions: tuple[str, ...]
    frames_UR: np.ndarray
    open_ULMR: np.ndarray

    @classmethod
    def of(cls, record: GateRecord, speech_UT: np.ndarray | None) -> GateCounts:
        real_UT = record.real_mask()
        if speech_UT is None:
            regions: tuple[str, ...] = ("signal", "padding")
            parts = [real_UT, ~real_UT]
        else:
            regions, parts = REGIONS, [speech_UT, real_UT & ~speech_UT, ~real_UT]
        inside_URT = np.stack(parts, axis=1).astype(np.float32)
        # One product an utterance: the whole set as floats would not fit memory with 30 s and 18 layers.
        opened = np.stack(
            [
                gates_LMT.astype(np.float32) @ inside_RT.T
                for gates_LMT, inside_RT in zip(record.open, inside_URT, strict=True)
            ]
        )
        return cls(
            tuple(record.modules), regions, inside_URT.sum(-1).astype(int), np.rint(opened).astype(int)
        )

    def _columns(self, region: str) -> list[int]:
        if region == "all":
            return list(range(len(self.regions)))
        if region == "real":
            return [i for i, name in enumerate(self.regions) if name != "padding"]
        return [self.regions.index(region)]

    def kept(self, region: str, utterances: np.ndarray | None = None) -> np.ndarray:
        """Share of the region's frames that run, (L, M); NaN where the region has no frames.

        Args:
            region: One of ``regions``, ``real`` (all but padding) or ``all``.
            utterances: Only these.
        """
        columns = self._columns(region)
        chosen = slice(None) if utterances is None else utterances
        opened = self.open_ULMR[chosen][..., columns].sum((0, 3))
        return _share(opened, self.frames_UR[chosen][:, columns].sum())

    def kept_by_utterance(self, region: str) -> np.ndarray:
        """The same for each utterance, averaged over the layers: (U, M)."""
        columns = self._columns(region)
        opened = self.open_ULMR[..., columns].sum(-1).mean(1)
        return _share(opened, self.frames_UR[:, columns].sum(-1, keepdims=True))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, part / np.asarray(whole, dtype=float), np.nan)
