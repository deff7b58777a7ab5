"""One self-contained page, and RESULTS.md, from everything under ``exp/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.analysis.collect import Evaluated, Group, collect, group, in_order
from localgp.analysis.gates_section import gates_section
from localgp.analysis.html import Page, caption, details, viewer
from localgp.analysis.markdown import ORIENTATION, describe, readme_section, replace_between_markers, results
from localgp.analysis.options import ReportOptions
from localgp.analysis.pareto import COSTS, SCORES, pareto_figure, usual_machine
from localgp.analysis.significance import SIGNIFICANCE, significance
from localgp.analysis.sources import read_hypotheses
from localgp.analysis.study import Corpora, Study, study
from localgp.analysis.tables import Table, kept, paper_table, scores, side_by_side, speed
from localgp.analysis.viewer import choose, palette, run_entry, utterance_entry
from localgp.errors import ConfigError
from localgp.run import write_atomically


def build_report(cfg: DictConfig) -> tuple[Path, Path, str]:
    """Writes ``<exp_dir>/report.html`` and ``<exp_dir>/RESULTS.md``, and what ``report`` of the configuration asks for.

    Returns:
        Both paths, and RESULTS.md's text.
    """
    options = ReportOptions.of(cfg)
    exp_dir = Path(cfg.exp_dir)
    runs = collect(exp_dir)
    corpora = Corpora(Path(cfg.data_dir))
    tests = {
        key: table
        for key, groups in group(runs).items()
        if (table := significance(groups, corpora)) is not None
    }
    text = results(runs, tests)
    write_atomically(exp_dir / "RESULTS.md", text)
    if options.results:
        write_atomically(Path(options.results), text)
    if options.readme:
        replace_between_markers(Path(options.readme), readme_section(runs))
    page = build_page(runs, exp_dir, corpora, options.utterances, tests)
    write_atomically(exp_dir / "report.html", page.html())
    return exp_dir / "report.html", exp_dir / "RESULTS.md", text


def build_page(
    runs: Sequence[Evaluated],
    exp_dir: Path,
    corpora: Corpora,
    utterances: int,
    tests: Mapping[tuple[str, str], Table],
) -> Page:
    """Args:
    utterances: In the mask viewer, for every scored split.
    tests: Significance of each group's differences, where it could be computed.
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
        _score_parts(page, groups, tests.get((label, backbone)))
        _pareto_parts(page, groups)
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
    bench_parts(page, exp_dir)
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


def _score_parts(page: Page, groups: Sequence[Group], tests: Table | None) -> None:
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
    times = speed(groups)
    if times is not None:
        page.heading("Time")
        page.raw(times.html())
        page.raw(
            caption(
                "Wall time of the evaluation itself, spent in encoder and decoder, with whatever else the machine "
                "did at the time; for measured comparisons see the benchmarks."
            )
        )


def _pareto_parts(page: Page, groups: Sequence[Group]) -> None:
    where = usual_machine(groups)
    made = []
    for cost in COSTS:
        for score, (label, higher) in SCORES.items():
            figure = pareto_figure(groups, cost, score)
            if figure is None:
                continue
            text = (
                f"{label}, average over tasks ({'higher' if higher else 'lower'} is better), over {COSTS[cost]}. "
                "A point is an experiment, bars its standard deviation over seeds; points of a sweep are joined and "
                "carry their target sparsity. Dotted: the dense row01. The grey line joins what no other run beats."
            )
            if cost == "seconds":
                text += f" Only runs measured on {where}."
            made.append(page.figure(figure, text))
    if made:
        page.heading("Quality against cost")
        page.raw(f'<div class="figures">{"".join(made)}</div>')


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


def bench_parts(page: Page, exp_dir: Path) -> None:
    """Benchmarks stored as ``<exp_dir>/bench/*.json``, each the JSON object that ``localgp.bench`` ends with."""
    paths = sorted((exp_dir / "bench").glob("*.json"))
    if not paths:
        return
    page.section("Benchmarks")
    for path in paths:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            rows: list[dict[str, Any]] = found["rows"]
            header = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[_bench_cell(row.get(key)) for key in header] for row in rows]
            page.heading(f"{found['bench']} on {found['machine']}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not the last line of python -m localgp.bench ({error!r}); write it again or remove it"
            ) from error
        page.raw(Table(header, cells).html())
        page.raw(caption(f"From {path.name}: measured by python -m localgp.bench, pairs in one run."))


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
