"""How figures look: colour-blind safe, on paper as on a light or a dark page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from zlib import crc32

from localgp.io import written

# Okabe and Ito's colours, told apart by every kind of colour vision.
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")  # beside the colour, never the colour alone

# How every plot draws an experiment: colour (None: ink) and marker. Filled are the paper's rows, GlobalGP's square;
# hollow are our controls, the open and the shuffled one in the look of the row that they are a control of.
_RUNS = {
    "row01": (None, "o"),
    "row02": (VERMILION, "s"),
    "row03": (ORANGE, "s"),
    "row04": (PURPLE, "s"),
    "row05": (BLUE, "o"),
    "row06": (SKY, "^"),
    "row07": (GREEN, "v"),
    "row08": (PURPLE, "D"),
    "row09": (ORANGE, "P"),
    "row10": (VERMILION, "X"),
    "row11": (VERMILION, "*"),
    "row12": (BLUE, "*"),
    "row13": (GREEN, "*"),
    "rival_topk": (BLUE, "<"),
    "rival_layerdrop": (PURPLE, ">"),
    "rival_eas": (GREEN, "h"),
    "rival_atome": (ORANGE, "H"),
    "control_open": (BLUE, "o"),
    "control_random": (ORANGE, "D"),
    "control_vad": (GREEN, "s"),
    "control_trim": (None, "p"),
    "control_shuffled_speaker": (SKY, "^"),
    "control_speechprune": (VERMILION, "v"),
}
_OTHERS = ("8", "d", "1", "2")  # of experiments that are not ours

INK, FAINT = "#1c1d1e", "#c9cacb"  # replaced by the page's own where a figure becomes a part of one


def run_style(experiment: str) -> dict[str, Any]:
    """Colour and marker of an experiment, the same in every plot and whatever else is drawn.

    Args:
        experiment: Its name without a variant; one that is unknown here gets what its name says.

    Examples:
        >>> run_style("row05")["marker"], run_style("row05")["markerfacecolor"]
        ('o', '#0072B2')
        >>> run_style("control_open")["marker"], run_style("control_open")["markerfacecolor"]
        ('o', 'none')
    """
    if experiment in _RUNS:
        given, marker = _RUNS[experiment]
        colour = given or INK
    else:
        place = crc32(experiment.encode())
        colour, marker = SERIES[place % len(SERIES)], _OTHERS[place // len(SERIES) % len(_OTHERS)]
    hollow = experiment.startswith("control_")
    return {"color": colour, "marker": marker, "markerfacecolor": "none" if hollow else colour}


def pyplot() -> Any:
    """matplotlib.pyplot without a display, with our defaults."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "localgp",  # the same figure is the same file
            "svg.fonttype": "none",  # text stays text: small, sharp, can be searched
            "font.family": "sans-serif",
            "font.size": 9.5,
            "axes.titlesize": 9.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "savefig.facecolor": "white",
            "figure.max_open_warning": 0,
        }
    )
    import matplotlib.pyplot as plt

    return plt


def page_svg(figure: Any, name: str, description: str) -> str:
    """The figure as SVG text for an HTML page: no background, ink and grid in the page's colours.

    Args:
        name: Unique on the page; the SVG's ids begin with it.
        description: Read out by screen readers.
    """
    from html import escape

    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", pad_inches=0.03, transparent=True, metadata={"Date": None}
    )
    pyplot().close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    text = re.sub(r'font: ([\d.]+px) [^;"]*', r"font: \1 system-ui, sans-serif", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description, quote=True)}" ', 1)


def save_figure(figure: Any, path: Path) -> Path:
    """Writes the figure, black on white, aside and renames it; the ending chooses the format."""
    with written(path, path.suffix) as temporary:
        figure.savefig(temporary, dpi=200, bbox_inches="tight")
    pyplot().close(figure)
    return path
