"""Paired bootstrap: is a row's difference to a base more than the choice of test utterances, and how large may it be?

Utterances are drawn with replacement, the same ones for both systems and for all seeds, and both systems are scored on
what was drawn. For BLEU, draws, scores and p are those of sacrebleu's paired bootstrap.

Shape legend: U utterances, R resamples, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from localgp.analysis.collect import Evaluated, Group
from localgp.analysis.sources import read_hypotheses
from localgp.analysis.study import Corpora
from localgp.analysis.tables import Table
from localgp.evaluation.score import normalize

# Base to the experiments compared with it; None for all. Row 6 and its control differ in whose voice is embedded.
BASES: dict[str, tuple[str, ...] | None] = {
    "row01": None,
    "row05": None,
    "control_shuffled_speaker": ("row06",),
}
RESAMPLES, SEED, LEVEL = 1000, 12345, 0.05
SIGNIFICANCE = (
    "Differences to row01 and to row05, and of row06 to the control with wrong speakers, by task: the mean over the "
    "seeds that both have, its 95 % confidence interval in brackets, and p of a paired bootstrap over test utterances "
    f"({RESAMPLES} resamples; BLEU: sacrebleu's; WER: the same procedure). The interval is the 2.5th to 97.5th "
    "percentile of the resampled differences; with several seeds each resample draws the seeds with replacement too "
    "and takes their mean, so that it covers both the choice of utterances and of seeds. p is of each seed on its own, "
    f"and the largest stands here. * marks p < {LEVEL} with the same sign in every seed. No correction for the number "
    "of tests."
)


@dataclass(frozen=True)
class Difference:
    """Of one seed.

    Attributes:
        change: System minus base, on the whole set.
        p: Of the null hypothesis that there is no difference.
        resampled_R: System minus base, on each resample of the utterances.
    """

    change: float
    p: float
    resampled_R: np.ndarray


def word_counts(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Word errors and reference words of every utterance, (U,) each."""
    import jiwer

    errors, words = [], []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        found = jiwer.process_words(reference, hypothesis)
        errors.append(found.substitutions + found.deletions + found.insertions)
        words.append(found.substitutions + found.deletions + found.hits)
    return np.array(errors, dtype=float), np.array(words, dtype=float)


def compare_wer(references: Sequence[str], base: Sequence[str], system: Sequence[str]) -> Difference:
    """WER in percent; texts are normalised already."""
    base_U, words_U = word_counts(references, base)
    system_U, _ = word_counts(references, system)
    drawn_RU = draw(len(words_U))
    delta_U = system_U - base_U
    change = 100 * delta_U.sum() / words_U.sum()
    resampled_R = 100 * delta_U[drawn_RU].sum(1) / words_U[drawn_RU].sum(1).clip(min=1)
    # Under the null hypothesis the resampled differences scatter around 0 and not around their mean.
    beyond = np.abs(resampled_R - resampled_R.mean()) > abs(change)
    return Difference(float(change), _p(beyond) if change else 1.0, resampled_R)


def bleu_statistics(references: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """What corpus BLEU is summed from, (U, 10): both lengths, matching n-grams and all n-grams, n = 1 to 4."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(
        effective_order=True
    )  # of no effect on the counts; sacrebleu asks for it with single sentences
    found = [metric.sentence_score(h, [r]) for r, h in zip(references, hypotheses, strict=True)]
    return np.array([[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in found])


def bleu_of(statistics: np.ndarray) -> float:
    """Corpus BLEU of summed statistics (10,), with sacrebleu's defaults."""
    from sacrebleu.metrics import BLEU

    sys_len, ref_len, *counts = (int(value) for value in statistics)
    return float(BLEU.compute_bleu(counts[:4], counts[4:], sys_len, ref_len, smooth_method="exp").score)


def compare_bleu(
    references: Sequence[str], base: Sequence[str], systems: Mapping[str, Sequence[str]]
) -> dict[str, Difference]:
    """BLEU of several systems against one base, by sacrebleu's paired bootstrap."""
    drawn_RU = draw(len(references))

    def score(texts: Sequence[str]) -> tuple[float, np.ndarray]:
        statistics = bleu_statistics(references, texts)
        return bleu_of(statistics.sum(0)), np.array([bleu_of(statistics[u].sum(0)) for u in drawn_RU])

    of_base, base_R = score(base)
    differences = {}
    for name, texts in systems.items():
        of_system, system_R = score(texts)
        change, resampled_R = of_system - of_base, system_R - base_R
        apart_R = np.abs(resampled_R)
        differences[name] = Difference(change, _p(apart_R - apart_R.mean() > abs(change)), resampled_R)
    return differences


def draw(utterances: int) -> np.ndarray:
    """The utterances of every resample, (R, U); the same ones whenever there are as many."""
    return np.random.default_rng(SEED).integers(utterances, size=(RESAMPLES, utterances))


def interval(differences: Sequence[Difference]) -> tuple[float, float]:
    """95 % confidence interval of the mean difference over seeds: seeds and utterances are both resampled.

    Seeds share a resample's utterances, so that what the seeds have in common in an utterance does not cancel.
    """
    resampled_SR = np.stack([d.resampled_R for d in differences])
    seeds, resamples = resampled_SR.shape
    drawn_SR = np.random.default_rng(SEED).integers(seeds, size=(seeds, resamples))
    low, high = np.percentile(np.take_along_axis(resampled_SR, drawn_SR, 0).mean(0), [2.5, 97.5])
    return float(low), float(high)


def _p(beyond_R: np.ndarray) -> float:
    return float((beyond_R.sum() + 1) / (RESAMPLES + 1))


def significance(groups: Sequence[Group], corpora: Corpora) -> Table | None:
    """A row for each experiment and base it can be compared with, a column for each task.

    None where there is nothing to compare, or the references are not at hand (the corpus is not prepared here).
    """
    by_name = {g.name: {run.seed: run for run in g.runs} for g in groups}
    texts = {run.key: read_hypotheses(run) for g in groups for run in g.runs}
    tasks = sorted({task for found in texts.values() for task in found}, key=lambda t: ("-" in t, t))
    rows = []
    for base, compared_with in BASES.items():
        found: dict[str, dict[str, list[Difference]]] = {}
        for seed, base_run in by_name.get(base, {}).items():
            others = {
                name: runs[seed]
                for name, runs in by_name.items()
                if name != base and seed in runs and (compared_with is None or name in compared_with)
            }
            for task in tasks:
                compared = _compare(base_run, others, texts, task, corpora)
                for name, difference in compared.items():
                    found.setdefault(name, {}).setdefault(task, []).append(difference)
        for name in by_name:
            if name in found:
                cells = [_cell(found[name].get(task, [])) for task in tasks]
                rows.append([f"{name} - {base}", *cells])
    if not rows:
        return None
    written = [task for task in tasks if "-" not in task]
    spans = (("", 1), ("WER", len(written)), ("BLEU", len(tasks) - len(written)))
    return Table(["run", *tasks], rows, tuple(span for span in spans if span[1]))


def _compare(
    base: Evaluated,
    others: dict[str, Evaluated],
    texts: dict[str, dict[str, dict[str, str]]],
    task: str,
    corpora: Corpora,
) -> dict[str, Difference]:
    """Systems that wrote the same utterances of the task as the base; the others are left out."""
    base_texts = texts[base.key].get(task, {})
    ids = sorted(base_texts)
    utterances = corpora.of(base, ids) if ids else None
    others = {n: run for n, run in others.items() if texts[run.key].get(task, {}).keys() == base_texts.keys()}
    if utterances is None or not others:
        return {}
    references = [utterances.references(utt_id)[task] for utt_id in ids]
    of_base = [base_texts[utt_id] for utt_id in ids]
    systems = {name: [texts[run.key][task][utt_id] for utt_id in ids] for name, run in others.items()}
    if "-" in task:
        return compare_bleu(references, of_base, systems)
    rule = str(base.metrics["decode"].get("normalizer", "none"))
    plain = [normalize(text, rule) for text in references]
    plain_base = [normalize(text, rule) for text in of_base]
    return {
        name: compare_wer(plain, plain_base, [normalize(text, rule) for text in written])
        for name, written in systems.items()
    }


def _cell(differences: Sequence[Difference]) -> str:
    if not differences:
        return "-"
    changes = [d.change for d in differences]
    p = max(d.p for d in differences)
    same_sign = all(c > 0 for c in changes) or all(c < 0 for c in changes)
    low, high = interval(differences)
    star = "*" if p < LEVEL and same_sign else ""
    return f"{np.mean(changes):+.1f} [{low:+.1f}, {high:+.1f}] (p {p:.3f}){star}"
