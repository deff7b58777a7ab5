"""Phase 1: keep the audio tokens that are most similar to the question.

What the paper fixes: cosine similarity between audio and query tokens, frames of about one second, a frame's
score as the sum over its tokens of their mean similarity, a softmax over frames, floor(keep * p) tokens from
each frame, the most similar ones, in their order.

What it leaves open, and what is done here:

* The floors leave a remainder, and a frame's budget can exceed its length: with real similarities a sum over 25
  tokens is large, the softmax is sharp, and a literal reading keeps far fewer tokens than asked for. A frame
  takes at most all of its tokens, and what is left over goes to the other frames by the same softmax restricted
  to frames with room, until exactly ``keep`` tokens are kept (``remainder="fill"``). ``remainder="drop"`` is
  the literal reading.
* The last frame may be shorter. Its score is the sum over the tokens that it has.
* Equal similarities: the earlier token first.

Shape legend: N audio tokens, L query tokens, D embedding size, F frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

FRAME = 25  # tokens in one second: the encoder gives one token every 40 ms

REMAINDERS = ("fill", "drop")


def token_similarity(audio_ND: Tensor, query_LD: Tensor) -> Tensor:
    """Each audio token's cosine similarity to the query tokens, averaged over the query: (N,) in fp32.

    The mean of the row of cosines is one dot product with the mean of the normalised query tokens, so the N x L
    matrix is never built.
    """
    query_D = normalize(query_LD.float(), dim=-1).mean(dim=0)
    return normalize(audio_ND.float(), dim=-1) @ query_D


def frame_budgets(scores_F: Tensor, lengths_F: Tensor, keep: int, remainder: str = "fill") -> Tensor:
    """How many tokens each frame may keep: (F,), at most its length each, summing to ``keep`` with "fill".

    Args:
        scores_F: Frame scores; their softmax divides the budget.
        lengths_F: Tokens in each frame.
        keep: Tokens to keep in all, at most ``lengths_F.sum()``.
        remainder: ``fill`` or ``drop``, see the module's docstring.

    Examples:
        >>> frame_budgets(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([4, 4, 4]), keep=8)
        tensor([4, 2, 2])
        >>> frame_budgets(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([4, 4, 4]), keep=8, remainder="drop")
        tensor([4, 0, 0])
    """
    budgets_F = torch.minimum((keep * scores_F.double().softmax(0)).floor().long(), lengths_F)
    left = 0 if remainder == "drop" else keep - int(budgets_F.sum())
    while left > 0:
        room_F = lengths_F - budgets_F
        # Renormalising over the open frames in the exponent keeps shares that underflow beside a full frame.
        share_F = scores_F.double().masked_fill(room_F == 0, -torch.inf).softmax(0) * left
        grant_F = torch.minimum(share_F.floor().long(), room_F)
        if not grant_F.any():  # every share is below one token: one each, largest share first
            shares = share_F.masked_fill(room_F == 0, -1.0)
            chosen = shares.argsort(descending=True, stable=True)[: min(left, int((room_F > 0).sum()))]
            grant_F[chosen] = 1
        budgets_F = budgets_F + grant_F
        left -= int(grant_F.sum())
    return budgets_F


def most_similar(
    audio_ND: Tensor, query_LD: Tensor, keep: int, frame: int = FRAME, remainder: str = "fill"
) -> Tensor:
    """Indices, ascending, of the tokens that phase 1 keeps.

    Examples:
        >>> audio = torch.eye(4).repeat_interleave(2, dim=0)  # four frames of two tokens
        >>> most_similar(audio, query_LD=audio[4:5], keep=2, frame=2)
        tensor([4, 5])
    """
    n = len(audio_ND)
    if keep >= n:
        return torch.arange(n, device=audio_ND.device)
    similarity_N = token_similarity(audio_ND, query_LD)
    frame_N = torch.arange(n, device=audio_ND.device) // frame
    frames = int(frame_N[-1]) + 1
    scores_F = similarity_N.new_zeros(frames).index_add_(0, frame_N, similarity_N)
    lengths_F = torch.bincount(frame_N, minlength=frames)
    # A few dozen numbers and a loop over them: on the CPU, so that a GPU is asked once and not every round.
    budgets_F = frame_budgets(scores_F.cpu(), lengths_F.cpu(), keep, remainder).to(audio_ND.device)

    # A token's rank within its frame: sort by similarity, then, stably, by frame.
    by_similarity_N = similarity_N.argsort(descending=True, stable=True)
    order_N = by_similarity_N[frame_N[by_similarity_N].argsort(stable=True)]
    starts_F = lengths_F.cumsum(0) - lengths_F
    rank_N = torch.arange(n, device=order_N.device) - starts_F[frame_N[order_N]]
    return order_N[rank_N < budgets_F[frame_N[order_N]]].sort().values
