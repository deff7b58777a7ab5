"""Results as tables that Markdown and HTML both show; every number comes from a metrics.json, or is the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from localgp.evaluation.results import Identity, stored
from localgp.evaluation.table import part_of, varying
from localgp.report.paper import BLEU_TASKS, TABLE_1, WER_TASKS
from localgp.report.runs import Evaluated, Group, in_order
from localgp.stored import run_config, section
from localgp.window import window_of

NOT_RUN = "not run"
# Of the encoder, as the paper counts; of extracting its contexts, which the paper leaves out; of the decoder.
GFLOPS = ("encoder", "context", "total", "decoder")
# Outputs with over twice the letters of their reference; letters that are written where nothing is said.
UNSAID = ("over twice", "on silence", "on noise")


@dataclass(frozen=True)
class Table:
    """A table for Markdown and page.

    Attributes:
        header: Of the columns; the first column is text, the others are figures.
        rows: Cells, as many as the header has.
        spans: Titles over neighbouring columns with how many they cover, in order; an empty title covers too.
    """

    header: list[str]
    rows: list[list[str]]
    spans: tuple[tuple[str, int], ...] = ()

    def _span_of_column(self) -> list[str]:
        return [title for title, count in self.spans for _ in range(count)] or [""] * len(self.header)

    def markdown(self) -> str:
        """GitHub's table; a span's title goes before its columns' names."""
        spans = self._span_of_column()
        names = [f"{span}: {name}" if span else name for span, name in zip(spans, self.header, strict=True)]
        lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(self.header) - 1)}"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows])

    def html(self) -> str:
        """In a box that scrolls sideways; the n-th span's columns have the class ``span<n>``."""
        classes = [
            f' class="span{n}"' if title else ""
            for n, (title, count) in enumerate(self.spans)
            for _ in range(count)
        ]
        classes = classes or [""] * len(self.header)
        head = ""
        if self.spans:
            cells = [
                f'<th colspan="{count}"{f" class=span{n}" if title else ""} scope="colgroup">{escape(title)}</th>'
                for n, (title, count) in enumerate(self.spans)
            ]
            head = f"<tr>{''.join(cells)}</tr>"
        names = [f'<th{c} scope="col">{escape(h)}</th>' for c, h in zip(classes, self.header, strict=True)]
        body = []
        for row in self.rows:
            cells = [f"<td{c}>{_cell(value)}</td>" for c, value in zip(classes[1:], row[1:], strict=True)]
            body.append(f'<tr><th{classes[0]} scope="row">{escape(row[0])}</th>{"".join(cells)}</tr>')
        return (
            f'<div class="scroll" tabindex="0"><table><thead>{head}<tr>{"".join(names)}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )


def _cell(value: str) -> str:
    return f'<span class="missing">{value}</span>' if value == NOT_RUN else escape(value)


def _tasks(groups: Sequence[Group], kind: str) -> list[str]:
    names = {task for g in groups for run in g.runs for task in run.metrics[kind]}
    return [*sorted(names - {"average"}), *(["average"] if "average" in names else [])]


def scores(groups: Sequence[Group]) -> Table:
    """WER and BLEU per task, skipped shares and GFLOPs of one corpus part and backbone."""
    wer, bleu = _tasks(groups, "wer"), _tasks(groups, "bleu")
    header = ["run", "seeds", *wer, *bleu, "all frames", "real frames", "tokens", *GFLOPS, *UNSAID]
    rows = [
        [
            g.name,
            str(len(g.runs)),
            *(g.show("wer", t) for t in wer),
            *(g.show("bleu", t) for t in bleu),
            g.show("sparsity", "all_frames", scale=100, unit=" %"),
            g.show("sparsity", "real_frames", scale=100, unit=" %"),
            g.show("sparsity", "decoder_tokens", scale=100, unit=" %"),
            *(g.show("gflops", part, digits=3) for part in GFLOPS),
            g.show("hallucination", "over_twice", "average", scale=100, unit=" %"),
            *(g.show("hallucination", kind, digits=1) for kind in ("silence", "noise")),
        ]
        for g in groups
    ]
    spans = (
        ("", 2),
        ("WER", len(wer)),
        ("BLEU", len(bleu)),
        ("skipped", 3),
        ("GFLOPs", len(GFLOPS)),
        ("unsaid", 3),
    )
    return Table(header, rows, spans)


def short_scores(groups: Sequence[Group]) -> Table:
    """The averages alone, for a README."""
    header = [
        "run",
        "gates",
        "context",
        "seeds",
        "WER",
        "BLEU",
        "skipped, all frames",
        "skipped, real frames",
        "skipped, tokens",
    ]
    rows = [
        [
            g.name,
            *description(g)[1:],
            str(len(g.runs)),
            g.show("wer", "average"),
            g.show("bleu", "average"),
            g.show("sparsity", "all_frames", scale=100, unit=" %"),
            g.show("sparsity", "real_frames", scale=100, unit=" %"),
            g.show("sparsity", "decoder_tokens", scale=100, unit=" %"),
            g.show("gflops", "encoder", digits=3),
            g.show("gflops", "context", digits=3),
        ]
        for g in groups
    ]
    return Table([*header, "encoder GFLOPs", "contexts' GFLOPs"], rows)


def kept(groups: Sequence[Group]) -> Table | None:
    """Share of frames that run, per module kind, over all frames and over those with signal, of tokens in the
    decoder, and the share of padding in what is skipped and in everything; None without gates."""
    gated = [g for g in groups if any(run.metrics["kept"] for run in g.runs)]
    names = sorted({n for g in gated for run in g.runs for n in run.metrics["kept"]})
    if not names:
        return None
    frames = [n for n in names if not n.startswith("decoder.")]
    tokens = [n for n in names if n.startswith("decoder.")]
    rows = [
        [
            g.name,
            *(g.show("kept", n, digits=2) for n in frames),
            *(g.show("kept_real", n, digits=2) for n in frames),
            *(g.show("kept", n, digits=2) for n in tokens),
            g.show("sparsity", "skipped_that_is_padding", digits=2),
            g.show("sparsity", "padding", digits=2),
        ]
        for g in gated
    ]
    parts = (("of all frames", frames), ("of real frames", frames), ("of tokens", tokens))
    header = [
        "run",
        *(n for _, columns in parts for n in columns),
        "skipped that is padding",
        "all that is padding",
    ]
    spans = (("", 1), *((title, len(columns)) for title, columns in parts if columns), ("frames", 2))
    return Table(header, rows, spans)


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


def _change(value: float | None, base: float | None) -> str:
    """Relative change in percent."""
    return "-" if value is None or not base else f"{100 * (value / base - 1):+.1f} %"


def side_by_side(groups: Sequence[Group]) -> Table:
    """The paper's Table 1 and ours, averages only, each with the change against its own row 1.

    All of the paper's rows are there, run or not; our own controls and variants follow without a paper's side.
    """
    ours = {g.name: g for g in groups}
    dense = ours.get("row01")
    base = {
        key: dense.mean(*key) if dense else None
        for key in (("wer", "average"), ("bleu", "average"), ("gflops", "encoder"))
    }
    paper_base = TABLE_1["row01"]
    rows = []
    names = [*TABLE_1]
    for name in ours:  # a variant stands after its row
        if name not in names:
            before = [i for i, n in enumerate(names) if n.split("-")[0] == name.split("-")[0]]
            names.insert(before[-1] + 1 if before else len(names), name)
    for name in names:
        if name in TABLE_1:
            pruned, local, context, wer, bleu, gflops = TABLE_1[name]
            what = [pruned, "-" if pruned == "-" else "local" if local else "global", context]
            theirs = [f"{wer[-1]:.1f}", f"{bleu[-1]:.1f}", "-" if gflops is None else f"{gflops:.1f}"]
            theirs += [
                _change(wer[-1], paper_base[3][-1]),
                _change(bleu[-1], paper_base[4][-1]),
                _change(gflops, paper_base[5]),
            ]
        else:
            what, theirs = list(description(ours[name])), ["-"] * 6
        g = ours.get(name)
        if g is None:
            mine = [NOT_RUN, *["-"] * 6]
        else:
            mine = [
                str(len(g.runs)),
                g.show("wer", "average"),
                g.show("bleu", "average"),
                g.show("gflops", "encoder", digits=3),
            ]
            mine += [_change(g.mean(*key), value) for key, value in base.items()]
        rows.append([name, *what, *theirs, *mine])
    figures = ["WER", "BLEU", "GFLOPs", "Δ WER", "Δ BLEU", "Δ GFLOPs"]
    header = ["row", "pruned", "gates", "context", *figures, "seeds", *figures]
    return Table(header, rows, (("", 4), ("paper", 6), ("ours", 7)))


def paper_table() -> Table:
    """The paper's Table 1, as printed there."""
    header = ["row", "pruned", "LocalGP", "context", *WER_TASKS, *BLEU_TASKS, "encoder"]
    rows = [
        [
            name,
            pruned,
            "yes" if local else "-",
            context,
            *(f"{v:.1f}" for v in wer),
            *(f"{v:.1f}" for v in bleu),
            "-" if gflops is None else f"{gflops:.1f}",
        ]
        for name, (pruned, local, context, wer, bleu, gflops) in TABLE_1.items()
    ]
    return Table(header, rows, (("", 4), ("WER", len(WER_TASKS)), ("BLEU", len(BLEU_TASKS)), ("GFLOPs", 1)))


EVERY = "All evaluations"
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
