"""Decoder gates by kind of token: the paper's Table 2 and Figure 2.

Shape legend: N tokens, L layers, M gated modules.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from localgp.evaluation.decoder_gates_file import DecoderGateRecord
from localgp.report.style import ORANGE, pyplot

WORD_START = "▁Ġ"  # of SentencePiece; of byte-level BPE, as Whisper has it, where it is a space


def is_space_initial(piece: str) -> bool:
    """Whether the token begins a word.

    Examples:
        >>> [is_space_initial(piece) for piece in ("▁the", "Ġthe", "the")]
        [True, True, False]
    """
    return piece.startswith(tuple(WORD_START))


@dataclass(frozen=True)
class TokenTest:
    """Use of one module by tokens that begin a word against all others.

    The measure is each token's share of layers in which the module runs.

    Attributes:
        u, u_p: Mann-Whitney U test, two-sided.
        rank_biserial: Its effect size: how much more often a word-initial token uses more than less, -1 to 1.
        t, t_p: Welch's t-test, two-sided.
        cohens_d: Its effect size: difference of the means over the pooled standard deviation.
    """

    n_initial: int
    n_other: int
    mean_initial: float
    mean_other: float
    u: float
    u_p: float
    rank_biserial: float
    t: float
    t_p: float
    cohens_d: float


def compare(initial: np.ndarray, other: np.ndarray) -> TokenTest | None:
    """Both tests; None where a side has fewer than two tokens or nothing varies."""
    from scipy.stats import mannwhitneyu, ttest_ind

    if min(len(initial), len(other)) < 2 or np.ptp(np.concatenate([initial, other])) == 0:
        return None
    u: Any = mannwhitneyu(initial, other, alternative="two-sided")
    pooled = np.sqrt((initial.var(ddof=1) + other.var(ddof=1)) / 2)
    difference = initial.mean() - other.mean()
    if pooled == 0:  # each side constant, and different: the tests' statistics are not finite
        t_value, t_p, d = float(np.copysign(np.inf, difference)), 0.0, float(np.copysign(np.inf, difference))
    else:
        t: Any = ttest_ind(initial, other, equal_var=False)
        t_value, t_p, d = float(t.statistic), float(t.pvalue), float(difference / pooled)
    return TokenTest(
        n_initial=len(initial),
        n_other=len(other),
        mean_initial=float(initial.mean()),
        mean_other=float(other.mean()),
        u=float(u.statistic),
        u_p=float(u.pvalue),
        rank_biserial=float(2 * u.statistic / (len(initial) * len(other)) - 1),
        t=t_value,
        t_p=t_p,
        cohens_d=d,
    )


def token_tests(record: DecoderGateRecord, task: str | None = None) -> dict[str, TokenTest | None]:
    """Module to its test, over the tokens of one task (the paper: the German ASR test set) or of all."""
    chosen = np.ones(len(record.pieces), dtype=bool) if task is None else record.task_of_token() == task
    initial = np.array([is_space_initial(p) for p in record.pieces], dtype=bool)
    used_NM = record.open.mean(1)
    return {
        module: compare(used_NM[chosen & initial, m], used_NM[chosen & ~initial, m])
        for m, module in enumerate(record.modules)
    }


def token_summary(record: DecoderGateRecord) -> dict[str, Any]:
    """Table 2 for every task and over all of them, with kept shares by layer, as JSON can hold it."""
    tasks = sorted(set(record.tasks))
    initial = np.array([is_space_initial(p) for p in record.pieces], dtype=bool)
    kept = {"all": record.open, "word-initial": record.open[initial], "other": record.open[~initial]}
    return {
        "tokens": len(record.pieces),
        "tests": {
            task or "all": {
                m: None if test is None else _plain(asdict(test))
                for m, test in token_tests(record, task).items()
            }
            for task in [None, *tasks]
        },
        "kept": {
            kind: {
                module: [round(float(v), 5) for v in opened[:, :, m].mean(0)] if len(opened) else None
                for m, module in enumerate(record.modules)
            }
            for kind, opened in kept.items()
        },
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What is not finite is None: JSON has no infinity."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def typical_tokens(record: DecoderGateRecord, count: int = 2) -> list[str]:
    """The commonest tokens of at least four letters, half of them word-initial: what Figure 2 shows by default."""
    pieces, numbers = np.unique(np.array(record.pieces), return_counts=True)
    ranked = [str(pieces[i]) for i in np.lexsort((pieces, -numbers))]
    chosen: list[str] = []
    for initial in (True, False):
        kind = [p for p in ranked if is_space_initial(p) == initial]
        long = [p for p in kind if len(p.lstrip(WORD_START)) >= 4]
        chosen += (long or kind)[:count]
    return chosen


def token_figure(record: DecoderGateRecord, pieces: list[str]) -> Any:
    """The paper's Figure 2 over all occurrences of each token: how often each module of each layer runs for it.

    The first layer is on top, as in the paper.
    """
    from matplotlib.colors import LinearSegmentedColormap

    plt = pyplot()
    layers = record.open.shape[1]
    short = {"self_attention": "ATT", "source_attention": "SRC", "ffn": "FFN"}
    figure, grid = plt.subplots(
        1,
        len(pieces),
        squeeze=False,
        sharey=True,
        figsize=(0.8 + 1.5 * len(pieces), 1.25 + 0.22 * layers),
        layout="constrained",
    )
    colours = LinearSegmentedColormap.from_list("kept", ["white", ORANGE])
    everything = np.array(record.pieces)
    for piece, axes in zip(pieces, grid[0], strict=True):
        chosen = everything == piece
        image = axes.imshow(
            record.open[chosen].mean(0) if chosen.any() else np.zeros(record.open.shape[1:]),
            vmin=0,
            vmax=1,
            cmap=colours,
            aspect="auto",
            origin="upper",
            extent=(-0.5, len(record.modules) - 0.5, layers + 0.5, 0.5),
        )
        axes.set_xticks(range(len(record.modules)), [short.get(m, m) for m in record.modules])
        axes.set_yticks(range(1, layers + 1, 1 if layers <= 9 else 3))
        axes.set_title(f"{re.sub(f'[{WORD_START}]', '[Space]', piece)}\nn {int(chosen.sum())}")
    grid[0, 0].set_ylabel("layer")
    figure.colorbar(image, ax=grid[0], label="share of tokens", fraction=0.06)
    return figure
