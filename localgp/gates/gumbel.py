"""From logits to a binary gate that a gradient passes through (paper, section 2.2).

Shape legend: ``...`` any leading shape, here usually (B, T); 2 the classes (run, skip).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RUN = 0  # Algorithm 1 takes p_n[0], the first class, as the gate


class Gate(NamedTuple):
    """The decision for one module of one layer.

    Attributes:
        value: 1 where the module runs, 0 where it is skipped; (B, T), or (B, 1) for a decision per
            utterance. Exactly binary in the forward pass; in training it carries the estimator's gradient.
        decision: The same without Gumbel noise, which is what inference will do; same shape. The sparsity
            loss looks at this one, so that the sparsity reached in training is the one measured afterwards.
    """

    value: Tensor
    decision: Tensor

    @property
    def mask(self) -> Tensor:
        """``value`` as bool."""
        return self.value.detach() > 0.5


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """``hard`` in the forward pass, the gradient of ``soft`` in the backward pass."""
    return hard + (soft - soft.detach())


def gumbel_gate(logits: Tensor, *, training: bool, temperature: float = 1.0, threshold: float = 0.5) -> Gate:
    """The function ``t`` of the paper: straight-through Gumbel-softmax estimator, or a threshold.

    Args:
        logits: (..., 2), the classes run and skip.
        training: Whether to draw Gumbel noise (from PyTorch's global generator) and to keep the gradient.
        temperature: Of the softmax; it shapes the gradient and never the forward decision.
        threshold: At inference the module runs where the softmax probability of "run" exceeds this.

    Returns:
        The gate, of the logits' leading shape.

    Examples:
        >>> gumbel_gate(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), training=False).value
        tensor([1., 0.])
    """
    probability = torch.softmax(logits, dim=-1)[..., RUN]
    open_without_noise = (probability > threshold).to(logits.dtype)
    if not training:
        return Gate(open_without_noise, open_without_noise)
    # -log(Exponential(1)) is Gumbel(0, 1); the exponential draw is never exactly 0 in PyTorch
    noise = -torch.empty_like(logits).exponential_().log()
    soft = torch.softmax((logits + noise) / temperature, dim=-1)[..., RUN]
    sampled = (soft > 0.5).to(logits.dtype)  # argmax of two classes
    return Gate(straight_through(sampled, soft), straight_through(open_without_noise, probability))
