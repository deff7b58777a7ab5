"""Do the gates find speech, and what does the share they keep depend on?

Shape legend: U utterances, L layers, M gated modules, T encoder frames, K frames with signal of one utterance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.analysis.gate_counts import GateCounts
from localgp.evaluation.gates_file import GateRecord


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
    """Args:
    speech_UT: True speech, `localgp.analysis.gate_counts.speech_frames`.
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

    Example:
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
