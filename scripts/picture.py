"""Quality against measured seconds, drawn from a table of RESULTS.md: the picture of the README.

python scripts/picture.py "Row 11 against the others in time, on generated speech" docs/images/quality-seconds.svg
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

from localgp.cli import reported
from localgp.errors import LocalGPError
from localgp.io import written
from localgp.report.style import INK, pyplot, run_style

GREY = "#808080"


def section_table(text: str, heading: str) -> list[dict[str, str]]:
    """The first table below a heading, a row of cells by column.

    Raises:
        LocalGPError: If the heading or a table below it is not there.
    """
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    lines = [line for line in (found[1] if found else "").splitlines() if line.startswith("|")]
    if len(lines) < 3:
        headings = ", ".join(re.findall(r"^## (.*)", text, re.M))
        raise LocalGPError(f"no table under the heading {heading!r}; the headings are: {headings}")
    names, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in rows[1:]]


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """BLEU and WER, each over seconds; ink that is read on a light and on a dark page."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, (score, better) in zip(panels, (("BLEU", "higher"), ("WER, %", "lower")), strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            name, _, budget = row["run"].replace("`", "").partition(" at ")
            x, y = float(row["total"]), float(row[score.partition(",")[0]])
            axes.plot(x, y, linestyle="none", markersize=6, **run_style(name))
            label = name.removeprefix("control_").removeprefix("rival_") + (budget and f", {budget}")
            axes.annotate(label, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7.5)
            curves.setdefault(name, []).append((x, y))
        for name, points in curves.items():  # of one model, at several budgets
            axes.plot(*zip(*points, strict=True), color=run_style(name)["color"], linewidth=1)
        axes.set_xlabel("seconds / dense: encoder, contexts, decoder")
        axes.set_ylabel(f"{score} ({better} is better)")
        axes.margins(0.12)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    with written(path, path.suffix) as temporary:
        temporary.write_text(drawn.getvalue().replace(INK, GREY))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heading", help="of the section whose table has run, WER, BLEU and total")
    parser.add_argument("out", type=Path, help="an SVG")
    parser.add_argument("--results", type=Path, default=Path("RESULTS.md"))
    args = parser.parse_args()
    with reported():
        draw(section_table(args.results.read_text(), args.heading), args.out)


if __name__ == "__main__":
    main()
