"""The few best of a large vocabulary, and the softmax's normaliser.

Shape legend: N rows, V vocabulary, K best, G groups of GROUP labels, J candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 128
# Candidates beside those wanted where scores are in 8 bits: that one so far behind is among the best in fp32 takes an
# error of the whole distance.
SPARE = 11


def normalizer(scores_NV: Tensor) -> Tensor:
    """`torch.logsumexp` (N, 1) of finite scores. Read off a log-softmax, which passes over a vocabulary once where
    logsumexp, in four operations, does so four times."""
    return scores_NV[:, :1] - scores_NV.log_softmax(1)[:, :1]


def likeliest(
    scores_NV: Tensor, normalizer_N1: Tensor, k: int, exact: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best by their exact scores, where ``scores_NV`` are not.

    Args:
        scores_NV: With what may not follow at minus infinity; gets the exact scores of the candidates.
        normalizer_N1: Their logsumexp before that.
        exact: Scores of labels (N, J); None where all are exact.

    Returns:
        Scores, labels (N, K), and the normaliser with the candidates' exact scores in it.
    """
    if exact is None:
        return *topk_of_groups(scores_NV, k), normalizer_N1
    rough_NJ, labels_NJ = topk_of_groups(scores_NV, min(k + SPARE, scores_NV.shape[1]))
    score_NJ = exact(labels_NJ).where(rough_NJ.isfinite(), rough_NJ)
    scores_NV.scatter_(1, labels_NJ, score_NJ)
    gained_N1 = ((score_NJ - normalizer_N1).exp() - (rough_NJ - normalizer_N1).exp()).sum(1, keepdim=True)
    score_NK, place_NK = score_NJ.topk(k, dim=1)
    return score_NK, labels_NJ.gather(1, place_NK), normalizer_N1 + gained_N1.clamp(min=-0.5).log1p()


def topk_of_groups(scores_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` over a large last dimension: the k best lie in the k groups with the largest maxima.

    A maximum over groups runs at memory speed, a selection over the vocabulary does not. The order of equal
    scores is unspecified, as in `torch.topk`.

    >>> topk_of_groups(torch.arange(5000.0).unsqueeze(0), 2)
    (tensor([[4999., 4998.]]), tensor([[4999, 4998]]))
    """
    vocabulary = scores_NV.shape[1]
    groups = vocabulary // GROUP
    if groups <= 2 * k:
        return scores_NV.topk(k, dim=1)
    body_NGg = scores_NV[:, : groups * GROUP].unflatten(1, (groups, GROUP))
    best_NK = body_NGg.amax(2).topk(k, dim=1)[1]
    members_NKg = body_NGg.gather(1, best_NK.unsqueeze(2).expand(-1, -1, GROUP))
    rest_NR = scores_NV[:, groups * GROUP :]
    score_NK, place_NK = torch.cat([members_NKg.flatten(1), rest_NR], dim=1).topk(k, dim=1)
    in_rest_NK = place_NK >= k * GROUP
    group_NK = best_NK.gather(1, (place_NK // GROUP).clamp(max=k - 1))
    label_NK = torch.where(
        in_rest_NK, place_NK - k * GROUP + groups * GROUP, group_NK * GROUP + place_NK % GROUP
    )
    return score_NK, label_NK
