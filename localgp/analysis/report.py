"""One self-contained page, and RESULTS.md, from everything under ``exp/``."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.analysis.collect import Evaluated, collect, group
from localgp.analysis.figures import kept_by_layer, mask_figure
from localgp.analysis.markdown import describe, kept, paper_table, results, scores
from localgp.evaluation.gates_file import read_gates
from localgp.run import write_atomically

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .85rem; opacity: .8; }
.paper { background: var(--soft); padding: .5rem 1rem; border-left: 4px solid var(--line); }
"""


def html_table(markdown: str) -> str:
    """The Markdown tables of `localgp.analysis.markdown` as HTML, so that both say the same."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if not line.startswith("|---")]
    head = "".join(f"<th>{html.escape(c)}</th>" for c in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in lines[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def gate_figures(run: Evaluated, samples: dict[str, Any]) -> list[str]:
    """Figures of one run's stored gates; none for a dense one."""
    path = run.path / "gates" / f"{run.metrics['data']['split']}.npz"
    if not path.exists():
        return []
    record = read_gates(path)
    figures = [
        (
            kept_by_layer(record, run.name),
            f"{run.name}, seed {run.seed}: share of frames with signal on which each module of each layer runs, "
            f"over {len(record.utt_ids)} utterances.",
        )
    ]
    utterance = next((i for i, u in enumerate(record.utt_ids) if u in samples), None)
    if utterance is not None and "attention" in record.modules:
        utt_id = record.utt_ids[utterance]
        figures.append(
            (
                mask_figure(record, utterance, "attention", samples[utt_id] / 32768.0),
                f"{run.name}, seed {run.seed}, {utt_id}: spectrogram, and the frames on which self-attention runs "
                "in each layer (the paper's Figure 1).",
            )
        )
    return [f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>" for svg, text in figures]


def build_report(cfg: DictConfig) -> tuple[Path, Path, str]:
    """Writes ``<exp_dir>/report.html`` and ``<exp_dir>/RESULTS.md``.

    Returns:
        Both paths, and RESULTS.md's text.
    """
    exp_dir = Path(cfg.exp_dir)
    runs = collect(exp_dir)
    samples = _samples(cfg, runs)
    parts = ["<h1>localgp: results</h1>"]
    for (label, backbone), groups in group(runs).items():
        parts += [
            f"<h2>{html.escape(label)}; backbone {html.escape(backbone)}</h2>",
            html_table(scores(groups)),
        ]
        parts.append(f"<p>{html.escape(describe(groups))}</p>")
        table = kept(groups)
        if table:
            parts += ["<h3>What runs</h3>", html_table(table)]
        for g in groups:
            parts += gate_figures(g.runs[0], samples)
    parts.append(
        '<div class="paper"><h2>The paper\'s Table 1 (Europarl-ST v1.1, OWSM-v3.1-medium)</h2><p>Another corpus and '
        "another backbone; not to be compared number by number.</p>" + html_table(paper_table()) + "</div>"
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>localgp: results</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    text = results(runs)
    write_atomically(exp_dir / "report.html", page)
    write_atomically(exp_dir / "RESULTS.md", text)
    return exp_dir / "report.html", exp_dir / "RESULTS.md", text


def _samples(cfg: DictConfig, runs: list[Evaluated]) -> dict[str, Any]:
    """Samples of a few test utterances of this configuration's corpus, where it is prepared."""
    from localgp.corpora.prepared import load_prepared
    from localgp.errors import LocalGPError

    if not any(run.corpus == cfg.corpus.name for run in runs):
        return {}
    try:
        rows = load_prepared(cfg)["test"]
    except LocalGPError:
        return {}  # a report needs no corpus: only the spectrograms are left out
    return {rows[i]["utt_id"]: rows[i]["samples"] for i in range(min(3, len(rows)))}
