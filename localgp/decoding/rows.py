"""Rows of many utterances in one batch, and the grid that attention sees them in.

A row is a token being decoded: (utterance, hypothesis) in a step, (utterance, position) in the primer's pass.
Linear layers run on the N rows as they are. Attention shares an utterance's keys among its rows, so there the
rows stand in a grid of U utterances x W slots; utterances may have fewer than W rows.

Shape legend: N rows, U utterances, W slots (the most rows of an utterance).
"""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """Where each row belongs. Rows are sorted by utterance.

    Args:
        utterance_N: Utterance of each row, ascending.
        utterances: U.
        counts: Rows of each utterance, if known on the host; saves a synchronisation.
    """

    def __init__(self, utterance_N: Tensor, utterances: int, counts: list[int] | None = None) -> None:
        self.utterance_N = utterance_N
        self.utterances = utterances
        self.size = utterance_N.shape[0]
        device = utterance_N.device
        if counts is None:
            counts_U = torch.zeros(utterances, dtype=torch.long, device=device)
            counts_U.index_add_(0, utterance_N, torch.ones_like(utterance_N))
            self.width = int(counts_U.max()) if self.size else 0
        else:
            counts_U = torch.tensor(counts, device=device)
            self.width = max(counts)
        self._counts_U = counts_U
        self.first_U = counts_U.cumsum(0) - counts_U
        self.index_N = torch.arange(self.size, device=device)
        self.slot_N = self.index_N - self.first_U.index_select(0, utterance_N)
        self.last_U = self.first_U + counts_U - 1
        self.full = self.size == utterances * self.width
        self.cell_N = self.utterance_N * self.width + self.slot_N

    @property
    def counts(self) -> list[int]:
        """Rows of each utterance."""
        return self._counts_U.tolist()

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
