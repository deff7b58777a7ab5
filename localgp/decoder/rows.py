"""Rows of many utterances in one batch, and the grid that attention sees them in.

A row is a token being decoded: (utterance, hypothesis) in a step, (utterance, position) in the primer's pass.
Linear layers run on the N rows as they are. Attention shares an utterance's keys among its rows, so there the
rows stand in a grid of U utterances x W slots; utterances may have fewer than W rows.

Shape legend: N rows, U utterances, W slots (the most rows of an utterance), C columns or frames, D model size, H heads,
K size of a head.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

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
        if "counts" in self.__dict__ and self.utterance_N.is_cpu:
            return torch.tensor([0, *accumulate(self.counts[:-1])], dtype=torch.long)
        return self._counts_U.cumsum(0) - self._counts_U

    @cached_property
    def last_U(self) -> Tensor:
        return self.first_U + self._counts_U - 1

    @cached_property
    def slot_N(self) -> Tensor:
        """Place of each row among those of its utterance."""
        if "counts" in self.__dict__ and self.utterance_N.is_cpu:  # in one operation instead of five
            return torch.tensor([slot for count in self.counts for slot in range(count)], dtype=torch.long)
        return self.index_N - self.first_U.index_select(0, self.utterance_N)

    @cached_property
    def cell_N(self) -> Tensor:
        """Place of each row in the grid, flattened."""
        return self.utterance_N * self.width + self.slot_N

    def some(self, index_K: Tensor | None) -> Rows:
        """Those rows, ascending, in a grid of their own."""
        return self if index_K is None else Rows(self.utterance_N.index_select(0, index_K), self.utterances)

    def cells(self, index_K: Tensor | None) -> Tensor | None:
        """Where some rows are in the grid; None where all are, in its order."""
        if self.full:
            return index_K
        return self.cell_N if index_K is None else self.cell_N.index_select(0, index_K)

    def to_grid(self, x_K: Tensor, index_K: Tensor | None = None, fill: float = 0) -> Tensor:
        """Of some rows (K, ...) to (U, W, ...); empty slots hold ``fill``."""
        shape, cells = (self.utterances, self.width, *x_K.shape[1:]), self.cells(index_K)
        if cells is None:
            return x_K.reshape(shape)
        return x_K.new_full(shape, fill).flatten(0, 1).index_copy_(0, cells, x_K).view(shape)

    def from_grid(self, x_UW: Tensor, index_K: Tensor | None = None) -> Tensor:
        """(U, W, ...) to (K, ...)."""
        flat, cells = x_UW.reshape(self.utterances * self.width, *x_UW.shape[2:]), self.cells(index_K)
        return flat if cells is None else flat.index_select(0, cells)


def attend(
    query_KHK: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Rows,
    index_K: Tensor | None = None,
) -> Tensor:
    """Attention of some rows (default: of all) to their utterances' keys (U, H, C, K); (K, D)."""
    query_UHWK = rows.to_grid(query_KHK, index_K).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query_UHWK, keys, values, attn_mask=bias)
    return rows.from_grid(attended.transpose(1, 2).flatten(2), index_K)
