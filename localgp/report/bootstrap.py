"""Paired bootstrap over test utterances, for WER and BLEU.

Utterances are drawn with replacement, the same ones for all systems and seeds, and each system is scored on what was
drawn. For BLEU, draws, scores and p are those of sacrebleu's paired bootstrap.

Shape legend: U utterances, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from localgp.evaluation.score import normalize
from localgp.report.runs import Evaluated
from localgp.report.utterances import Corpora, read_hypotheses

RESAMPLES, SEED = 1000, 12345


@dataclass(frozen=True)
class Scored:
    """One system on one task.

    Attributes:
        score: WER in percent, or BLEU, on the whole set.
        resampled_R: The same on each resample of the utterances.
    """

    score: float
    resampled_R: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Of one seed.

    Attributes:
        change: System minus base, on the whole set.
        p: Of the null hypothesis that there is no difference; None for an average over tasks.
        resampled_R: System minus base, on each resample of the utterances.
    """

    change: float
    p: float | None
    resampled_R: np.ndarray


def draw(utterances: int) -> np.ndarray:
    """The utterances of every resample, (R, U); the same ones whenever there are as many."""
    return np.random.default_rng(SEED).integers(utterances, size=(RESAMPLES, utterances))


def score_wer(references: Sequence[str], hypotheses: Sequence[str]) -> Scored:
    """WER in percent; texts are normalised already."""
    import jiwer

    errors, words = [], []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = jiwer.process_words(reference, hypothesis)
        errors.append(found.substitutions + found.deletions + found.insertions)
        words.append(found.substitutions + found.deletions + found.hits)
    errors_U, words_U = np.array(errors, dtype=float), np.array(words, dtype=float)
    drawn_RU = draw(len(words))
    resampled_R = 100 * errors_U[drawn_RU].sum(1) / words_U[drawn_RU].sum(1).clip(min=1)
    return Scored(float(100 * errors_U.sum() / max(1.0, words_U.sum())), resampled_R)


def score_bleu(references: Sequence[str], hypotheses: Sequence[str]) -> Scored:
    """BLEU with sacrebleu's defaults."""
    from sacrebleu.metrics import BLEU

    # The effective order is of no effect on the counts; sacrebleu asks for it with single sentences.
    metric = BLEU(effective_order=True)
    found = [metric.sentence_score(h, [r]) for r, h in zip(references, hypotheses, strict=True)]
    statistics_UK = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in found], dtype=float)
    resampled_RK = np.stack([statistics_UK[drawn_U].sum(0) for drawn_U in draw(len(found))])
    return Scored(float(bleu_of(statistics_UK.sum(0))), bleu_of(resampled_RK))


def bleu_of(statistics: np.ndarray) -> np.ndarray:
    """Corpus BLEU as sacrebleu computes it by default (exponential smoothing), of summed statistics (..., 10): both
    lengths, matching n-grams, all n-grams, n = 1 to 4.

    Examples:
        >>> round(float(bleu_of(np.array([6, 6, 5, 3, 2, 1, 6, 5, 4, 3]))), 2)
        53.73
    """
    system, reference = statistics[..., 0], statistics[..., 1]
    correct, total = statistics[..., 2:6], statistics[..., 6:10]
    missed = (correct == 0) & (total > 0)
    precision = np.where(missed, 2.0 ** -np.cumsum(missed, -1), correct) / np.maximum(total, 1)
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(precision).mean(-1))  # 0 where an order has no n-grams at all
        brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(system, 1e-9)))
    return np.where(correct.any(-1), 100 * brevity * mean, 0.0)


def compare_wer(base: Scored, system: Scored) -> Difference:
    change, resampled_R = system.score - base.score, system.resampled_R - base.resampled_R
    # Under the null hypothesis the resampled differences scatter around 0 and not around their mean.
    beyond_R = np.abs(resampled_R - resampled_R.mean()) > abs(change)
    return Difference(change, _p(beyond_R) if change else 1.0, resampled_R)


def compare_bleu(base: Scored, system: Scored) -> Difference:
    change, resampled_R = system.score - base.score, system.resampled_R - base.resampled_R
    apart_R = np.abs(resampled_R)
    return Difference(change, _p(apart_R - apart_R.mean() > abs(change)), resampled_R)


def _p(beyond_R: np.ndarray) -> float:
    return float((beyond_R.sum() + 1) / (RESAMPLES + 1))


def average(differences: Sequence[Difference]) -> Difference:
    """Of one seed's tasks: the difference of the average scores."""
    return Difference(
        float(np.mean([d.change for d in differences])),
        None,
        np.mean([d.resampled_R for d in differences], axis=0),
    )


def interval(differences: Sequence[Difference]) -> tuple[float, float]:
    """95 % confidence interval of the mean difference over seeds: seeds and utterances are both resampled.

    Seeds share a resample's utterances, so that what the seeds have in common in an utterance does not cancel.
    """
    resampled_SR = np.stack([d.resampled_R for d in differences])
    seeds, resamples = resampled_SR.shape
    drawn_SR = np.random.default_rng(SEED).integers(seeds, size=(seeds, resamples))
    low, high = np.percentile(np.take_along_axis(resampled_SR, drawn_SR, 0).mean(0), [2.5, 97.5])
    return float(low), float(high)


class Scores:
    """Runs scored on every resample, each run and task once however often it is compared.

    Args:
        corpora: Where the references are found.
    """

    def __init__(self, corpora: Corpora) -> None:
        self._corpora = corpora
        self._texts: dict[str, dict[str, dict[str, str]]] = {}
        self._scored: dict[tuple[str, str], Scored | None] = {}

    def texts(self, run: Evaluated) -> dict[str, dict[str, str]]:
        """Task to utterance id to hypothesis."""
        if run.key not in self._texts:
            self._texts[run.key] = read_hypotheses(run)
        return self._texts[run.key]

    def difference(self, base: Evaluated, system: Evaluated, task: str) -> Difference | None:
        """System minus base; None unless both wrote the same utterances of the task, scored by the same rule, and
        their references are at hand."""
        of_base, of_system = (self.texts(run).get(task, {}) for run in (base, system))
        if not of_base or of_base.keys() != of_system.keys() or _rule(base) != _rule(system):
            return None
        first, second = self._score(base, task), self._score(system, task)
        if first is None or second is None:
            return None
        return compare_bleu(first, second) if "-" in task else compare_wer(first, second)

    def _score(self, run: Evaluated, task: str) -> Scored | None:
        key = run.key, task
        if key not in self._scored:
            written = self.texts(run)[task]
            ids = sorted(written)
            utterances = self._corpora.of(run, ids)
            if utterances is None:
                self._scored[key] = None
                return None
            references = [utterances.references(utt_id)[task] for utt_id in ids]
            hypotheses = [written[utt_id] for utt_id in ids]
            if "-" in task:
                self._scored[key] = score_bleu(references, hypotheses)
            else:
                plain = [[normalize(t, _rule(run)) for t in texts] for texts in (references, hypotheses)]
                self._scored[key] = score_wer(*plain)
        return self._scored[key]


def _rule(run: Evaluated) -> str:
    return str(run.metrics["decode"].get("normalizer", "none"))
