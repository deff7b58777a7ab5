"""Tables of what runs score, skip and cost; every number comes from a metrics.json, or is the paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from localgp.evaluation.results import Identity, stored_evaluations
from localgp.evaluation.summary import part_of, varying
from localgp.report.paper import BLEU_TASKS, TABLE_1, WER_TASKS
from localgp.report.runs import Evaluated, Group, in_order
from localgp.stored import run_config, section
from localgp.tables import NOT_RUN, Column, Table, render
from localgp.window import window_of

# Of the encoder, as the paper counts; of extracting its contexts, which the paper leaves out; of the decoder.
GFLOPS = ("encoder", "context", "total", "decoder")
_NAME = Column("run", lambda group: group.name)
_Figure = Callable[[str, str], Any]  # of a row and a key of `_AVERAGES`
_SEEDS = Column("seeds", lambda group: len(group.runs))


def _shown(heading: str, *keys: str, span: str = "", **how: Any) -> Column:
    """A figure of a group's metrics, as `Group.show` shows it."""
    return Column(heading, lambda group: group.show(*keys, **how), span=span)


def _share(heading: str, *keys: str, span: str = "") -> Column:
    return _shown(heading, *keys, span=span, scale=100, unit=" %")


def _tasks(groups: Sequence[Group], kind: str) -> list[str]:
    names = {task for g in groups for run in g.runs for task in run.metrics[kind]}
    return [*sorted(names - {"average"}), *(["average"] if "average" in names else [])]


def scores(groups: Sequence[Group]) -> Table:
    """WER and BLEU per task, skipped shares and GFLOPs of one corpus part and backbone."""
    return render(
        groups,
        [
            _NAME,
            _SEEDS,
            *(_shown(task, "wer", task, span="WER") for task in _tasks(groups, "wer")),
            *(_shown(task, "bleu", task, span="BLEU") for task in _tasks(groups, "bleu")),
            _share("all frames", "sparsity", "all_frames", span="skipped"),
            _share("real frames", "sparsity", "real_frames", span="skipped"),
            _share("tokens", "sparsity", "decoder_tokens", span="skipped"),
            *(_shown(part, "gflops", part, digits=3, span="GFLOPs") for part in GFLOPS),
            # Outputs with over twice the letters of their reference; letters that are written where nothing is said.
            _share("over twice", "hallucination", "over_twice", "average", span="unsaid"),
            _shown("on silence", "hallucination", "silence", span="unsaid"),
            _shown("on noise", "hallucination", "noise", span="unsaid"),
        ],
    )


def short_scores(groups: Sequence[Group]) -> Table:
    """The averages alone, for a README."""
    return render(
        groups,
        [
            _NAME,
            Column("gates", lambda group: description(group)[1]),
            Column("context", lambda group: description(group)[2]),
            _SEEDS,
            _shown("WER", "wer", "average"),
            _shown("BLEU", "bleu", "average"),
            _share("skipped, all frames", "sparsity", "all_frames"),
            _share("skipped, real frames", "sparsity", "real_frames"),
            _share("skipped, tokens", "sparsity", "decoder_tokens"),
            _shown("encoder GFLOPs", "gflops", "encoder", digits=3),
            _shown("contexts' GFLOPs", "gflops", "context", digits=3),
        ],
    )


def seeds_table(groups: Sequence[Group]) -> Table | None:
    """Averages of every seed, where an experiment has several."""
    several = [Group(g.name, (run,)) for g in groups if len(g.runs) > 1 for run in g.runs]
    columns = [
        _NAME,
        Column("seed", lambda one: one.runs[0].seed),
        _shown("WER", "wer", "average", digits=2),
        _shown("BLEU", "bleu", "average", digits=2),
        _share("skipped, all frames", "sparsity", "all_frames"),
        _shown("encoder GFLOPs", "gflops", "encoder", digits=3),
    ]
    return render(several, columns) if several else None


def kept(groups: Sequence[Group]) -> Table | None:
    """Share of frames that run, per module kind, over all frames and over those with signal, of tokens in the
    decoder, and the share of padding in what is skipped and in everything; None without gates."""
    gated = [g for g in groups if any(run.metrics["kept"] for run in g.runs)]
    names = sorted({n for g in gated for run in g.runs for n in run.metrics["kept"]})
    if not names:
        return None
    frames = [n for n in names if not n.startswith("decoder.")]
    tokens = [n for n in names if n.startswith("decoder.")]
    return render(
        gated,
        [
            _NAME,
            *(_shown(n, "kept", n, digits=2, span="of all frames") for n in frames),
            *(_shown(n, "kept_real", n, digits=2, span="of real frames") for n in frames),
            *(_shown(n, "kept", n, digits=2, span="of tokens") for n in tokens),
            _shown("skipped that is padding", "sparsity", "skipped_that_is_padding", digits=2, span="frames"),
            _shown("all that is padding", "sparsity", "padding", digits=2, span="frames"),
        ],
    )


def description(group: Group) -> tuple[str, str, str]:
    """What is pruned, by which gates, from which context: from the run's own configuration."""
    config = run_config(group.runs[0].path)
    pruning = section(config, "pruning")
    if not pruning:
        return "?", "?", "?"
    encoder, decoder = pruning.get("encoder"), pruning.get("decoder")
    if not encoder and not decoder:
        window = window_of(config)
        return "-" if window.is_full else f"window: {window}", "-", "-"
    pruned = "both" if encoder and decoder else "encoder" if encoder else "decoder"
    gates = "/".join(dict.fromkeys(kind for kind in (encoder, decoder) if kind))
    learnt = gates in ("local", "global", "local/global", "global/local")
    names = [*(pruning.get("context") or []), *(pruning.get("decoder_context") or [])]
    context = "+".join(dict.fromkeys(names)) if learnt and names else "-"
    return pruned, gates, context


def _change(value: float | None, base: float | None) -> str | None:
    """Relative change in percent."""
    return None if value is None or not base else f"{100 * (value / base - 1):+.1f} %"


def side_by_side(groups: Sequence[Group]) -> Table:
    """The paper's Table 1 and ours, averages only, each with the change against its own row 1.

    All of the paper's rows are there, run or not; our own controls and variants follow without a paper's side.
    """
    ours = {g.name: g for g in groups}
    names = [*TABLE_1]
    for name in ours:  # a variant stands after its row
        if name not in names:
            before = [i for i, n in enumerate(names) if n.split("-")[0] == name.split("-")[0]]
            names.insert(before[-1] + 1 if before else len(names), name)

    def what(name: str) -> tuple[str, str, str]:
        if name not in TABLE_1:
            return description(ours[name])
        pruned, local, context, *_ = TABLE_1[name]
        return pruned, "-" if pruned == "-" else "local" if local else "global", context

    def printed(name: str, key: str) -> float | None:
        *_, wer, bleu, gflops = TABLE_1.get(name, _NOT_PRINTED)
        return {"WER": wer[-1], "BLEU": bleu[-1], "GFLOPs": gflops}[key]

    def mean(name: str, key: str) -> float | None:
        return ours[name].mean(*_AVERAGES[key]) if name in ours else None

    def shown(name: str, key: str) -> str | None:
        return ours[name].show(*_AVERAGES[key], digits=3 if key == "GFLOPs" else 1) if name in ours else None

    def side(span: str, show: _Figure, form: str, mean: _Figure) -> list[Column]:
        def change(key: str) -> Column:
            return Column(f"Δ {key}", lambda name: _change(mean(name, key), mean("row01", key)), span=span)

        def figure(key: str) -> Column:
            return Column(key, lambda name: show(name, key), form, span)

        return [*map(figure, _AVERAGES), *map(change, _AVERAGES)]

    columns = [
        Column("row", str),
        Column("pruned", lambda name: what(name)[0]),
        Column("gates", lambda name: what(name)[1]),
        Column("context", lambda name: what(name)[2]),
        *side("paper", printed, ".1f", printed),
        Column("seeds", lambda name: len(ours[name].runs) if name in ours else NOT_RUN, span="ours"),
        *side("ours", shown, "", mean),
    ]
    return render(names, columns)


_AVERAGES = {"WER": ("wer", "average"), "BLEU": ("bleu", "average"), "GFLOPs": ("gflops", "encoder")}
_NOT_PRINTED: tuple[Any, ...] = ("-", None, "-", (None,), (None,), None)


def paper_table() -> Table:
    """The paper's Table 1, as printed there."""
    return render(
        TABLE_1.items(),
        [
            Column("row", 0),
            Column("pruned", (1, 0)),
            Column("LocalGP", (1, 1), lambda local: "yes" if local else "-"),
            Column("context", (1, 2)),
            *(Column(task, (1, 3, i), ".1f", "WER") for i, task in enumerate(WER_TASKS)),
            *(Column(task, (1, 4, i), ".1f", "BLEU") for i, task in enumerate(BLEU_TASKS)),
            Column("encoder", (1, 5), ".1f", "GFLOPs"),
        ],
    )


EVERY = "All evaluations"
EVALUATIONS = (
    "Every evaluation of the runs that have several, with the decode options in which they differ. The one that leads "
    "is in the tables above: the whole test set, decoded as the run was trained to be, where that has been evaluated."
)


def evaluations_table(runs: Sequence[Evaluated]) -> Table | None:
    """None where no run has more than one that was made with the weights it has now."""
    found: list[tuple[Evaluated, dict[str, Any]]] = []
    for run in in_order(runs):
        now = Identity.of(run.metrics)
        of_run = [m for m in stored_evaluations(run.path) if not Identity.of(m).of_other_weights(now)]
        found += [(run, m) for m in of_run] if len(of_run) > 1 else []
    if not found:
        return None

    def averaged(of: Column) -> Column:
        return Column(of.heading, lambda row: of.cell(Group(row[0].name, (replace(row[0], metrics=row[1]),))))

    def leads(row: tuple[Evaluated, dict[str, Any]]) -> str:
        tag = (row[0].metrics.get("evaluation") or {}).get("tag")
        return "yes" if row[1]["evaluation"]["tag"] == tag else ""

    def weights(row: tuple[Evaluated, dict[str, Any]]) -> str:
        return str((row[1].get("asked") or {}).get("checkpoint") or "")

    columns = [
        Column("run", lambda row: row[0].key),
        Column("scored", lambda row: part_of(row[1])),
        *(Column(name, (1, "decode", name), str) for name in varying([metrics for _, metrics in found])),
        *(
            [Column("weights", lambda row: weights(row) or "the run's own")]
            if any(map(weights, found))
            else []
        ),
        averaged(_shown("WER", "wer", "average")),
        averaged(_shown("BLEU", "bleu", "average")),
        averaged(_share("skipped", "sparsity", "all_frames")),
        Column("leads", leads),
    ]
    return render(found, columns)
