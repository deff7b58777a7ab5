"""Figures of gates, as SVG text that an HTML page can hold."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from localgp.evaluation.gates_file import GateRecord

OPEN_COLOUR = "#E69F00"  # Okabe-Ito orange, told apart from the blue by every kind of colour vision
SPEECH_COLOUR = "#0072B2"


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "localgp"  # the same figure is the same file
    import matplotlib.pyplot as plt

    return plt


def kept_by_layer(record: GateRecord, title: str) -> str:
    """Share of frames with signal on which each module of each layer runs."""
    plt = _pyplot()
    _, real_LM = record.kept()
    figure, axes = plt.subplots(figsize=(1.2 + 1.1 * real_LM.shape[1], 0.8 + 0.32 * real_LM.shape[0]))
    image = axes.imshow(real_LM, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    for (layer, module), value in np.ndenumerate(real_LM):
        axes.text(
            module, layer, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black"
        )
    axes.set_xticks(range(len(record.modules)), record.modules)
    axes.set_yticks(range(real_LM.shape[0]), [str(layer + 1) for layer in range(real_LM.shape[0])])
    axes.set_ylabel("layer")
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="kept")
    return _svg(figure)


def mask_figure(
    record: GateRecord, utterance: int, module: str, samples: np.ndarray, sample_rate: int = 16000
) -> str:
    """The paper's Figure 1: log-mel-like spectrogram over the mask of one module, layers by time."""
    plt = _pyplot()
    seconds = record.open.shape[-1] * record.seconds_per_frame
    figure, (upper, lower) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 4), gridspec_kw={"height_ratios": [2, 1.2]}, layout="constrained"
    )
    padded = np.zeros(round(seconds * sample_rate), dtype=np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    power = _spectrogram(padded, sample_rate)
    upper.imshow(
        np.log(power + 1e-6),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, seconds, 0, sample_rate / 2000),
    )
    upper.set_ylabel("kHz")
    mask_LT = record.open[utterance, :, record.modules.index(module)]
    layers = mask_LT.shape[0]
    from matplotlib.colors import ListedColormap

    lower.imshow(
        mask_LT,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["white", OPEN_COLOUR]),
        vmin=0,
        vmax=1,
        extent=(0, seconds, 0.5, layers + 0.5),
    )
    end = record.real[utterance, 1] * record.seconds_per_frame
    for axes in (upper, lower):
        axes.axvline(end, color=SPEECH_COLOUR, linestyle="--", linewidth=1)
    lower.set_yticks(range(1, layers + 1))
    lower.set_ylabel("layer")
    lower.set_xlabel("s (padding right of the dashed line)")
    lower.set_title(f"{module}: orange where it runs", fontsize=9)
    return _svg(figure)


def _spectrogram(samples: np.ndarray, sample_rate: int, bins: int = 80) -> np.ndarray:
    """Power in ``bins`` linear bands, one column per 10 ms; for the eye only."""
    hop, size = sample_rate // 100, 512
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (0, size)), size)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)) ** 2
    edges = np.linspace(0, power.shape[1], bins + 1).astype(int)
    return np.add.reduceat(power, edges[:-1], axis=1).T
