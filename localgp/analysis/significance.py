"""Paired bootstrap tests: is a row's difference to row01 or row05 more than the choice of test utterances?

BLEU is tested by sacrebleu. WER is tested here by the same procedure: utterances are drawn with replacement, the same
ones for both systems, and both are scored on what was drawn.

Shape legend: U utterances, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.analysis.collect import Evaluated, Group
from localgp.analysis.sources import read_hypotheses
from localgp.analysis.study import Corpora
from localgp.analysis.tables import Table
from localgp.evaluation.score import normalize

BASES = ("row01", "row05")
RESAMPLES, SEED, LEVEL = 1000, 12345, 0.05
SIGNIFICANCE = (
    f"Differences to row01 and to row05 by task (mean over the seeds that both have), with the p of a paired "
    f"bootstrap over test utterances ({RESAMPLES} resamples; BLEU: sacrebleu's; WER: the same procedure). With several "
    f"seeds each is tested on its own, and the largest p stands here. * marks p < {LEVEL} with the same sign in every "
    "seed. No correction for the number of tests."
)


@dataclass(frozen=True)
class Difference:
    """Attributes:
    change: System minus base, on the whole set.
    p: Of the null hypothesis that there is no difference.
    """

    change: float
    p: float


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
    rng = np.random.default_rng(SEED)
    drawn_RU = rng.integers(len(words_U), size=(RESAMPLES, len(words_U)))
    delta_U = system_U - base_U
    change = 100 * delta_U.sum() / words_U.sum()
    resampled_R = 100 * delta_U[drawn_RU].sum(1) / words_U[drawn_RU].sum(1).clip(min=1)
    # As sacrebleu: under the null hypothesis the resampled differences scatter around 0 and not around their mean.
    beyond = np.abs(resampled_R - resampled_R.mean()) > abs(change)
    return Difference(float(change), float((beyond.sum() + 1) / (RESAMPLES + 1)) if change else 1.0)


def compare_bleu(
    references: Sequence[str], base: Sequence[str], systems: Mapping[str, Sequence[str]]
) -> dict[str, Difference]:
    """BLEU of several systems against one base, by sacrebleu's paired bootstrap."""
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    named: list[tuple[str, Sequence[str]]] = [
        ("base", list(base)),
        *((name, list(texts)) for name, texts in systems.items()),
    ]
    test = PairedTest(
        named, {"BLEU": BLEU()}, [list(references)], test_type="bs", n_samples=RESAMPLES, n_jobs=1
    )
    _, found = test()
    scores: Any = next(values for metric, values in found.items() if metric != "System")
    return {
        name: Difference(float(result.score - scores[0].score), float(result.p_value))
        for name, result in zip(systems, scores[1:], strict=True)
    }


def significance(groups: Sequence[Group], corpora: Corpora) -> Table | None:
    """A row for each experiment and base it can be compared with, a column for each task.

    None where there is nothing to compare, or the references are not at hand (the corpus is not prepared here).
    """
    by_name = {g.name: {run.seed: run for run in g.runs} for g in groups}
    texts = {run.key: read_hypotheses(run) for g in groups for run in g.runs}
    tasks = sorted({task for found in texts.values() for task in found}, key=lambda t: ("-" in t, t))
    rows = []
    for base in BASES:
        found: dict[str, dict[str, list[Difference]]] = {}
        for seed, base_run in by_name.get(base, {}).items():
            others = {name: runs[seed] for name, runs in by_name.items() if name != base and seed in runs}
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
    return f"{np.mean(changes):+.1f} (p {p:.3f}){'*' if p < LEVEL and same_sign else ''}"
