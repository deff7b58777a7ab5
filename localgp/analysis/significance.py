"""Is a row's difference to a base more than the choice of test utterances, and how large may it be?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localgp.analysis.bootstrap import RESAMPLES, Difference, Scores, interval
from localgp.analysis.collect import Group
from localgp.analysis.tables import Table

# Base to the experiments compared with it; None for all. Row 6 and its control differ in whose voice is embedded.
BASES: dict[str, tuple[str, ...] | None] = {
    "row01": None,
    "row05": None,
    "control_shuffled_speaker": ("row06",),
}
LEVEL = 0.05
SIGNIFICANCE = (
    "Differences to row01 and to row05, and of row06 to the control with wrong speakers, by task: the mean over the "
    "seeds that both have, its 95 % confidence interval in brackets, and p of a paired bootstrap over test utterances "
    f"({RESAMPLES} resamples; BLEU: sacrebleu's; WER: the same procedure). The interval is the 2.5th to 97.5th "
    "percentile of the resampled differences; with several seeds each resample draws the seeds with replacement too "
    "and takes their mean, so that it covers both the choice of utterances and of seeds. p is of each seed on its own, "
    f"and the largest stands here. * marks p < {LEVEL} with the same sign in every seed. No correction for the number "
    "of tests."
)


def significance(groups: Sequence[Group], scores: Scores) -> Table | None:
    """A row for each experiment and base it can be compared with, a column for each task.

    None where there is nothing to compare, or the references are not at hand (the corpus is not prepared here).
    """
    by_name = {g.name: g for g in groups}
    tasks = tasks_of(groups, scores)
    rows = []
    for base, compared_with in BASES.items():
        if base not in by_name:
            continue
        for name, group in by_name.items():
            family = name.partition("-")[0]
            if name == base or (compared_with is not None and family not in compared_with):
                continue
            found = [differences(by_name[base], group, task, scores) for task in tasks]
            if any(found):
                rows.append([f"{name} - {base}", *(_cell(of_task) for of_task in found)])
    if not rows:
        return None
    written = [task for task in tasks if "-" not in task]
    spans = (("", 1), ("WER", len(written)), ("BLEU", len(tasks) - len(written)))
    return Table(["run", *tasks], rows, tuple(span for span in spans if span[1]))


def tasks_of(groups: Sequence[Group], scores: Scores) -> list[str]:
    """All tasks that any run wrote, recognition first."""
    names = {task for g in groups for run in g.runs for task in scores.texts(run)}
    return sorted(names, key=lambda task: ("-" in task, task))


def differences(base: Group, system: Group, task: str, scores: Scores) -> list[Difference]:
    """System minus base, of every seed that both have."""
    of_seed = {run.seed: run for run in base.runs}
    found = [scores.difference(of_seed[run.seed], run, task) for run in system.runs if run.seed in of_seed]
    return [difference for difference in found if difference is not None]


def _cell(found: Sequence[Difference]) -> str:
    if not found:
        return "-"
    changes = [d.change for d in found]
    p = max(1.0 if d.p is None else d.p for d in found)
    same_sign = all(c > 0 for c in changes) or all(c < 0 for c in changes)
    star = "*" if p < LEVEL and same_sign else ""
    return f"{show(found)} (p {p:.3f}){star}"


def show(found: Sequence[Difference], digits: int = 1) -> str:
    """Mean over seeds with its confidence interval."""
    low, high = interval(found)
    mean = np.mean([d.change for d in found])
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
