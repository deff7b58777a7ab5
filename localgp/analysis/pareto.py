"""Quality against cost over all runs: what is given up for what is saved."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localgp.analysis.collect import Group
from localgp.analysis.style import FAINT, INK, MARKERS, SERIES, pyplot


@dataclass(frozen=True)
class Point:
    """One experiment: means over its seeds, and their standard deviations (0 for a single seed)."""

    family: str  # the experiment without its variant, such as row05
    variant: str  # such as target0.5; empty for the plain one
    x: float
    y: float
    x_spread: float
    y_spread: float


COSTS = {
    "gflops": "encoder GFLOPs an utterance",
    "seconds": "measured encoder seconds per minute of audio",
}
SCORES = {"wer": ("WER, %", False), "bleu": ("BLEU", True)}


def machine(metrics: dict[str, Any]) -> str:
    """Where the seconds were measured; only those of one machine can be compared."""
    return f"{metrics.get('device', 'unknown device')}, {metrics.get('threads', '?')} threads"


def usual_machine(groups: Sequence[Group]) -> str:
    """The one that most runs were measured on."""
    return Counter(machine(run.metrics) for g in groups for run in g.runs).most_common(1)[0][0]


def _cost(metrics: dict[str, Any], cost: str, where: str) -> float | None:
    if cost == "gflops":
        return metrics["gflops"].get("encoder")
    seconds = metrics.get("seconds", {}).get("encoder")
    audio = metrics["data"].get("audio_seconds")
    if seconds is None or not audio or machine(metrics) != where:
        return None
    return 60 * seconds / audio


def points(groups: Sequence[Group], cost: str, score: str) -> list[Point]:
    """One point for every group that has both figures."""
    where = usual_machine(groups)
    found = []
    for g in groups:
        pairs = [
            (x, y)
            for run in g.runs
            if (x := _cost(run.metrics, cost, where)) is not None
            and (y := run.metrics[score].get("average")) is not None
        ]
        if pairs:
            x, y = np.array(pairs, dtype=float).T
            spread = (x.std(ddof=1), y.std(ddof=1)) if len(pairs) > 1 else (0.0, 0.0)
            family, _, variant = g.name.partition("-")
            found.append(
                Point(family, variant, float(x.mean()), float(y.mean()), float(spread[0]), float(spread[1]))
            )
    return found


def front(chosen: Sequence[Point], higher_is_better: bool) -> list[Point]:
    """The points that no other one beats in both, from cheap to dear.

    Example:
        >>> a, b, c = (Point(n, "", x, y, 0, 0) for n, x, y in [("a", 1, 9), ("b", 2, 5), ("c", 3, 7)])
        >>> [p.family for p in front([c, b, a], higher_is_better=False)]
        ['a', 'b']
    """
    sign = -1.0 if higher_is_better else 1.0
    best: list[Point] = []
    for point in sorted(chosen, key=lambda p: (p.x, sign * p.y)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def pareto_figure(groups: Sequence[Group], cost: str, score: str) -> Any | None:
    """Score over cost; variants of one experiment are joined, what no other run beats is joined by a step line.

    Returns:
        None where fewer than two runs have both.
    """
    chosen = points(groups, cost, score)
    if len(chosen) < 2:
        return None
    plt = pyplot()
    label, higher = SCORES[score]
    figure, axes = plt.subplots(figsize=(4.3, 3.1), layout="constrained")
    axes.grid(True)
    axes.set_axisbelow(True)
    edge = front(chosen, higher)
    if len(edge) > 1:
        axes.step([p.x for p in edge], [p.y for p in edge], where="post", color=FAINT, linewidth=3, zorder=1)
    for index, family in enumerate(dict.fromkeys(p.family for p in chosen)):
        members = sorted((p for p in chosen if p.family == family), key=lambda p: p.x)
        axes.errorbar(
            [p.x for p in members],
            [p.y for p in members],
            xerr=[p.x_spread for p in members],
            yerr=[p.y_spread for p in members],
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[(index + index // len(SERIES)) % len(MARKERS)],
            markersize=6,
            linewidth=1.2,
            elinewidth=0.8,
            label=family,
            zorder=2,
        )
        for p in members:
            if p.variant:
                text = re.sub(r"^target", "", p.variant)
                axes.annotate(text, (p.x, p.y), textcoords="offset points", xytext=(5, 4), fontsize=7.5)
    dense = next((p for p in chosen if p.family == "row01"), None)
    if dense is not None:
        axes.axhline(dense.y, color=INK, linestyle=":", linewidth=0.9, zorder=1)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel(label)
    axes.margins(0.12)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
