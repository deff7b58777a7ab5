"""How many frames each gate opens, utterance by utterance and region by region: what all statistics start from.

Shape legend: U utterances, L layers, M gated modules of a layer, T encoder frames, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.evaluation.gates_file import GateRecord
from localgp.report.utterances import Truth

REGIONS = ("speech", "pause", "padding")


def frames_in(intervals: Sequence[tuple[float, float]], centre_T: np.ndarray) -> np.ndarray:
    """True for the frames whose centre lies in one of the intervals (seconds), (T,).

    Examples:
        >>> frames_in([(0.04, 0.12)], np.array([0.02, 0.06, 0.1, 0.14])).tolist()
        [False, True, True, False]
    """
    inside = np.zeros(len(centre_T), dtype=bool)
    for start, end in intervals:
        inside |= (centre_T >= start) & (centre_T < end)
    return inside


def speech_frames(record: GateRecord, truth: dict[str, Truth]) -> np.ndarray | None:
    """(U, T), True in true speech; None unless the truth about every utterance is known.

    Speech after the last frame with signal (a segment cut to the padded length) does not count.
    """
    if not all(utt_id in truth for utt_id in record.utt_ids):
        return None
    centre_T = record.centres()
    offsets = record.real[:, 0] * record.seconds_per_frame
    inside = [
        frames_in([(a + offset, b + offset) for a, b in truth[utt_id].speech], centre_T)
        for utt_id, offset in zip(record.utt_ids, offsets, strict=True)
    ]
    return np.stack(inside) & record.real_mask()


@dataclass(frozen=True)
class GateCounts:
    """Open frames by region, utterance, layer and module.

    Attributes:
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
        padding_UT = record.own_mask() & ~real_UT
        if speech_UT is None:
            regions: tuple[str, ...] = ("signal", "padding")
            parts = [real_UT, padding_UT]
        else:
            regions, parts = REGIONS, [speech_UT, real_UT & ~speech_UT, padding_UT]
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


@dataclass(frozen=True)
class Agreement:
    """Mask against true speech, over the frames with signal (padding is left out: it is silence by construction).

    The energy VAD beside each mask opens as many frames of every utterance as the mask does, the loudest ones, so
    that the two differ in where they are open and not in how much. ``auc`` is that of a binary decision, the mean
    of the true positive and the true negative rate; 0.5 is chance, whatever the share kept.

    Attributes:
        speech_share: Share of speech among frames with signal: the precision of keeping everything.
        precision, recall, auc: Of the mask, (L, M).
        energy_precision, energy_recall, energy_auc: Of the energy VAD at the mask's share, (L, M).
        energy_curve_auc: Of the energy VAD over all thresholds, which needs no mask.
    """

    speech_share: float
    precision: np.ndarray
    recall: np.ndarray
    auc: np.ndarray
    energy_precision: np.ndarray
    energy_recall: np.ndarray
    energy_auc: np.ndarray
    energy_curve_auc: float


def agreement(
    record: GateRecord, counts: GateCounts, speech_UT: np.ndarray, levels_UT: np.ndarray
) -> Agreement:
    """How well an energy threshold and gates agree with true speech.

    Args:
        speech_UT: True speech, `localgp.report.gate_statistics.speech_frames`.
        levels_UT: dB, `localgp.spectrogram.frame_levels`.
    """
    speech, pause = counts.regions.index("speech"), counts.regions.index("pause")
    true_LM = counts.open_ULMR[..., speech].sum(0)
    false_LM = counts.open_ULMR[..., pause].sum(0)
    speech_total, pause_total = counts.frames_UR[:, [speech, pause]].sum(0)
    energy_true_LM = _energy_hits(record, counts, speech_UT, levels_UT)
    energy_false_LM = true_LM + false_LM - energy_true_LM  # as many frames open
    precision, recall, auc = _rates(true_LM, false_LM, speech_total, pause_total)
    energy = _rates(energy_true_LM, energy_false_LM, speech_total, pause_total)
    real_UT = record.real_mask()
    # Levels relative to each utterance's loud parts, so that one threshold serves all of them.
    relative = np.concatenate(
        [x[r] - np.quantile(x[r], 0.95) for x, r in zip(levels_UT, real_UT, strict=True) if r.any()]
    )
    labels = np.concatenate([s[r] for s, r in zip(speech_UT, real_UT, strict=True)])
    return Agreement(
        speech_share=float(speech_total / max(1, speech_total + pause_total)),
        precision=precision,
        recall=recall,
        auc=auc,
        energy_precision=energy[0],
        energy_recall=energy[1],
        energy_auc=energy[2],
        energy_curve_auc=rank_auc(relative, labels),
    )


def _energy_hits(
    record: GateRecord, counts: GateCounts, speech_UT: np.ndarray, levels_UT: np.ndarray
) -> np.ndarray:
    """Speech frames among the loudest n of every utterance, n being what the mask opens there; (L, M)."""
    speech, pause = counts.regions.index("speech"), counts.regions.index("pause")
    opened_ULM = counts.open_ULMR[..., speech] + counts.open_ULMR[..., pause]
    hits = np.zeros(opened_ULM.shape[1:], dtype=int)
    for utterance, real in enumerate(record.real_mask()):
        loudest_first = np.argsort(-levels_UT[utterance, real], kind="stable")
        found = np.concatenate([[0], np.cumsum(speech_UT[utterance, real][loudest_first])])
        hits += found[opened_ULM[utterance]]
    return hits


def _rates(
    true: np.ndarray, false: np.ndarray, positives: int, negatives: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true + false > 0, true / (true + false), np.nan)
        recall = true / np.float64(positives)
        return precision, recall, (recall + 1 - false / np.float64(negatives)) / 2


def rank_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Examples:
        >>> rank_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
        1.0
    """
    from scipy.stats import rankdata

    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)[labels].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True)
class Relation:
    """Spearman's rank correlation of the share kept with a property of the utterance."""

    n: int
    rho: float
    p: float


def relation(kept_U: np.ndarray, property_U: np.ndarray) -> Relation | None:
    """None where fewer than 3 utterances have the property, or one of the two does not vary."""
    from scipy.stats import spearmanr

    known = np.isfinite(kept_U) & np.isfinite(property_U)
    x, y = kept_U[known], property_U[known]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result: Any = spearmanr(x, y)
    return Relation(len(x), float(result.statistic), float(result.pvalue))


def word_rates(transcripts: Sequence[str], speech_seconds: Sequence[float]) -> np.ndarray:
    """Words per second of speech (of the segment, where its speech is not known); NaN without any."""
    words = np.array([len(t.split()) for t in transcripts], dtype=float)
    seconds = np.asarray(speech_seconds, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seconds > 0, words / seconds, np.nan)
