"""Self-attention cache of a beam search as a tree of tokens.

The hypotheses of an utterance share most of their history. So a token's key and value are stored once per
utterance, in a column that any of its hypotheses may see, and a boolean table says which row sees which
column:

    columns:     <sos>  a   b   c   d        hypothesis "a c": 1 1 0 1 0
                                             hypothesis "b d": 1 0 1 0 1

Reordering the beams moves this table, not the keys and values. Columns that no hypothesis sees any more are
dropped when the cache would have to grow. A token whose self-attention is pruned is in no column.

Shape legend: N rows, U utterances, W slots, H heads, C columns, K size of a head, L tables: one for all layers, or one
each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.decoder.rows import Rows
from localgp.kernels.ragged import sent

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
    """Which row sees which column, in every layer.

    A pass gives each of its rows a column in all layers where one of them runs; those of closed rows stay empty and
    unseen. Tables of all layers are changed together, once a pass.

    Args:
        layers: The caches that share a table: all layers, or each by itself where gates make them differ.
        utterances: U.
        device: Device of the tables.

    Attributes:
        used: Columns in use in each of ``layers``, at most; those of an utterance with fewer tokens have holes.
        visible_LNC: Up to the room that there is.
        column_LN: Of the last pass's rows.
    """

    def __init__(self, layers: list[list[KeyValues]], utterances: int, device: torch.device) -> None:
        self.layers, self.used = layers, [0] * len(layers)
        self._utterances = utterances
        self.visible_LNC = torch.zeros(len(layers), 0, 0, dtype=torch.bool, device=device)
        self.column_LN = torch.zeros(len(layers), 0, dtype=torch.long, device=device)

    def begin(self, rows: Rows) -> None:
        self.visible_LNC = self.visible_LNC.new_zeros(len(self.layers), rows.size, 0)

    def reorder(self, parents_N: Tensor) -> None:
        """Row n continues what was row ``parents_N[n]``."""
        self.visible_LNC = self.visible_LNC.index_select(1, parents_N)

    def keep_utterances(self, move_to: Tensor, move_from: Tensor, count: int) -> None:
        self._utterances = count
        for group in self.layers:
            for layer in group:
                layer.keep_utterances(move_to, move_from, count)

    def append(self, rows: Rows, *, causal: bool) -> None:
        """Gives each row a column that it sees.

        Args:
            causal: Rows of an utterance are successive tokens and see the ones before (the primer), instead of
                hypotheses that see themselves only.
        """
        if max(self.used) + rows.width > self.visible_LNC.shape[2]:
            self._make_room(rows)
        first_L1 = sent(torch.tensor(self.used), rows.slot_N.device).unsqueeze(1)
        self.column_LN = first_L1 + rows.slot_N
        if causal:  # on empty tables
            slot_W = torch.arange(rows.width, device=rows.slot_N.device)
            self.visible_LNC[:, :, : rows.width] = slot_W <= rows.slot_N.unsqueeze(1)
        else:
            self.visible_LNC.scatter_(2, self.column_LN.unsqueeze(2), True)

    def hide(self, layer: int, open_N: Tensor, rows: Rows) -> None:
        """After a causal `append`: closed rows are seen by none, not even by the tokens after them."""
        slot_W = torch.arange(rows.width, device=open_N.device)
        last_N1 = rows.last_U.index_select(0, rows.utterance_N).unsqueeze(1)
        token_NW = torch.minimum(
            rows.first_U.index_select(0, rows.utterance_N).unsqueeze(1) + slot_W, last_N1
        )
        self.visible_LNC[layer, :, : rows.width] &= open_N[token_NW]

    def close(self, rows: Rows, open_LN: Tensor | None = None, runs: Sequence[bool] | None = None) -> None:
        """Ends a pass.

        Args:
            open_LN: Whose columns are to be seen; default: everybody's.
            runs: Layers where a row ran; default: all.
        """
        if open_LN is not None:
            self.visible_LNC.scatter_(2, self.column_LN.unsqueeze(2), open_LN.unsqueeze(2))
        for layer, used in enumerate(self.used):
            if runs is None or runs[layer]:
                self.used[layer] += rows.width
            else:
                self.visible_LNC[layer, :, used : used + rows.width] = False

    def masks(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """Additive attention masks (L, U, W, C)."""
        visible_LNC = self.visible_LNC[:, :, : max(self.used) + rows.width]
        # Half the lowest value: finite after the scores are added, so that empty slots yield no NaN.
        hidden = torch.full((), torch.finfo(dtype).min / 2, dtype=dtype, device=visible_LNC.device)
        bias_LNC = torch.where(visible_LNC, torch.zeros_like(hidden), hidden)
        if not rows.full:
            cells = rows.utterances * rows.width
            bias_LNC = bias_LNC.new_zeros(len(bias_LNC), cells, bias_LNC.shape[2]).index_copy_(
                1, rows.cell_N, bias_LNC
            )
        return bias_LNC.unflatten(1, (rows.utterances, rows.width))

    def _make_room(self, rows: Rows) -> None:
        layers, _, columns = self.visible_LNC.shape
        live_ULC = torch.zeros(
            self._utterances, layers * columns, dtype=torch.int32, device=rows.index_N.device
        )
        live_ULC.index_add_(0, rows.utterance_N, self.visible_LNC.transpose(0, 1).flatten(1).to(torch.int32))
        live_ULC = live_ULC.clamp_(max=1).unflatten(1, (layers, columns))
        counts_L = live_ULC.sum(2).amax(0) if columns else torch.zeros(layers, dtype=torch.long)
        self.used = counts_L.tolist()
        kept = max(self.used)
        capacity = -(-(kept + rows.width) // BLOCK) * BLOCK
        keep_ULC = live_ULC.argsort(dim=2, descending=True, stable=True)[:, :, :kept]
        keep_LNC = keep_ULC.index_select(0, rows.utterance_N).transpose(0, 1)
        self.visible_LNC = F.pad(self.visible_LNC.gather(2, keep_LNC), (0, capacity - kept))
        for group, keep_UC in zip(self.layers, keep_ULC.unbind(1), strict=True):
            for layer in group:
                layer.resize(capacity, keep_UC)
