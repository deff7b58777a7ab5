"""One self-contained page, and RESULTS.md, from everything under ``exp/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from localgp.evaluation.decoder_gates_file import read_decoder_gates
from localgp.report.analyze import token_test_table
from localgp.report.bootstrap import Scores
from localgp.report.comparisons import (
    PAIRED,
    SIGNIFICANCE,
    TITLE,
    finding,
    paired,
    significance,
)
from localgp.report.encoded_again import attention_table, swap_table
from localgp.report.figures import agreement_figure, mask_figure, relations_figure, varied
from localgp.report.gpu import gpu_section
from localgp.report.markdown import (
    ORIENTATION,
    Tests,
    describe,
    readme_section,
    replace_between_markers,
    results,
    section_of,
)
from localgp.report.page import Page, caption, details, heat_table, viewer
from localgp.report.pareto import COSTS, SCORES, pareto_figure
from localgp.report.runs import Evaluated, Group, collect, group, in_order
from localgp.report.scores import (
    EVALUATIONS,
    EVERY,
    evaluations_table,
    kept,
    paper_table,
    scores,
    seeds_table,
    short_scores,
    side_by_side,
)
from localgp.report.speed import (
    COMMANDS,
    Benchmark,
    goals_table,
    paired_note,
    read_benchmarks,
    speed_section,
    time_table,
)
from localgp.report.study import Study, study, telling_utterance
from localgp.report.tokens import token_figure, token_summary, typical_tokens
from localgp.report.utterances import Corpora, read_hypotheses
from localgp.report.viewer import choose, palette, run_entry, utterance_entry
from localgp.run import write_atomically
from localgp.tables import Column, Table, every_key, render

_NOT_TIMED = (
    "These runs have not been timed together. What their evaluations took was measured at different times under "
    "different load and says nothing; this measures them in turns, and the plots of quality over seconds follow from it"
)


def build_report(cfg: DictConfig) -> tuple[Path, Path, str]:
    """Writes ``<exp_dir>/report.html`` and ``<exp_dir>/RESULTS.md``, and what ``report`` of the configuration asks for.
    What a GPU's section had in there stays.

    Returns:
        Both paths, and RESULTS.md's text.
    """
    options = cfg.report
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
        key: table for key, groups in group(runs).items() if (table := paired(groups, scored)) is not None
    }
    text = results(runs, tests, contexts, benchmarks)
    write_atomically(exp_dir / "RESULTS.md", text)
    if options.results:
        kept = section_of(Path(options.results), "gpu")  # of a card that may be elsewhere
        write_atomically(Path(options.results), text)
        if kept:
            replace_between_markers(Path(options.results), {"gpu": kept}, "report.results")
    if options.readme:
        sections = {
            "results": readme_section(runs, contexts),
            "speed": speed_section(benchmarks, whole=False),
        }
        replace_between_markers(Path(options.readme), sections)
    page = build_page(runs, exp_dir, corpora, options.utterances, tests, contexts, benchmarks, scored)
    write_atomically(exp_dir / "report.html", page.html())
    return exp_dir / "report.html", exp_dir / "RESULTS.md", text


def add_gpu_section(given: Path, results: Path) -> None:
    """Puts what ``make gpu`` found between the markers for it, and leaves the rest of a RESULTS.md as it is."""
    replace_between_markers(results, {"gpu": gpu_section(given)}, "report.results")


def build_page(
    runs: Sequence[Evaluated],
    exp_dir: Path,
    corpora: Corpora,
    utterances: int,
    tests: Tests,
    contexts: Tests,
    benchmarks: Mapping[str, Benchmark],
    scored: Scores,
) -> Page:
    """The page as HTML.

    Args:
        utterances: In the mask viewer, for every scored split.
        tests: Significance of each group's differences, where it could be computed.
        contexts: Whether contexts help, of each group where it could be computed.
        benchmarks: By name.
        scored: Runs on every resample, for the findings' intervals.
    """
    studies = {run.key: study(run, corpora) for run in runs if run.gates.exists()}
    page = Page("localgp: results")
    page.text(
        "Every number on this page was computed from the files of the runs in "
        + str(exp_dir)
        + "; the paper's "
        "numbers are marked as the paper's. ± is the standard deviation over seeds."
    )
    timing = benchmarks.get("runs")
    first: dict[tuple[str, str], tuple[str, str]] = {}
    for (label, backbone), groups in group(runs).items():
        timed = timing.runs_of(groups[0].runs[0].corpus, backbone) if timing is not None else {}
        said = finding(groups, scored, timed)
        page.text(f"{label}; backbone {backbone}. {said}".rstrip(), "finding")
        for cost in reversed(COSTS):
            figure = pareto_figure(groups, cost, "wer", timed)
            if figure is not None:
                page.raw(page.figure(figure, _about_pareto(cost, "wer")))
                first[label, backbone] = cost, "wer"
                break
    for (label, backbone), groups in group(runs).items():
        page.section(f"{label}; backbone {backbone}")
        _score_parts(page, groups, tests.get((label, backbone)), contexts.get((label, backbone)))
        timed = timing.runs_of(groups[0].runs[0].corpus, backbone) if timing is not None else {}
        _time_parts(page, groups, timed, timing)
        _pareto_parts(page, groups, timed, first.get((label, backbone)))
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
    if groups[0].runs[0].corpus == "europarl_st":  # no other corpus belongs beside the paper's figures
        page.heading("Table 1, side by side")
        page.raw(f'<div class="sides">{side_by_side(groups).html()}</div>')
        page.raw(
            caption(
                "Averages over tasks, and Δ their change against the same side's row 1. Left the paper (Europarl-ST "
                "v1.1, OWSM-v3.1-medium), right ours. " + ORIENTATION
            )
        )
    else:
        page.heading("Averages over tasks")
        page.raw(short_scores(groups).html())
    page.heading("Scores by task")
    page.raw(scores(groups).html())
    page.raw(caption(describe(groups).replace("`", "")))
    seeds = seeds_table(groups)
    if seeds is not None:
        page.raw(details("Every seed", seeds.html()))
    if contexts is not None:
        page.heading(TITLE)
        page.raw(contexts.html())
        page.raw(caption(PAIRED))
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


def _about_pareto(cost: str, score: str) -> str:
    """A caption."""
    label, higher = SCORES[score]
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
    return text


def _pareto_parts(
    page: Page, groups: Sequence[Group], timed: Mapping[str, Mapping[str, Any]], shown: tuple[str, str] | None
) -> None:
    """All but the one that the first screen has shown."""
    made = [
        page.figure(figure, _about_pareto(cost, score))
        for cost in COSTS
        for score in SCORES
        if (cost, score) != shown and (figure := pareto_figure(groups, cost, score, timed)) is not None
    ]
    if made:
        page.heading("Quality against cost")
        page.raw(f'<div class="figures">{"".join(made)}</div>')


def runs_table(runs: Sequence[Evaluated]) -> Table:
    return render(
        runs,
        [
            Column("run", lambda run: run.key),
            Column("commit of the evaluation", lambda run: run.metrics.get("commit", "unknown")),
            Column("device", lambda run: run.metrics.get("device"), str),
            Column("threads", lambda run: run.metrics.get("threads"), str),
            Column(
                "decoding",
                lambda run: ", ".join(f"{k} {v}" for k, v in run.metrics.get("decode", {}).items()),
            ),
        ],
    )


def bench_parts(page: Page, benchmarks: Mapping[str, Benchmark]) -> None:
    """Every benchmark but ``runs``, which stands with the runs' scores; and how to measure what is missing."""
    shown = {name: found for name, found in benchmarks.items() if name != "runs"}
    page.section("Benchmarks")
    for name, found in shown.items():
        page.heading(f"{found.name} on {found.machine}")
        if found.goals:
            page.raw(goals_table(found.goals).html())
        page.raw(every_key(found.rows, _bench_cell).html())
        page.raw(caption(f"From {name}.json: measured by {found.command}, pairs in one run."))
    missing = [command for name, command in COMMANDS.items() if name not in benchmarks]
    if missing:
        page.text(f"Not measured yet: {'; '.join(missing)}.")


def _bench_cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join("-" if v is None else _bench_cell(v) for v in value[:8]) + (
            ", …" if len(value) > 8 else ""
        )
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


def gates_section(page: Page, groups: Sequence[Group], studies: dict[str, Study], corpora: Corpora) -> None:
    """A comparison over all gated runs, then one part for each: its first seed stands for it.

    Variants of an experiment (the points of a sweep) have their shares shown, without figures of their own.
    """
    gated = [(g, studies[g.runs[0].key]) for g in groups if g.runs[0].key in studies]
    decoders = [g for g in groups if _decoder_gates(g.runs[0]).exists()]
    if not gated and not decoders:
        return
    page.heading("What the gates do")
    _captioned(
        page,
        agreement_table([found for _, found in gated]),
        "Do gates find speech? Each mask against the true speech that the corpus's maker knows, over frames "
        "with signal, averaged over layers and modules; after the slash an energy VAD that opens as many "
        "frames of each utterance. AUC of a mask is the mean of true positive and true negative rate: 0.5 is "
        "chance.",
    )
    _captioned(
        page,
        swap_table([found.run for _, found in gated]),
        "Do gates hang on the speaker? Share of frames with signal, in percent, whose gate flips when the "
        "encoder decides again with another voice's embedding (for the control, which has wrong ones, with "
        "the right one), averaged over layers; beside it with the same embedding, which rounding alone can "
        "flip. From python -m localgp.analyze.",
    )
    _captioned(
        page,
        attention_table([found.run for _, found in gated]),
        "Whom do the gates listen to? LocalGP's attention weight of each context, and of the earlier layers' "
        "inputs together, in percent, averaged over layers and frames with signal. A context with no weight "
        "cannot change a gate, and does not learn to. From python -m localgp.analyze.",
    )
    for position, (g, found) in enumerate(gated):
        parts = [heat_table(found), _heat_caption(found)]
        if "-" not in g.name:
            parts += _figures(page, found, corpora)
        page.raw(details(f"Gates of {g.name}, seed {found.run.seed}", *parts, opened=position == 0))
    for g in decoders:
        page.raw(
            details(f"Decoder gates of {g.name}, seed {g.runs[0].seed}", *_decoder_parts(page, g.runs[0]))
        )


def _captioned(page: Page, table: Table | None, text: str) -> None:
    if table is not None:
        page.raw(table.html())
        page.raw(caption(text))


def agreement_table(studies: Sequence[Study]) -> Table | None:
    """One row for every run with a known truth: the mask's figure, and the energy VAD's at the same share."""
    known = [(found, found.agreement) for found in studies if found.agreement is not None]

    def both(heading: str, name: str, layer: int | slice = slice(None)) -> Column:
        def shown(row: tuple[Study, Any]) -> str:
            return " / ".join(_mean(getattr(row[1], of)[layer]) for of in (name, f"energy_{name}"))

        return Column(heading, shown)

    columns = [
        Column("run", lambda row: f"{row[0].run.name}, seed {row[0].run.seed}"),
        both("precision", "precision"),
        both("recall", "recall"),
        both("AUC", "auc"),
        both("AUC, first layer", "auc", 0),
        both("AUC, last layer", "auc", -1),
        Column("share of speech", lambda row: row[1].speech_share, ".3f"),
    ]
    return render(known, columns) if known else None


def _mean(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.3f}" if len(finite) else "-"


def _heat_caption(found: Study) -> str:
    known = "" if found.speech_UT is None else " Speech and pauses are the true ones of the corpus's maker."
    languages = found.kept_by_language("real")
    spoken = "; ".join(
        f"{language} {100 * kept_M.mean():.1f} %"
        for language, kept_M in languages.items()
        if np.isfinite(kept_M).all()
    )
    by_language = f" Of real frames, by language: {spoken}." if spoken else ""
    return caption(
        f"Share of frames, in percent, on which each module of each layer runs, over {len(found.record.utt_ids)} "
        f"utterances, from the stored gates. Real frames are those with signal.{known}{by_language} The encoder does "
        "not see the task, so the shares are the same for recognition and translation."
    )


def _figures(page: Page, found: Study, corpora: Corpora) -> list[str]:
    record = found.record
    utterance = telling_utterance(found)
    utt_id = record.utt_ids[utterance]
    utterances = corpora.of(found.run, record.utt_ids)
    samples = None if utterances is None else utterances.samples(utt_id)
    truth = None if utterances is None else utterances.truth.get(utt_id)
    text = (
        f"{utt_id} through {found.run.name}, seed {found.run.seed} (the paper's Figure 1): orange where a module runs, "
        "layers from bottom to top, padding right of the dashed line."
    )
    if samples is not None:
        text += " On top the log-mel spectrogram (80 bands, 60 dB)."
    if truth is not None:
        text += " Blue: true speech. The utterance is the one with most pause between words."
    made = [page.figure(mask_figure(found, utterance, samples, truth), text, wide=True)]
    if found.agreement is not None:
        made.append(
            page.figure(
                agreement_figure(found),
                "Agreement of each module's mask with true speech, by layer, over frames with signal. Dotted, in the "
                "same colour: an energy VAD that opens as many frames of each utterance, the loudest. Grey: keeping "
                "everything (precision), chance (AUC).",
                wide=True,
            )
        )
    if varied(found):
        made.append(
            page.figure(
                relations_figure(found),
                "Share of an utterance's frames with signal that run, averaged over layers and modules. A point is an "
                "utterance, the line joins means of fifths. Word rate is over true speech where it is known, else "
                "over the segment; utterances without added noise have no ratio.",
                wide=len(varied(found)) > 1,
            )
        )
    return made


def _decoder_gates(run: Evaluated) -> Path:
    return run.gates.with_name(f"{run.metrics['data']['split']}.decoder.npz")


def _decoder_parts(page: Page, run: Evaluated) -> list[str]:
    record = read_decoder_gates(_decoder_gates(run))
    return [
        page.figure(
            token_figure(record, typical_tokens(record)),
            "How often each decoder module of each layer runs for common tokens (the paper's Figure 2, which shows one "
            "occurrence each); the first layer is on top, [Space] begins a word.",
            wide=True,
        ),
        token_test_table(token_summary(record)["tests"]).html(),
        caption(
            "Share of layers in which a module runs, tokens that begin a word against all others (the paper's Table 2, "
            "which tests source attention on German recognition): Mann-Whitney U and Welch's t, two-sided."
        ),
    ]
