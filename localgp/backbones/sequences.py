"""What a decoder is taught with: previous text and text, one behind the other.

Shape legend: Q sequences, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localgp.backbones.base import DecoderInput


def joined(
    text_QL: Tensor, previous_QL: Tensor, *, begins: int, start: int, eos: int, none: int, ignore: int
) -> DecoderInput:
    """``<begins> previous <start> text``, or ``<start> text`` where there is no previous text; targets are
    ``text <eos>``, and ``ignore`` for the rest.

    Args:
        text_QL, previous_QL: Padded with ``ignore``.
        none: The token that stands for no previous text.
    """
    count_Q1 = (text_QL != ignore).sum(1, keepdim=True)
    before_Q1 = (previous_QL != ignore).sum(1, keepdim=True) + 1  # with what begins it
    before_Q1 = before_Q1.masked_fill((previous_QL == none).any(1, keepdim=True), 0)
    lengths_Q1 = before_Q1 + 1 + count_Q1
    longest = int(lengths_Q1.max())  # the one wait for a GPU
    place_L = torch.arange(longest, device=text_QL.device)
    from_start_QL = place_L - before_Q1
    text_from = (from_start_QL - 1).clamp(0, text_QL.shape[1] - 1)
    inputs_QL = text_QL.gather(1, text_from)
    previous_from = (place_L - 1).clamp(0, previous_QL.shape[1] - 1).expand_as(from_start_QL)
    inputs_QL = torch.where(from_start_QL < 0, previous_QL.gather(1, previous_from), inputs_QL)
    inputs_QL = inputs_QL.masked_fill((from_start_QL < 0) & (place_L == 0), begins)
    inputs_QL = inputs_QL.masked_fill(from_start_QL == 0, start)
    inputs_QL = inputs_QL.masked_fill(from_start_QL > count_Q1, eos)
    targets_QL = text_QL.gather(1, from_start_QL.clamp(0, text_QL.shape[1] - 1))
    targets_QL = targets_QL.masked_fill(from_start_QL == count_Q1, eos)
    targets_QL = targets_QL.masked_fill((from_start_QL < 0) | (from_start_QL > count_Q1), ignore)
    return DecoderInput(inputs_QL, lengths_Q1.squeeze(1), targets_QL)


def accuracy(logits_QLV: Tensor, targets_QL: Tensor, ignore: int) -> Tensor:
    """Share of the targets that are likeliest; those that are ``ignore`` do not count."""
    wanted_QL = targets_QL != ignore
    right = ((logits_QLV.argmax(-1) == targets_QL) & wanted_QL).sum()
    return right.double() / wanted_QL.sum().clamp(min=1)
