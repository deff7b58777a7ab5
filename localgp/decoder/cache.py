"""Self-attention cache of a beam search as a tree of tokens.

The hypotheses of an utterance share most of their history. So a token's key and value are stored once per
utterance, in a column that any of its hypotheses may see, and a boolean table says which row sees which
column:

    columns:     <sos>  a   b   c   d        hypothesis "a c": 1 1 0 1 0
                                             hypothesis "b d": 1 0 1 0 1

Reordering the beams moves this table, not the keys and values. Columns that no hypothesis sees any more are
dropped when the cache would have to grow. A token whose self-attention is pruned has no column.

Shape legend: N rows, U utterances, W slots, H heads, C columns, K size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from localgp.decoder.rows import Rows

BLOCK = 64  # columns by which the cache grows: about 13 steps of beam 5


class KeyValues:
    """Keys and values (U, H, C, K) of one layer; columns not yet written are zero, never uninitialised:
    a masked column has weight 0, and 0 x NaN is NaN."""

    def __init__(self, utterances: int, heads: int, head_size: int, like: Tensor) -> None:
        self._stored = like.new_zeros(2, utterances, heads, 0, head_size)

    def write(self, utterance_N: Tensor, column_N: Tensor, key_value_N2HK: Tensor) -> None:
        self._stored[:, utterance_N, :, column_N] = key_value_N2HK

    def read(self, used: int) -> tuple[Tensor, Tensor]:
        return self._stored[0, :, :, :used], self._stored[1, :, :, :used]

    def resize(self, capacity: int, keep_UC: Tensor | None) -> None:
        """Gives the cache ``capacity`` columns, of which the first are those of ``keep_UC`` (default: all)."""
        old = self._stored
        kept = old.shape[3] if keep_UC is None else keep_UC.shape[1]
        new = old.new_empty(2, old.shape[1], old.shape[2], capacity, old.shape[4])
        new[:, :, :, kept:] = 0
        if keep_UC is None:
            new[:, :, :, :kept] = old
        else:
            # Rows of K numbers, copied as such: a gather looks up every number by itself.
            utterances, heads, columns = old.shape[1:4]
            first_UH1 = columns * torch.arange(utterances * heads, device=old.device).view(
                utterances, heads, 1
            )
            place_UHC = first_UH1 + keep_UC.unsqueeze(1)
            for part, new_part in zip(old, new, strict=True):
                rows_K = part.flatten(0, 2).index_select(0, place_UHC.flatten())
                new_part[:, :, :kept] = rows_K.view(*place_UHC.shape, old.shape[4])
        self._stored = new

    def keep_utterances(self, move_to: Tensor, move_from: Tensor, count: int) -> None:
        """Moves utterances into the places of those that left, and forgets all after ``count``."""
        self._stored[:, move_to] = self._stored[:, move_from]
        self._stored = self._stored[:, :count]


class TokenTree:
    """Which row sees which column, for the layers that share it.

    Args:
        layers: The caches laid out by this tree: all layers, or one where gates make the layers differ.
        utterances: U.
        device: Device of the tables.
    """

    def __init__(self, layers: list[KeyValues], utterances: int, device: torch.device) -> None:
        self.layers = layers
        self._utterances = utterances
        self._used = 0
        self._capacity = 0
        self._visible_NC = torch.zeros(0, 0, dtype=torch.bool, device=device)

    @property
    def visible_NC(self) -> Tensor:
        """True where a row sees a column in use."""
        return self._visible_NC

    @property
    def used(self) -> int:
        """Columns in use, at most; the columns of an utterance with fewer tokens have holes."""
        return self._used

    def begin(self, rows: Rows) -> None:
        self._visible_NC = torch.zeros(rows.size, 0, dtype=torch.bool, device=rows.index_N.device)

    def reorder(self, parents_N: Tensor) -> None:
        """Row n continues what was row ``parents_N[n]``."""
        self._visible_NC = self._visible_NC.index_select(0, parents_N)

    def keep_utterances(self, move_to: Tensor, move_from: Tensor, count: int) -> None:
        self._utterances = count
        for layer in self.layers:
            layer.keep_utterances(move_to, move_from, count)

    def append(self, rows: Rows, new_rows: Rows, new_N: Tensor, *, causal: bool) -> Tensor:
        """Adds columns for the rows ``new_N``.

        Args:
            rows: All rows.
            new_rows: The rows that get a column, in a grid of their own.
            new_N: Their indices among ``rows``.
            causal: Rows of an utterance are successive tokens and see the ones before (the primer), instead
                of hypotheses that see themselves only.

        Returns:
            Column of each new row.
        """
        if self._used + new_rows.width > self._capacity:
            self._make_room(rows, new_rows.width)
        column = new_rows.slot_N + self._used
        self._used += new_rows.width
        nobody = rows.size
        owner_UW = new_rows.to_grid(new_N, fill=nobody)
        owner_NW = owner_UW.index_select(0, rows.utterance_N)
        row_N1 = rows.index_N.unsqueeze(1)
        seen = owner_NW <= row_N1 if causal else owner_NW == row_N1
        self._visible_NC = torch.cat([self._visible_NC, seen], dim=1)
        return column

    def mask(self, rows: Rows, index_N: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Additive attention mask (U, 1, W, C) of ``rows``, the rows ``index_N`` of all (default: all)."""
        visible = self._visible_NC if index_N is None else self._visible_NC.index_select(0, index_N)
        # Half the lowest value: finite after the scores are added, so that empty slots yield no NaN.
        hidden = torch.finfo(dtype).min / 2
        bias_NC = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, hidden
        )
        return rows.to_grid(bias_NC).unsqueeze(1)

    def _make_room(self, rows: Rows, wanted: int) -> None:
        live_UC = torch.zeros(self._utterances, self._used, dtype=torch.int32, device=rows.index_N.device)
        live_UC.index_add_(0, rows.utterance_N, self._visible_NC.to(torch.int32))
        live_UC.clamp_(max=1)
        live = int(live_UC.sum(1).max()) if self._used else 0
        keep_UC = None
        if live < self._used:
            keep_UC = live_UC.argsort(dim=1, descending=True, stable=True)[:, :live]
            self._visible_NC = self._visible_NC.gather(1, keep_UC.index_select(0, rows.utterance_N))
            self._used = live
        self._capacity = -(-(self._used + wanted) // BLOCK) * BLOCK
        for layer in self.layers:
            layer.resize(self._capacity, keep_UC)
