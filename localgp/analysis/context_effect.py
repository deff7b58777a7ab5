"""Do contexts help? Rows with a context against front-end features alone, and against the wrong speaker's embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from localgp.analysis.bootstrap import RESAMPLES, Difference, Scores, average, interval
from localgp.analysis.collect import Group
from localgp.analysis.significance import differences, show, tasks_of
from localgp.analysis.tables import NOT_RUN, Table


@dataclass(frozen=True)
class Question:
    """Attributes:
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
)
TITLE = "Contexts against front-end features alone"
CONTEXT_EFFECT = (
    "Difference of the average scores, system minus base: the mean over the seeds that both have, and its 95 % "
    f"confidence interval from a paired bootstrap ({RESAMPLES} resamples), which draws the test utterances, the same "
    "for both systems, and, where there are several seeds, the seeds too. Lower WER and higher BLEU are better; a "
    "difference counts as shown where the interval leaves 0 out. With one seed the interval covers the choice of "
    "utterances alone; with few, it says too little of what seeds differ in. No correction for the number of "
    "comparisons."
)


def context_effect(groups: Sequence[Group], scores: Scores) -> Table | None:
    """A row for each question and variant; questions that no run answers are marked.

    None where no row with a context has been run, or the references are not at hand.
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
    header = ["comparison", "answer", "seeds", "WER", "BLEU", "what it adds"]
    return Table(header, rows) if known else None


def base_of(question: Question, name: str, known: Sequence[str] | dict[str, Group]) -> str:
    """What a run is compared with: the base's same variant if it has one, else its plain one at the same target; empty
    where ``name`` is not the question's, or there is no such base.

    Example:
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
        by_task = [differences(base, system, task, scores) for task in chosen]
        if not by_task or len({len(found) for found in by_task}) != 1 or not by_task[0]:
            cells.append("-")  # a task that some seed lacks: no average to compare
            continue
        found = [average(of_seed) for of_seed in zip(*by_task, strict=True)]
        seeds = len(found)
        cells.append(show(found, digits=2))
        answers.append(f"{title} {verdict(found, better)}")
    if not answers:
        return None
    same = {answer.partition(" ")[2] for answer in answers}
    answer = same.pop() if len(same) == 1 and len(answers) == 2 else "; ".join(answers)
    return [answer, str(seeds), *cells]


def verdict(found: Sequence[Difference], better: int) -> str:
    """Args:
    better: Sign of a difference that is an improvement.
    """
    low, high = interval(found)
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (low > 0) == (better > 0) else "worse"
