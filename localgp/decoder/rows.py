"""Rows of many utterances in one batch, and the grid that attention sees them in.

A row is a token being decoded: (utterance, hypothesis) in a step, (utterance, position) in the primer's pass.
Linear layers run on the N rows as they are. Attention shares an utterance's keys among its rows, so there the
rows stand in a grid of U utterances x W slots; utterances may have fewer than W rows.

Shape legend: N rows, U utterances, W slots (the most rows of an utterance), C columns or frames, D model size, H heads,
K size of a head.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.kernels.ragged import sent


class Rows:
    """Where each row belongs. Rows are sorted by utterance. What follows from that is worked out when asked for.

    Args:
        utterance_N: Utterance of each row, ascending.
        utterances: U.
        counts: Rows of each utterance, if known on the host; saves a synchronisation.
    """

    def __init__(self, utterance_N: Tensor, utterances: int, counts: list[int] | None = None) -> None:
        self.utterance_N = utterance_N
        self.utterances = utterances
        self.size = utterance_N.shape[0]
        if counts is not None:
            self.counts = counts

    @cached_property
    def counts(self) -> list[int]:
        """Rows of each utterance."""
        counts: list[int] = self._counts_U.tolist()
        return counts

    @cached_property
    def width(self) -> int:
        """W."""
        return max(self.counts)

    @cached_property
    def full(self) -> bool:
        """Whether the grid has no empty slot."""
        return self.size == self.utterances * self.width

    @cached_property
    def index_N(self) -> Tensor:
        return torch.arange(self.size, device=self.utterance_N.device)

    @cached_property
    def _counts_U(self) -> Tensor:
        if "counts" in self.__dict__:
            return sent(torch.tensor(self.counts), self.utterance_N.device)
        return torch.bincount(self.utterance_N, minlength=self.utterances)

    @cached_property
    def first_U(self) -> Tensor:
        return self._counts_U.cumsum(0) - self._counts_U

    @cached_property
    def last_U(self) -> Tensor:
        return self.first_U + self._counts_U - 1

    @cached_property
    def slot_N(self) -> Tensor:
        """Place of each row among those of its utterance."""
        return self.index_N - self.first_U.index_select(0, self.utterance_N)

    @cached_property
    def cell_N(self) -> Tensor:
        """Place of each row in the grid, flattened."""
        return self.utterance_N * self.width + self.slot_N

    def subset(self, mask_N: Tensor) -> tuple[Tensor, Rows]:
        """Row indices where ``mask_N`` is set, and those rows in a grid of their own."""
        index = mask_N.nonzero().squeeze(1)
        return index, Rows(self.utterance_N.index_select(0, index), self.utterances)

    def to_grid(self, x_N: Tensor, fill: float = 0) -> Tensor:
        """(N, ...) to (U, W, ...); empty slots hold ``fill``."""
        shape = (self.utterances, self.width, *x_N.shape[1:])
        if self.full:
            return x_N.reshape(shape)
        grid = x_N.new_full((self.utterances * self.width, *x_N.shape[1:]), fill)
        return grid.index_copy_(0, self.cell_N, x_N).view(shape)

    def from_grid(self, x_UW: Tensor) -> Tensor:
        """(U, W, ...) to (N, ...)."""
        flat = x_UW.reshape(self.utterances * self.width, *x_UW.shape[2:])
        return flat if self.full else flat.index_select(0, self.cell_N)


def attend(query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Attention of every row to its utterance's keys (U, H, C, K); (N, D)."""
    query_UHWK = rows.to_grid(query_NHK).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query_UHWK, keys, values, attn_mask=bias)
    return rows.from_grid(attended.transpose(1, 2).flatten(2))
