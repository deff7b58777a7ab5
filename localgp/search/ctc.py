"""What a CTC output layer writes, of models that have no decoder: its best path, or its best text.

Greedy (``beam=1``), as ESPnet's ``Speech2TextGreedySearch``: the most probable label of each frame; repeats are one
label, blanks are none. A beam finds the text whose paths *together* are the most probable (Graves and Jaitly 2014):
frame by frame, a prefix has the log-probability of its paths that end in blank, and of those that end in its last
label.

Shape legend: B utterances, T encoder frames, N frames of all utterances, D model size, V vocabulary, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.kernels.int8 import rows_type
from localgp.kernels.linear import Linear
from localgp.search.options import DecodeOptions

ROWS = 512  # frames whose scores are in memory at a time: 100 MB of 50,000 labels
CANDIDATES = 20  # labels of a frame that may go on, where there are more; those beyond are of no weight
NEVER = -math.inf

Prefix = tuple[int, ...]


class CtcSearch:
    """Greedy and prefix-beam decoding of a model that has CTC alone.

    Args:
        backbone: Its output layer is read now.
        options: ``beam`` and ``length_bonus`` are what counts; what CTC writes is as long as its frames say.
        dtype: Arithmetic of the output layer.
    """

    def __init__(self, backbone: Backbone, options: DecodeOptions, dtype: torch.dtype) -> None:
        assert backbone.ctc is not None
        self._output = Linear(backbone.ctc.weight, backbone.ctc.bias, dtype)
        self._dtype, self._blank, self._options = rows_type(dtype), backbone.tokenizer.blank, options

    @torch.inference_mode()
    def labels(self, memory_BTD: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """The most probable label of each frame, blank among them."""
        blocks = memory_BTD.flatten(0, 1).to(self._dtype).split(ROWS)
        best_BT = torch.cat([self._output(rows).argmax(-1) for rows in blocks]).view(memory_BTD.shape[:2])
        return [row[:n] for row, n in zip(best_BT.tolist(), lengths_B.tolist(), strict=True)]

    @torch.inference_mode()
    def __call__(self, memory_BTD: Tensor, lengths_B: Tensor) -> list[list[int]]:
        """The labels of each utterance's text."""
        if self._options.beam == 1 and not self._options.length_bonus:
            return [without_blank(labels, self._blank) for labels in self.labels(memory_BTD, lengths_B)]
        return [
            self._best(memory_TD[:n]) for memory_TD, n in zip(memory_BTD, lengths_B.tolist(), strict=True)
        ]

    def _best(self, memory_TD: Tensor) -> list[int]:
        """By a beam over prefixes."""
        scores = [
            self._output(rows).float().log_softmax(-1) for rows in memory_TD.to(self._dtype).split(ROWS)
        ]
        scores_TV = torch.cat(scores).cpu()
        top = scores_TV.topk(min(CANDIDATES + self._options.beam, scores_TV.shape[1]))
        return best_text(
            scores_TV,
            top.indices.tolist(),
            self._blank,
            self._options.beam,
            self._options.length_bonus,
        )


def without_blank(labels: Sequence[int], blank: int) -> list[int]:
    """What a path spells.

    Examples:
        >>> without_blank([0, 5, 5, 0, 5, 7], blank=0)
        [5, 5, 7]
    """
    return [label for label, _ in groupby(labels) if label != blank]


def best_text(
    scores_TV: Tensor, candidates_TK: Sequence[Sequence[int]], blank: int, beam: int, bonus: float = 0.0
) -> list[int]:
    """The most probable text of a beam over prefixes.

    Args:
        scores_TV: Log-probabilities.
        candidates_TK: Labels that a prefix may go on with.
        bonus: Added for every label.
    """
    found: dict[Prefix, tuple[float, float]] = {
        (): (0.0, NEVER)
    }  # paths that end in blank, and in the last label
    for scores_V, candidates_K in zip(scores_TV, candidates_TK, strict=True):
        needed = {*candidates_K, blank, *(prefix[-1] for prefix in found if prefix)}
        index = list(needed)
        score = dict(zip(index, scores_V[index].tolist(), strict=True))
        grown: dict[Prefix, tuple[float, float]] = {}

        def add(prefix: Prefix, blank_end: float, label_end: float, to: dict = grown) -> None:
            before = to.get(prefix, (NEVER, NEVER))
            to[prefix] = log_add(before[0], blank_end), log_add(before[1], label_end)

        for prefix, (blank_end, label_end) in found.items():
            both = log_add(blank_end, label_end)
            last = prefix[-1] if prefix else None
            add(prefix, both + score[blank], NEVER if last is None else label_end + score[last])
            for label in candidates_K:
                if label != blank:
                    add((*prefix, label), NEVER, (blank_end if label == last else both) + score[label])
        ranked = sorted(grown, key=lambda prefix: -log_add(*grown[prefix]) - bonus * len(prefix))
        found = {prefix: grown[prefix] for prefix in ranked[:beam]}
    return list(next(iter(found)))


def log_add(first: float, second: float) -> float:
    """log(exp(first) + exp(second))."""
    high, low = (first, second) if first >= second else (second, first)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
