"""Figures of one run's gates, as matplotlib figures (`localgp.report.style` turns them into files or page parts).

Shape legend: L layers, M gated modules, T encoder frames, F mel bands, S feature frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from localgp.report.study import PROPERTIES, Study
from localgp.report.style import BLUE, FAINT, INK, MARKERS, ORANGE, SERIES, pyplot
from localgp.report.utterances import Truth
from localgp.spectrogram import HOP, SAMPLE_RATE, band_centres, log_mel


def _layer_ticks(axes: Any, layers: int) -> None:
    step = 1 if layers <= 9 else 3
    axes.set_yticks(range(1, layers + 1, step))


def mask_figure(
    study: Study,
    utterance: int,
    samples: np.ndarray | None = None,
    truth: Truth | None = None,
    modules: list[str] | None = None,
) -> Any:
    """The paper's Figure 1: log-mel spectrogram over the mask of each gated module, layers by time.

    Args:
        utterance: Its number in the study's record.
        samples: Its audio; without it there are the masks alone.
        truth: Draws true speech as a bar under the spectrogram.
        modules: Only these, in this order.
    """
    from matplotlib.colors import ListedColormap

    plt = pyplot()
    record = study.record
    names = list(record.modules) if modules is None else modules
    layers, frames = record.open.shape[1], record.open.shape[3]
    seconds = frames * record.seconds_per_frame
    ratios = ([2.2] if samples is not None else []) + ([0.16] if truth is not None else [])
    ratios += [max(0.8, 0.2 * layers)] * len(names)
    figure, grid = plt.subplots(
        len(ratios),
        1,
        sharex=True,
        squeeze=False,
        figsize=(7.2, 0.5 + 0.62 * sum(ratios) + 0.12 * len(names)),
        gridspec_kw={"height_ratios": ratios},
        layout="constrained",
    )
    rows = list(grid[:, 0])
    end = record.real[utterance, 1] * record.seconds_per_frame
    if samples is not None:
        _draw_log_mel(rows.pop(0), samples, seconds)
    if truth is not None:
        axes = rows.pop(0)
        axes.broken_barh([(a, b - a) for a, b in truth.speech], (0, 1), color=BLUE, linewidth=0)
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel("speech", rotation=0, ha="right", va="center")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(bottom=False)
    for name, axes in zip(names, rows, strict=True):
        axes.imshow(
            record.open[utterance, :, record.modules.index(name)],
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap=ListedColormap(["white", ORANGE]),
            vmin=0,
            vmax=1,
            extent=(0, seconds, 0.5, layers + 0.5),
        )
        axes.axvline(end, color=INK, linestyle="--", linewidth=0.9)
        _layer_ticks(axes, layers)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    rows[-1].set_xlabel("s")
    return figure


def _draw_log_mel(axes: Any, samples: np.ndarray, seconds: float) -> None:
    padded = np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    levels_FS = log_mel(padded)
    top = np.quantile(levels_FS, 0.995)
    bands = levels_FS.shape[0]
    axes.imshow(
        levels_FS,
        origin="lower",
        aspect="auto",
        cmap="cividis",
        vmin=top - 60,
        vmax=top,
        extent=(0, levels_FS.shape[1] * HOP / SAMPLE_RATE, 0, bands),
    )
    axes.set_xlim(0, seconds)
    centres = band_centres()
    marks = (500, 1000, 2000, 4000)
    axes.set_yticks(
        [float(np.interp(hz, centres, np.arange(bands) + 0.5)) for hz in marks],
        [f"{hz / 1000:g}" for hz in marks],
    )
    axes.set_ylabel("log-mel\nkHz")


def kept_figure(study: Study) -> Any:
    """Share of frames that run, layers by modules, one panel for each region."""
    plt = pyplot()
    regions = ("all", *study.counts.regions)
    modules = study.counts.modules
    layers = study.record.open.shape[1]
    figure, grid = plt.subplots(
        1,
        len(regions),
        squeeze=False,
        sharey=True,
        figsize=(0.9 + 0.62 * len(modules) * len(regions), 1.2 + 0.24 * layers),
        layout="constrained",
    )
    for region, axes in zip(regions, grid[0], strict=True):
        kept_LM = study.counts.kept(region)
        image = axes.imshow(
            kept_LM,
            vmin=0,
            vmax=1,
            cmap="cividis",
            aspect="auto",
            origin="lower",
            extent=(-0.5, len(modules) - 0.5, 0.5, layers + 0.5),
        )
        for (layer, module), value in np.ndenumerate(kept_LM):
            colour = "white" if not value > 0.55 else "black"
            axes.text(
                module, layer + 1, _share_text(value), ha="center", va="center", color=colour, fontsize=8
            )
        axes.set_xticks(range(len(modules)), modules, rotation=30, ha="right")
        axes.set_title(f"{region} frames")
        _layer_ticks(axes, layers)
    grid[0, 0].set_ylabel("layer")
    figure.colorbar(image, ax=grid[0], label="share that runs", fraction=0.05)
    return figure


def _share_text(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{100 * value:.0f}"


def agreement_figure(study: Study) -> Any:
    """Precision, recall and AUC of every mask against true speech, by layer, with the energy VAD's beside it."""
    plt = pyplot()
    assert study.agreement is not None
    a = study.agreement
    layers = np.arange(1, study.record.open.shape[1] + 1)
    figure, grid = plt.subplots(1, 3, figsize=(7.2, 2.5), sharey=True, layout="constrained")
    for axes, (title, chance) in zip(
        grid, (("precision", a.speech_share), ("recall", None), ("auc", 0.5)), strict=True
    ):
        mask_LM, energy_LM = getattr(a, title), getattr(a, f"energy_{title}")
        for m, name in enumerate(study.counts.modules):
            colour, marker = SERIES[m % len(SERIES)], MARKERS[m % len(MARKERS)]
            axes.plot(
                layers, mask_LM[:, m], color=colour, marker=marker, markersize=4, linewidth=1.3, label=name
            )
            axes.plot(layers, energy_LM[:, m], color=colour, linestyle=":", linewidth=1.1)
        if chance is not None:
            axes.axhline(chance, color=FAINT, linewidth=1, zorder=0)
        axes.set_title("AUC" if title == "auc" else title)
        axes.set_xlabel("layer")
        axes.set_xticks(layers if len(layers) <= 9 else layers[::3])
        axes.set_ylim(-0.02, 1.02)
    grid[0].plot([], [], color=INK, linestyle=":", linewidth=1.1, label="energy VAD")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(study.counts.modules) + 1
    )
    return figure


def varied(study: Study) -> list[str]:
    """The properties of utterances that differ among at least three of them."""
    return [
        name for name, values in study.properties.items() if len(np.unique(values[np.isfinite(values)])) >= 3
    ]


def relations_figure(study: Study) -> Any:
    """Share of real frames that runs in an utterance, over its word rate and its signal-to-noise ratio."""
    plt = pyplot()
    kept_U = study.counts.kept_by_utterance("real").mean(1)
    names = varied(study)
    figure, grid = plt.subplots(
        1, len(names), squeeze=False, sharey=True, figsize=(3.7 * len(names), 2.5), layout="constrained"
    )
    codes = study.languages or []
    for axes, name in zip(grid[0], names, strict=True):
        values = study.properties[name]
        for index, language in enumerate(sorted(set(codes))):
            chosen = np.array([code == language for code in codes]) & np.isfinite(values)
            style = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
            axes.scatter(
                values[chosen], kept_U[chosen], s=9, alpha=0.8, linewidths=0, label=language, **style
            )
        centres, means = binned_means(values, kept_U)
        axes.plot(centres, means, color=INK, linewidth=1.6, marker="o", markersize=3.5)
        found = study.relations[name]["all"]
        if found is not None:
            axes.set_title(f"Spearman's rho {found.rho:+.2f}, p {found.p:.1g}, n {found.n}")
        axes.set_xlabel(PROPERTIES[name])
    grid[0, 0].set_ylabel("share of real frames that runs")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return figure


def binned_means(x: np.ndarray, y: np.ndarray, bins: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ``x`` and of ``y`` in bins of equally many points, in order of ``x``; NaNs are left out."""
    known = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[known], kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return np.array([x[known][p].mean() for p in parts]), np.array([y[known][p].mean() for p in parts])
