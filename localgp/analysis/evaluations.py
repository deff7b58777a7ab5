"""Evaluations beside the leading ones: other splits, parts of them, other ways to decode, other checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from localgp.analysis.collect import Evaluated, Group, in_order
from localgp.analysis.tables import Table
from localgp.evaluation.results import Identity, stored
from localgp.evaluation.table import part_of, varying

TITLE = "All evaluations"
EVALUATIONS = (
    "Every evaluation of the runs that have several, with the decode options in which they differ. The one that leads "
    "is in the tables above: the whole test set, decoded as the run was trained to be, where that has been evaluated."
)


def evaluations_table(runs: Sequence[Evaluated]) -> Table | None:
    """None where no run has more than one that was made with the weights it has now."""
    found: list[tuple[Evaluated, Evaluated]] = []
    for run in in_order(runs):
        now = Identity.of(run.metrics)
        of_run = [m for m in stored(run.path) if not Identity.of(m).of_other_weights(now)]
        if len(of_run) > 1:
            found += [
                (run, Evaluated(run.path, run.corpus, run.backbone, run.name, run.seed, m)) for m in of_run
            ]
    if not found:
        return None
    options = varying([one.metrics for _, one in found])
    checkpoints = [(one.metrics.get("asked") or {}).get("checkpoint") for _, one in found]
    with_weights = any(checkpoints)
    header = [
        "run",
        "scored",
        *options,
        *(["weights"] if with_weights else []),
        "WER",
        "BLEU",
        "skipped",
        "leads",
    ]
    rows = []
    for (run, one), checkpoint in zip(found, checkpoints, strict=True):
        figures = Group(one.name, (one,))
        tag = one.metrics["evaluation"]["tag"]
        rows.append(
            [
                run.key,
                part_of(one.metrics),
                *(str(one.metrics["decode"].get(name, "-")) for name in options),
                *([str(checkpoint or "the run's own")] if with_weights else []),
                figures.show("wer", "average"),
                figures.show("bleu", "average"),
                figures.show("sparsity", "all_frames", scale=100, unit=" %"),
                "yes" if tag == (run.metrics.get("evaluation") or {}).get("tag") else "",
            ]
        )
    return Table(header, rows)
