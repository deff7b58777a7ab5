"""Is a row's difference to a base more than the choice of test utterances, and how large may it be?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.report.bootstrap import RESAMPLES, Difference, Scores, average, interval
from localgp.report.runs import Group
from localgp.tables import NOT_RUN, Column, Table, render

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
    rows, done = [], set[str]()
    for base, compared_with in BASES.items():
        if base not in by_name:
            continue
        for name, group in by_name.items():
            family = name.partition("-")[0]
            if (
                name == base
                or f"{base} - {name}" in done
                or (compared_with is not None and family not in compared_with)
            ):
                continue
            found = [differences(by_name[base], group, task, scores) for task in tasks]
            if any(found):
                done.add(f"{name} - {base}")  # a comparison stands once, not in both directions
                rows.append((f"{name} - {base}", *map(_cell, found)))
    if not rows:
        return None
    kinds = ["BLEU" if "-" in task else "WER" for task in tasks]
    columns = [Column(task, i, span=kind) for i, (task, kind) in enumerate(zip(tasks, kinds, strict=True), 1)]
    return render(rows, [Column("run", 0), *columns])


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


@dataclass(frozen=True)
class Question:
    """A pair of experiments that a reader would compare.

    Attributes:
        system, base: Experiments; their variants are compared too.
        asked: What they differ in.
    """

    system: str
    base: str
    asked: str


QUESTIONS = (
    Question("row06", "row05", "speaker embedding"),
    Question("row07", "row05", "acoustic events"),
    Question("row08", "row05", "speaker embedding, acoustic events"),
    Question("row06", "control_shuffled_speaker", "the right speaker instead of a wrong one"),
    Question("row11", "row06", "a short window, taught by the padded model, instead of a speaker"),
)
TITLE = "One experiment against another"
PAIRED = (
    "Difference of the average scores, system minus base: the mean over the seeds that both have, and its 95 % "
    f"confidence interval from a paired bootstrap ({RESAMPLES} resamples), which draws the test utterances, the same "
    "for both systems, and, where there are several seeds, the seeds too. Lower WER and higher BLEU are better; a "
    "difference counts as shown where the interval leaves 0 out. With one seed the interval covers the choice of "
    "utterances alone; with few, it says too little of what seeds differ in. No correction for the number of "
    "comparisons."
)


def paired(groups: Sequence[Group], scores: Scores) -> Table | None:
    """A row for each question and variant; questions that no run answers are marked.

    None where no question is answered, or the references are not at hand.
    """
    by_name = {g.name: g for g in groups}
    tasks = tasks_of(groups, scores)
    rows, known = [], False
    for question in QUESTIONS:
        answered = False
        for name, system in by_name.items():
            base = by_name.get(base_of(question, name, by_name))
            if base is None:
                continue
            cells = _compare(base, system, tasks, scores)
            if cells is not None:
                rows.append([f"{name} - {base.name}", *cells, question.asked])
                answered = known = True
        if not answered:
            rows.append([f"{question.system} - {question.base}", NOT_RUN, "-", "-", "-", question.asked])
    header = ("comparison", "answer", "seeds", "WER", "BLEU", "what differs")
    return render(rows, [Column(h, i) for i, h in enumerate(header)]) if known else None


def base_of(question: Question, name: str, known: Sequence[str] | dict[str, Group]) -> str:
    """What a run is compared with: the base's same variant if it has one, else its plain one at the same target; empty
    where ``name`` is not the question's, or there is no such base.

    Examples:
        >>> base_of(QUESTIONS[0], "row06-cosine", ["row05", "row05-target0.5"])
        'row05'
        >>> base_of(QUESTIONS[0], "row06-cosine-target0.5", ["row05", "row05-target0.5"])
        'row05-target0.5'
        >>> base_of(QUESTIONS[0], "row07", ["row05"])
        ''
    """
    family, dash, variant = name.partition("-")
    if family != question.system:
        return ""
    target = re.search(r"(?:^|-)(target[\d.]+)", variant)
    candidates = [question.base + dash + variant, question.base + (f"-{target[1]}" if target else "")]
    return next((candidate for candidate in candidates if candidate in known), "")


def _compare(base: Group, system: Group, tasks: Sequence[str], scores: Scores) -> list[str] | None:
    """Answer, seeds, WER and BLEU; None where nothing can be compared."""
    cells, answers, seeds = [], [], 0
    for title, chosen, better in (
        ("WER", [t for t in tasks if "-" not in t], -1),
        ("BLEU", [t for t in tasks if "-" in t], 1),
    ):
        found = average_differences(base, system, chosen, scores)
        if not found:
            cells.append("-")
            continue
        seeds = len(found)
        cells.append(show(found, digits=2))
        answers.append(f"{title} {verdict(found, better)}")
    if not answers:
        return None
    same = {answer.partition(" ")[2] for answer in answers}
    answer = same.pop() if len(same) == 1 and len(answers) == 2 else "; ".join(answers)
    return [answer, str(seeds), *cells]


def average_differences(base: Group, system: Group, tasks: Sequence[str], scores: Scores) -> list[Difference]:
    """Of every seed that both have, over the tasks; empty where some seed lacks one: no average to compare."""
    by_task = [differences(base, system, task, scores) for task in tasks]
    if not by_task or len({len(found) for found in by_task}) != 1:
        return []
    return [average(of_seed) for of_seed in zip(*by_task, strict=True)]


def finding(groups: Sequence[Group], scores: Scores, timed: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: what the pruned row of the lowest WER saves and loses against the dense row 1; empty without both.

    Args:
        timed: Run name to its row of ``bench=runs``.
    """
    dense = next((g for g in groups if g.name == "row01"), None)
    pruned = [
        (wer, g)
        for g in groups
        if g.name.startswith("row") and g.mean("gflops", "encoder") and "sparsity" in g.runs[0].metrics
        if (wer := g.mean("wer", "average")) is not None
        if g.mean("sparsity", "all_frames") or g.mean("sparsity", "decoder_tokens")
    ]
    if dense is None or not pruned:
        return ""
    best = min(pruned, key=lambda pair: pair[0])[1]
    parts = []
    for part, of in (
        ("all_frames", "frames"),
        ("real_frames", "frames with signal"),
        ("decoder_tokens", "tokens"),
    ):
        if best.values("sparsity", part):
            parts.append(f"skips {best.show('sparsity', part, scale=100)} % of {of}")
    needed, whole = (g.show("gflops", "encoder", digits=3) for g in (best, dense))
    parts.append(f"needs {needed} encoder GFLOPs for {whole}")
    tasks = tasks_of(groups, scores)
    for key, chosen in (
        ("wer", [t for t in tasks if "-" not in t]),
        ("bleu", [t for t in tasks if "-" in t]),
    ):
        if best.values(key, "average") and dense.values(key, "average"):
            said = f"{key.upper()} {best.show(key, 'average')} for {dense.show(key, 'average')}"
            found = average_differences(dense, best, chosen, scores)
            parts.append(said + (f" ({show(found, digits=2)})" if found else ""))
    row = timed.get(best.name, {})
    if row.get("total_time_ratio_vs_dense") is not None:
        parts.append(
            f"takes {row['total_time_ratio_vs_dense']:.2f} of its seconds, contexts and decoder included"
        )
    else:
        parts.append("seconds: not timed together")
    return (
        f"Of the pruned rows {best.name} has the lowest WER; against the dense row01 it: {'; '.join(parts)}."
    )


def verdict(found: Sequence[Difference], better: int) -> str:
    """A difference in words.

    Args:
        better: Sign of a difference that is an improvement.
    """
    low, high = interval(found)
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == (better > 0) else "worse"
