"""Table 1 of the paper, on Europarl-ST v1.1 with OWSM-v3.1-medium: its numbers, never ours.

Source: "Context-Driven Dynamic Pruning for Large Speech Foundation Models" (Someki et al., 2025), Table 1. WER in
percent, BLEU, encoder GFLOPs for 30 s; None where the paper has none.
"""

from __future__ import annotations

WER_TASKS = ("de", "fr", "it", "average")
BLEU_TASKS = ("de-fr", "de-it", "fr-de", "fr-it", "it-de", "it-fr", "average")

# conf: (pruned modules, LocalGP?, context, WER by WER_TASKS, BLEU by BLEU_TASKS, GFLOPs)
TABLE_1: dict[str, tuple[str, bool, str, tuple[float, ...], tuple[float, ...], float | None]] = {
    "row01": ("-", False, "dense", (13.6, 11.0, 13.2, 12.6), (8.4, 6.4, 11.2, 13.0, 11.8, 13.5, 10.7), 568.5),
    "row02": ("encoder", False, "front", (15.0, 11.9, 15.2, 14.0), (5.8, 6.0, 8.6, 12.3, 6.5, 12.6, 8.6), 452.5),
    "row03": ("decoder", False, "front", (15.2, 11.9, 12.9, 13.3), (9.8, 8.4, 12.2, 13.1, 11.3, 13.4, 11.4), None),
    "row04": ("both", False, "front", (15.0, 12.6, 14.6, 14.1), (7.3, 4.7, 9.9, 9.5, 8.7, 11.5, 8.6), None),
    "row05": ("encoder", True, "front", (14.6, 11.4, 13.0, 13.0), (10.4, 7.8, 13.0, 14.6, 11.2, 15.3, 12.0), 541.6),
    "row06": ("encoder", True, "+ spk", (14.5, 11.1, 12.7, 12.8), (12.0, 9.2, 14.4, 15.6, 12.7, 16.9, 13.5), 511.8),
    "row07": ("encoder", True, "+ event", (14.1, 11.1, 13.0, 12.7), (11.4, 8.2, 13.5, 15.1, 12.0, 16.3, 12.8), 510.1),
    "row08": (
        "encoder", True, "+ spk + event", (15.2, 12.4, 14.5, 14.0), (10.6, 8.1, 13.6, 15.0, 12.0, 16.3, 12.6), 497.0,
    ),
    "row09": ("decoder", True, "lang2vec", (15.0, 11.2, 12.7, 13.0), (11.2, 8.4, 13.7, 15.2, 12.3, 16.4, 12.9), None),
    "row10": (
        "both", True, "front+event+lang2vec", (14.5, 11.0, 13.1, 12.9), (10.5, 8.0, 13.1, 14.9, 11.9, 16.0, 12.4), None,
    ),
}  # fmt: skip
