"""Pieces of the report page: figures, heat tables, the viewer, and the page around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from localgp.report.study import Study
from localgp.report.style import page_svg

_STRONG = 70  # percent from which a heat cell is bright enough for dark text on a dark page


@dataclass
class Page:
    """Collects the parts of a page; sections enter the table of contents."""

    title: str
    parts: list[str] = field(default_factory=list)
    contents: list[tuple[str, str]] = field(default_factory=list)
    figures: int = 0

    def section(self, title: str) -> None:
        anchor = f"section-{len(self.contents) + 1}"
        self.contents.append((anchor, title))
        self.parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def heading(self, title: str) -> None:
        self.parts.append(f"<h3>{escape(title)}</h3>")

    def text(self, text: str, kind: str = "") -> None:
        self.parts.append(f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>")

    def raw(self, html: str) -> None:
        self.parts.append(html)

    def figure(self, figure: Any, caption: str, wide: bool = False) -> str:
        """HTML of a matplotlib figure with its caption; to be added with `raw`.

        Args:
            wide: Keeps its width on a narrow screen, in a box that scrolls sideways.
        """
        self.figures += 1
        svg = page_svg(figure, f"figure{self.figures}", caption)
        box = f'<div class="scroll wide" tabindex="0">{svg}</div>' if wide else svg
        return f"<figure>{box}<figcaption>{escape(caption)}</figcaption></figure>"

    def html(self) -> str:
        """The page: one file that loads nothing, and by its policy could not."""
        page = resources.files("localgp.report.assets")
        style = page.joinpath("report.css").read_text(encoding="utf-8")
        script = page.joinpath("report.js").read_text(encoding="utf-8")
        links = "".join(f'<li><a href="#{a}">{escape(t)}</a></li>' for a, t in self.contents)
        policy = "; ".join(
            (
                "default-src 'none'",
                "style-src 'unsafe-inline'",
                "script-src 'unsafe-inline'",
                "img-src data:",
                "media-src data:",
            )
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n'
            f"<script>\n{script}</script>\n</head>\n<body>\n<h1>{escape(self.title)}</h1>\n"
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n'
            + "\n".join(self.parts)
            + "\n</body>\n</html>\n"
        )


def caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def details(summary: str, *parts: str, opened: bool = False) -> str:
    return (
        f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{''.join(parts)}</details>"
    )


def viewer(data: dict[str, Any]) -> str:
    """The mask viewer with its data (`localgp.report.viewer`)."""
    body = resources.files("localgp.report.assets").joinpath("viewer.html").read_text(encoding="utf-8")
    # In a script element only "</script" and "<!--" could end the data early.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'{body}<script type="application/json" id="viewer-data">{text}</script>'


def heat_table(study: Study) -> str:
    """Share of frames that run, percent: layers (the first at the bottom) by regions and modules."""
    regions: Sequence[str] = ("all", "real", *study.counts.regions)
    kept = {region: study.counts.kept(region) for region in regions}
    modules = study.counts.modules
    gap = '<td class="gap"></td>'
    titles = gap.join(
        f'<th colspan="{len(modules)}" scope="colgroup">{region} frames</th>' for region in regions
    )
    names = gap.join("".join(f'<th scope="col">{escape(m)}</th>' for m in modules) for _ in regions)
    rows = []
    for layer in reversed(range(study.record.open.shape[1])):
        groups = [
            "".join(_heat_cell(kept[region][layer, m]) for m in range(len(modules))) for region in regions
        ]
        rows.append(f'<tr><th scope="row">{layer + 1}</th>{gap.join(groups)}</tr>')
    return (
        '<div class="scroll" tabindex="0"><table class="heat"><thead>'
        f'<tr><th></th>{titles}</tr><tr><th scope="col">layer</th>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cell(share: float) -> str:
    if not np.isfinite(share):
        return "<td>-</td>"
    percent = 100 * share
    strong = ' class="strong"' if percent >= _STRONG else ""
    return f'<td{strong} style="--v:{percent:.1f}" title="{percent:.2f} %">{percent:.0f}</td>'
