"""Phase 2: keep the tokens that a binarised first-layer attention looks at most.

What the paper fixes: Q' = sign(S) sign(W_Q), K' = sign(S) sign(W_K) for the kept embeddings S,
A = softmax(Q' K'^T / sqrt(d_k)), a token's score the mean of A, the top k kept in their order.

What it leaves open, and what is done here:

* The mean's axis: over the queries, so that a score is the attention a token *receives*. Over the other axis
  every row of a softmax has the mean 1/N.
* Heads: each head has its own softmax, as the layer itself has, and the scores are averaged over the heads.
  Keys shared by several query heads (grouped-query attention) are used by each of them.
* Biases, rotary positions, the causal mask and the norm before the layer are not in the formula and are left
  out. (An RMSNorm with positive weights would not change a sign.)
* Saturation. Sums of D signs have a spread of sqrt(D), so the logits have one of about D (4096 for
  Qwen2-Audio) and the softmax is one-hot: a score is in effect how often a token is some query's favourite.
  Equal counts are common and go to the earlier token. Tokens that are nobody's favourite underflow to exactly 0
  (random weights, embeddings with a common offset: 34 % of 200 tokens with 4 heads, 4 % of 750 with 16, 1 % with
  32), so ranking uses the logarithm of the score (``log=True``), the same order without underflow.
  ``scale="magnitude"`` is the alternative: signs times their mean magnitudes, as in XNOR-Net, which come near
  the layer's true logits.

Shape legend: B batch, T tokens, D embedding size, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALES = ("literal", "magnitude")


def binarised_attention_scores(
    x_BTD: Tensor,
    weight_q: Tensor,
    weight_k: Tensor,
    n_heads: int,
    lengths: Tensor | None = None,
    *,
    scale: str = "literal",
    log: bool = False,
) -> Tensor:
    """Attention that each token receives from all tokens of its sequence, from signs alone.

    Args:
        x_BTD: Input of the attention layer.
        weight_q: (H * K, D), as `torch.nn.Linear` stores it.
        weight_k: (number of key heads * K, D); key heads may be fewer than ``n_heads`` and divide it.
        n_heads: H, the number of query heads.
        lengths: (B,) real tokens per sequence; None when there is no padding.
        scale: ``literal`` signs, or signs times their mean ``magnitude``.
        log: Return the logarithm: the same ranking without underflow. Rank by this one.

    Returns:
        (B, T) in fp32. Over a sequence the scores sum to 1; padding has 0 (-inf with ``log``).

    Examples:
        >>> x = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]]])
        >>> binarised_attention_scores(x, torch.eye(2), torch.eye(2), n_heads=1).shape
        torch.Size([1, 3])
    """
    batch, tokens, _ = x_BTD.shape
    width = weight_q.shape[0] // n_heads
    queries_per_key = weight_q.shape[0] // weight_k.shape[0]
    sign_BTD = _binarise(x_BTD, scale)
    query_BTHK = (sign_BTD @ _binarise(weight_q, scale).T).view(batch, tokens, n_heads, width)
    key_BTHK = (sign_BTD @ _binarise(weight_k, scale).T).view(batch, tokens, -1, width)

    if lengths is None:
        lengths = torch.full((batch,), tokens, device=x_BTD.device)
    real_BT = torch.arange(tokens, device=x_BTD.device) < lengths.to(x_BTD.device)[:, None]
    total_BT = query_BTHK.new_full((batch, tokens), -torch.inf)
    for head in range(n_heads):  # one T x T matrix at a time: 90 s of audio have 2250 tokens
        query_BTK = query_BTHK[:, :, head] / math.sqrt(width)
        key_BTK = key_BTHK[:, :, head // queries_per_key]
        by_query_BTT = (query_BTK @ key_BTK.transpose(1, 2)).masked_fill_(~real_BT[:, None, :], -torch.inf)
        row_BT = by_query_BTT.logsumexp(-1).masked_fill_(~real_BT, torch.inf)  # padding attends to nothing
        # The same products transposed, so that the sum over queries also runs along contiguous memory.
        by_key_BTT = (key_BTK @ query_BTK.transpose(1, 2)).sub_(row_BT[:, None, :])
        total_BT = torch.logaddexp(total_BT, by_key_BTT.logsumexp(-1))
    total_BT = total_BT.masked_fill(~real_BT, -torch.inf)
    log_mean_BT = total_BT - (n_heads * lengths.to(total_BT)).log()[:, None]
    return log_mean_BT if log else log_mean_BT.exp()


def _binarise(x: Tensor, scale: str) -> Tensor:
    """Signs in fp32 (bf16 would round sums of more than 256 of them), per row times the mean magnitude or not."""
    x = x.float()
    return x.sign() * x.abs().mean(-1, keepdim=True) if scale == "magnitude" else x.sign()


def most_attended(
    x_TD: Tensor, weight_q: Tensor, weight_k: Tensor, n_heads: int, keep: int, scale: str = "literal"
) -> Tensor:
    """Indices, ascending, of the ``keep`` tokens that receive most attention; ties to the earlier token."""
    log_T = binarised_attention_scores(x_TD[None], weight_q, weight_k, n_heads, scale=scale, log=True)[0]
    return log_T.argsort(descending=True, stable=True)[:keep].sort().values
