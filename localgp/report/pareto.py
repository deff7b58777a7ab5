"""Quality against cost over all runs: what is given up for what is saved.

FLOPs are the evaluation's. Seconds are never the evaluation's, which was made at another time under another load: they
are `localgp.bench.runs`', for which all runs took turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.evaluation.results import at_budgets
from localgp.report.runs import Group
from localgp.report.style import FAINT, INK, pyplot, run_style

DENSE = "row01"


@dataclass(frozen=True)
class Point:
    """One experiment.

    Attributes:
        name: Of the run, with its variant: row05-target0.5.
        x, y: Cost and score; the score is the mean over seeds.
        x_range: Lower and upper end of the cost's bar.
        y_spread: Standard deviation over seeds, 0 for a single one.
    """

    name: str
    x: float
    y: float
    x_range: tuple[float, float]
    y_spread: float

    @property
    def family(self) -> str:
        return self.name.partition("-")[0]

    @property
    def line(self) -> str:
        """Points of one sweep have the same: row05-target0.3 and row05-target0.5, but not row06-cosine and row06."""
        return re.sub(r"-(target|budget)[\d.]+", "", self.name)

    @property
    def label(self) -> str:
        return re.sub(r"^(target|budget)", "", self.name.partition("-")[2])


COSTS = {
    "gflops": "encoder GFLOPs an utterance",
    "encoder": "encoder seconds per minute of audio",
    "total": "encoder, contexts and decoder seconds per minute of audio",
}
SCORES = {"wer": ("WER, %", False), "bleu": ("BLEU", True)}


def points(
    groups: Sequence[Group], cost: str, score: str, timed: Mapping[str, Mapping[str, Any]]
) -> list[Point]:
    """One point for every group that has both figures.

    Args:
        timed: Run name to its row of ``bench=runs``.
    """
    found = []
    for g in groups:
        scores = g.values(score, "average")
        if cost == "gflops":
            costs = g.values("gflops", "encoder")
            if not costs or not scores:
                continue
            x, spread = float(np.mean(costs)), _deviation(costs)
            x_range = (x - spread, x + spread)
        else:
            seconds = paired_seconds(timed, g.name, cost)
            if seconds is None or not scores:
                continue
            x, *ends = seconds
            x_range = (ends[0], ends[1])
        found.append(Point(g.name, x, float(np.mean(scores)), x_range, _deviation(scores)))
        found += _at_budgets(g, cost, score, timed)
    return found


def _at_budgets(group: Group, cost: str, score: str, timed: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """The same model at other budgets, of the first seed."""
    found = []
    for budget, metrics in sorted(at_budgets(group.runs[0].path).items()):
        name, value = f"{group.name}-budget{budget:g}", metrics[score].get("average")
        seconds = paired_seconds(timed, name, cost) if cost != "gflops" else None
        x = float(metrics["gflops"]["encoder"]) if cost == "gflops" else seconds[0] if seconds else None
        if x is not None and value is not None:
            found.append(Point(name, x, float(value), seconds[1:] if seconds else (x, x), 0.0))
    return found


def paired_seconds(
    timed: Mapping[str, Mapping[str, Any]], name: str, cost: str
) -> tuple[float, float, float] | None:
    """Seconds of a run and the ends of its bar: the dense run's median times the ratio to it in the same rounds.

    So what slowed the machine for a while moves no run against another. Without a dense run, and for sums over parts
    that were timed in rounds of their own, the medians.
    """
    row = timed.get(name)
    if row is None:
        return None
    median = float(row[f"{cost}_seconds"])
    ratio, spread = row.get("time_ratio_vs_dense"), row.get("time_ratio_spread")
    if cost != "encoder" or ratio is None or spread is None or DENSE not in timed:
        return median, median, median
    dense = float(timed[DENSE]["encoder_seconds"])
    return dense * ratio, dense * spread[0], dense * spread[1]


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def front(chosen: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The points that no other one beats in both, from cheap to dear.

    Examples:
        >>> a, b, c = (Point(n, x, y, (x, x), 0) for n, x, y in [("a", 1, 9), ("b", 2, 5), ("c", 3, 7)])
        >>> [p.name for p in front([c, b, a], higher_is_better=False)]
        ['a', 'b']
    """
    sign = -1.0 if higher_is_better else 1.0
    best: list[Point] = []
    for point in sorted(chosen, key=lambda p: (p.x, sign * p.y)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def pareto_figure(
    groups: Sequence[Group], cost: str, score: str, timed: Mapping[str, Mapping[str, Any]]
) -> Any | None:
    """Score over cost; the points of a sweep are joined, what no other run beats is joined by a step line.

    Returns:
        None where fewer than two runs have both.
    """
    chosen = points(groups, cost, score, timed)
    if len(chosen) < 2:
        return None
    plt = pyplot()
    label, higher = SCORES[score]
    families = list(dict.fromkeys(p.family for p in chosen))
    columns = 3
    legend_rows = -(-len(families) // columns)
    figure, axes = plt.subplots(figsize=(4.6, 3.0 + 0.17 * legend_rows), layout="constrained")
    axes.grid(True)
    axes.set_axisbelow(True)
    edge = front(chosen, higher)
    if len(edge) > 1:
        axes.step([p.x for p in edge], [p.y for p in edge], where="post", color=FAINT, linewidth=3, zorder=1)
    labelled: set[str] = set()
    for line in dict.fromkeys(p.line for p in chosen):
        members = sorted((p for p in chosen if p.line == line), key=lambda p: p.x)
        family = members[0].family
        axes.errorbar(
            [p.x for p in members],
            [p.y for p in members],
            xerr=np.array([[max(0.0, p.x - p.x_range[0]), max(0.0, p.x_range[1] - p.x)] for p in members]).T,
            yerr=[p.y_spread for p in members],
            **run_style(family),
            linestyle="-" if len(members) > 1 else "none",
            markersize=6,
            linewidth=1.2,
            elinewidth=0.8,
            label=None if family in labelled else family,
            zorder=2,
        )
        labelled.add(family)
        for p in members:
            if p.label:
                axes.annotate(p.label, (p.x, p.y), textcoords="offset points", xytext=(5, 4), fontsize=7.5)
    dense = next((p for p in chosen if p.name == DENSE), None)
    if dense is not None:
        axes.axhline(dense.y, color=INK, linestyle=":", linewidth=0.9, zorder=1)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel(label)
    axes.margins(0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=8)
    return figure
