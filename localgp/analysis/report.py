"""One self-contained page, and RESULTS.md, from everything under ``exp/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.analysis.benchmarks import COMMANDS, Benchmark, read_benchmarks
from localgp.analysis.bootstrap import Scores
from localgp.analysis.collect import Evaluated, Group, collect, group, in_order
from localgp.analysis.context_effect import CONTEXT_EFFECT, TITLE, context_effect
from localgp.analysis.evaluations import EVALUATIONS, evaluations_table
from localgp.analysis.evaluations import TITLE as EVERY
from localgp.analysis.gates_section import gates_section
from localgp.analysis.html import Page, caption, details, viewer
from localgp.analysis.markdown import (
    ORIENTATION,
    Tests,
    describe,
    readme_section,
    replace_between_markers,
    results,
)
from localgp.analysis.options import ReportOptions
from localgp.analysis.pareto import COSTS, SCORES, pareto_figure
from localgp.analysis.significance import SIGNIFICANCE, significance
from localgp.analysis.sources import read_hypotheses
from localgp.analysis.speed import goals_table, paired_note, speed_section, time_table
from localgp.analysis.study import Corpora, Study, study
from localgp.analysis.tables import Table, kept, paper_table, scores, side_by_side
from localgp.analysis.viewer import choose, palette, run_entry, utterance_entry
from localgp.run import write_atomically

_NOT_TIMED = (
    "These runs have not been timed together. What their evaluations took was measured at different times under "
    "different load and says nothing; this measures them in turns, and the plots of quality over seconds follow from it"
)


def build_report(cfg: DictConfig) -> tuple[Path, Path, str]:
    """Writes ``<exp_dir>/report.html`` and ``<exp_dir>/RESULTS.md``, and what ``report`` of the configuration asks for.

    Returns:
        Both paths, and RESULTS.md's text.
    """
    options = ReportOptions.of(cfg)
    exp_dir = Path(cfg.exp_dir)
    runs = collect(exp_dir)
    corpora = Corpora(Path(cfg.data_dir))
    benchmarks = read_benchmarks(exp_dir)
    scored = Scores(corpora)
    tests = {
        key: table
        for key, groups in group(runs).items()
        if (table := significance(groups, scored)) is not None
    }
    contexts = {
        key: table
        for key, groups in group(runs).items()
        if (table := context_effect(groups, scored)) is not None
    }
    text = results(runs, tests, contexts, benchmarks)
    write_atomically(exp_dir / "RESULTS.md", text)
    if options.results:
        write_atomically(Path(options.results), text)
    if options.readme:
        sections = {
            "results": readme_section(runs, contexts),
            "speed": speed_section(benchmarks, whole=False),
        }
        replace_between_markers(Path(options.readme), sections)
    page = build_page(runs, exp_dir, corpora, options.utterances, tests, contexts, benchmarks)
    write_atomically(exp_dir / "report.html", page.html())
    return exp_dir / "report.html", exp_dir / "RESULTS.md", text


def build_page(
    runs: Sequence[Evaluated],
    exp_dir: Path,
    corpora: Corpora,
    utterances: int,
    tests: Tests,
    contexts: Tests,
    benchmarks: Mapping[str, Benchmark],
) -> Page:
    """Args:
    utterances: In the mask viewer, for every scored split.
    tests: Significance of each group's differences, where it could be computed.
    contexts: Whether contexts help, of each group where it could be computed.
    benchmarks: By name.
    """
    studies = {run.key: study(run, corpora) for run in runs if run.gates.exists()}
    page = Page("localgp: results")
    page.text(
        "Every number on this page was computed from the files of the runs in "
        + str(exp_dir)
        + "; the paper's "
        "numbers are marked as the paper's. ± is the standard deviation over seeds."
    )
    for (label, backbone), groups in group(runs).items():
        page.section(f"{label}; backbone {backbone}")
        _score_parts(page, groups, tests.get((label, backbone)), contexts.get((label, backbone)))
        timing = benchmarks.get("runs")
        timed = timing.runs_of(groups[0].runs[0].corpus, backbone) if timing is not None else {}
        _time_parts(page, groups, timed, timing)
        _pareto_parts(page, groups, timed)
        gates_section(page, groups, studies, corpora)
    sets = viewer_sets(runs, studies, corpora, utterances)
    if sets:
        page.section("Mask viewer")
        page.text(
            "Choose an utterance, hear it, and see on which frames each gated module of each layer runs (orange). "
            "Layer 1 is at the bottom of each mask. Utterances are taken from the languages in turn, those with most "
            "pause between words first; hypotheses mark words that are wrong and words that are missing."
        )
        page.raw(viewer({"palette": palette(), "sets": sets}))
    every = evaluations_table(runs)
    if every is not None:
        page.section(EVERY)
        page.raw(every.html())
        page.raw(caption(EVALUATIONS))
    bench_parts(page, benchmarks)
    page.section("The paper's Table 1")
    page.text("Europarl-ST v1.1 with OWSM-v3.1-medium, as printed there. " + ORIENTATION)
    page.raw(paper_table().html())
    page.section("Configurations")
    page.raw(runs_table(in_order(runs)).html())
    for run in in_order(runs):
        stored = run.path / "config.yaml"
        if stored.exists():
            page.raw(details(run.key, f"<pre>{escape(stored.read_text(encoding='utf-8'))}</pre>"))
    return page


def _score_parts(page: Page, groups: Sequence[Group], tests: Table | None, contexts: Table | None) -> None:
    page.heading("Table 1, side by side")
    page.raw(f'<div class="sides">{side_by_side(groups).html()}</div>')
    page.raw(
        caption(
            "Averages over tasks, and Δ their change against the same side's row 1. Left the paper (Europarl-ST "
            "v1.1, OWSM-v3.1-medium), right ours. " + ORIENTATION
        )
    )
    page.heading("Scores by task")
    page.raw(scores(groups).html())
    page.raw(caption(describe(groups)))
    seeds = seeds_table(groups)
    if seeds is not None:
        page.raw(details("Every seed", seeds.html()))
    if contexts is not None:
        page.heading(TITLE)
        page.raw(contexts.html())
        page.raw(caption(CONTEXT_EFFECT))
    if tests is not None:
        page.heading("Which differences are more than chance")
        page.raw(tests.html())
        page.raw(caption(SIGNIFICANCE))
    running = kept(groups)
    if running is not None:
        page.heading("What runs")
        page.raw(running.html())
        page.raw(
            caption(
                "Share of frames on which a kind of module runs, over all layers and utterances: of all frames, "
                "padding included, and of those with signal; in the decoder, of the tokens written. The last columns "
                "are how much of the frames skipped is padding, and how much of all frames is: what it would be by "
                "chance."
            )
        )


def _time_parts(
    page: Page, groups: Sequence[Group], timed: Mapping[str, Mapping[str, Any]], timing: Benchmark | None
) -> None:
    """Seconds of the runs, all timed in turns; never an evaluation's own, which had the machine at another time."""
    page.heading("Time")
    table = time_table(timed, [g.name for g in groups])
    if table is None or timing is None:
        page.text(f"{_NOT_TIMED}: {COMMANDS['runs']}")
        return
    page.raw(table.html())
    lacking = [g.name for g in groups if g.name not in timed]
    page.raw(
        caption(
            f"{paired_note(timed)} Measured by {COMMANDS['runs']} on {timing.machine}; commit {timing.commit[:12]}."
            + (f" Not timed there: {', '.join(lacking)}." if lacking else "")
        )
    )


def _pareto_parts(page: Page, groups: Sequence[Group], timed: Mapping[str, Mapping[str, Any]]) -> None:
    made = []
    for cost in COSTS:
        for score, (label, higher) in SCORES.items():
            figure = pareto_figure(groups, cost, score, timed)
            if figure is None:
                continue
            text = (
                f"{label}, average over tasks ({'higher' if higher else 'lower'} is better), over {COSTS[cost]}. "
                "A point is an experiment, its vertical bar the standard deviation over seeds; filled are the paper's "
                "rows, hollow our controls. Points of a sweep are joined and carry their target sparsity, other "
                "variants their name. Dotted: the dense row01. The grey line joins what no other run beats."
            )
            if cost == "encoder":
                text += (
                    " All runs took turns on the same utterances: a point is row01's median times the median ratio to "
                    "row01 in the same round, its horizontal bar the ratio's quartiles."
                )
            elif cost == "total":
                text += " All runs took turns on the same utterances; medians, summed over the parts."
            made.append(page.figure(figure, text))
    if made:
        page.heading("Quality against cost")
        page.raw(f'<div class="figures">{"".join(made)}</div>')
        if not timed:
            page.text(f"{_NOT_TIMED}: {COMMANDS['runs']}")


def seeds_table(groups: Sequence[Group]) -> Table | None:
    """Averages of every seed, where an experiment has several."""
    several = [g for g in groups if len(g.runs) > 1]
    if not several:
        return None
    rows = [
        [
            g.name,
            str(run.seed),
            one.show("wer", "average", digits=2),
            one.show("bleu", "average", digits=2),
            one.show("sparsity", "all_frames", scale=100, unit=" %"),
            one.show("gflops", "encoder", digits=3),
        ]
        for g in several
        for run in g.runs
        for one in [Group(g.name, (run,))]
    ]
    return Table(["run", "seed", "WER", "BLEU", "skipped, all frames", "encoder GFLOPs"], rows)


def runs_table(runs: Sequence[Evaluated]) -> Table:
    rows = [
        [
            run.key,
            run.metrics.get("commit", "unknown"),
            str(run.metrics.get("device", "-")),
            str(run.metrics.get("threads", "-")),
            ", ".join(f"{k} {v}" for k, v in run.metrics.get("decode", {}).items()),
        ]
        for run in runs
    ]
    return Table(["run", "commit of the evaluation", "device", "threads", "decoding"], rows)


def bench_parts(page: Page, benchmarks: Mapping[str, Benchmark]) -> None:
    """Every benchmark but ``runs``, which stands with the runs' scores; and how to measure what is missing."""
    shown = {name: found for name, found in benchmarks.items() if name != "runs"}
    page.section("Benchmarks")
    for name, found in shown.items():
        header = list(dict.fromkeys(key for row in found.rows for key in row))
        cells = [[_bench_cell(row.get(key)) for key in header] for row in found.rows]
        page.heading(f"{found.name} on {found.machine}")
        if found.goals:
            page.raw(goals_table(found.goals).html())
        page.raw(Table(header, cells).html())
        page.raw(caption(f"From {name}.json: measured by {found.command}, pairs in one run."))
    missing = [command for name, command in COMMANDS.items() if name not in benchmarks]
    if missing:
        page.text(f"Not measured yet: {'; '.join(missing)}.")


def _bench_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_bench_cell(v) for v in value[:8]) + (", …" if len(value) > 8 else "")
    return str(value)


def viewer_sets(
    runs: Sequence[Evaluated], studies: dict[str, Study], corpora: Corpora, count: int
) -> list[dict[str, Any]]:
    """One set for every split of a corpus; runs whose utterances are not prepared here have none to show."""
    splits: dict[tuple[str, str], list[Evaluated]] = {}
    for run in in_order(runs):
        splits.setdefault((run.corpus, run.metrics["data"]["split"]), []).append(run)
    sets = []
    for (corpus, split), members in splits.items():
        ids: dict[str, set[str]] = {run.key: set().union(*read_hypotheses(run).values()) for run in members}
        known = [run for run in members if ids[run.key] and corpora.of(run, sorted(ids[run.key])) is not None]
        if not known or not count:
            continue
        utterances = corpora.of(known[0], sorted(ids[known[0].key]))
        assert utterances is not None
        together = [run for run in known if ids[run.key] <= utterances.texts.keys()]
        shared = sorted(set.intersection(*(ids[run.key] for run in together)))
        gated = [studies[run.key] for run in together if run.key in studies]
        chosen = choose(gated, utterances, shared, count)
        if chosen:
            sets.append(
                {
                    "label": f"{corpus}, {split}",
                    "utterances": [utterance_entry(utterances, u) for u in chosen],
                    "runs": [run_entry(run, studies.get(run.key), chosen) for run in together],
                }
            )
    return sets
