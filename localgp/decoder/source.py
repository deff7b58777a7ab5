"""The encoder's keys and values, and the attention of decoding rows to them.

In a step, few rows attend to hundreds of frames, and every key and value of an utterance is read for a handful of
multiplications. PyTorch's attention and batched products on a CPU are made for many rows. A grouped 1x1 convolution
is as good at few: with a group for each head, the keys as weights make the scores of all rows, and the values as
weights their outputs. oneDNN has them in its blocked layout, made once, and on one thread takes half of the
attention's time for 5 rows (`BlockedSource`). Where that does not pay, on a GPU and for small models, it is
PyTorch's attention (`GridSource`). A greedy search has one row an utterance: there keys and values take longer to make
than to use, and are not made (`MemorySource`).

Several utterances of a search may be tasks of one recording (its transcript, its translations). They share one encoder
output, and with it keys, values and their reading (`SharedSource`).

Shape legend: N rows, U utterances, S encoder outputs, W slots or rows of an utterance, T encoder frames, P frames and
padding, D model size, H heads, K size of a head, C cells of rows x utterances, G heads of all utterances.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.decoder.rows import Rows, attend
from localgp.kernels.linear import Linear
from localgp.kernels.onednn import blocked_convolution, convolution, takes_blocked, takes_convolutions
from localgp.kernels.ragged import sent

if TYPE_CHECKING:
    from localgp.backbones.blocks import StepLayer

CALL = 1 << 17  # multiplications of few rows that take a CPU core as long as a call by itself does (15 us)
# Multiplications of all utterances' rows with their keys from which on the blocked layout of a type is the faster one
WORTH = {torch.float32: 850_000, torch.bfloat16: 400_000}
MEMORY_WORTH = (
    500_000  # numbers of an encoder output from which on no keys and values are made for one row of it
)
ENOUGH = 1_600_000  # numbers of the keys that are read in a call
HEADS = 8  # rows of a product with frames, about: one for each head
BLOCK = 16  # channels that oneDNN keeps together
GONE = -1


def keep_memory(
    memory_STD: Tensor,
    layers: Sequence[StepLayer],
    lengths: Sequence[int],
    width: int,
    dtype: torch.dtype | None = None,
) -> MemorySource | GridSource | BlockedSource:
    """Keys and values of encoder outputs, for every layer of a decoder.

    Args:
        memory_STD: Encoder outputs.
        layers: Of the decoder.
        lengths: Frames of each encoder output.
        width: Rows that will attend to one of them in a step, at most.
        dtype: That keys and values are held in where reading them takes the time; default: the outputs'.
    """
    weights = [layer.source_key_value for layer in layers]
    one_row = width == 1 and memory_STD[0].numel() >= MEMORY_WORTH and None not in weights
    if one_row and memory_STD.dtype == torch.float32 and takes_blocked(memory_STD):
        return MemorySource(memory_STD, [own for own in weights if own is not None], lengths)
    return keep_source((layer.project_source(memory_STD) for layer in layers), lengths, width, dtype)


def keep_source(
    keys_values: Iterable[tuple[Tensor, Tensor]],
    lengths: Sequence[int],
    width: int,
    dtype: torch.dtype | None = None,
) -> GridSource | BlockedSource:
    """Keys and values in the layout that steps read.

    Args:
        keys_values: Keys and values (S, T, H, K) of each layer; one layer's are let go before the next one's are made.
        lengths: Frames of each encoder output.
        width: Rows that will attend to one of them in a step, at most.
        dtype: See `keep_memory`.
    """
    layers = iter(keys_values)
    first = next(layers)
    key = first[0]
    enough = width * key.numel() >= WORTH.get(dtype or key.dtype, float("inf"))
    every = chain([first], layers)
    blocked = enough and takes_convolutions(key)
    return BlockedSource(every, lengths, dtype) if blocked else GridSource(every, lengths)


def without_gaps(keep: Sequence[bool]) -> list[int]:
    """The order of those that stay: the last ones move into the gaps, so that as few as possible are copied.

    Examples:
        >>> without_gaps([True, False, True, True])
        [0, 3, 2]
    """
    count = sum(keep)
    order = list(range(count))
    gaps = (u for u in range(count) if not keep[u])
    movers = (u for u in range(count, len(keep)) if keep[u])
    for gap, mover in zip(gaps, movers, strict=True):
        order[gap] = mover
    return order


class SharedSource:
    """Encoder outputs, and which one each utterance attends to.

    Attributes:
        kept: All of them.

    Args:
        kept: Of `keep_memory` or `keep_source`.
        count: How many encoder outputs it has.
        owners: The encoder output of each utterance.
        device: Of the rows.
    """

    def __init__(
        self,
        kept: MemorySource | GridSource | BlockedSource,
        count: int,
        owners: Sequence[int],
        device: torch.device,
    ) -> None:
        self.kept, self._count, self._device = kept, count, device
        self._grouped: tuple[Rows, Tensor, Rows] | None = None  # rows, their order by owner, and so ordered
        self._follow(list(owners))

    def attend(self, layer: int, query_NHK: Tensor, rows: Rows, index_K: Tensor | None = None) -> Tensor:
        """Attention of some rows (default: of all) to their utterances' encoder outputs, (K, D)."""
        if self._owner_U is None:
            return self.kept.attend(layer, query_NHK, rows, index_K)
        if self._grouped is None or self._grouped[0] is not rows:  # all layers of a step have the same rows
            owner_N, order_N = self._owner_U.index_select(0, rows.utterance_N).sort(stable=True)
            self._grouped = rows, order_N, Rows(owner_N, self._count)
        _, order_N, by_owner = self._grouped
        if index_K is not None:
            place_N = torch.empty_like(order_N).index_copy_(0, order_N, rows.index_N)
            index_K, order_N = place_N.index_select(0, index_K).sort()
        attended_ND = self.kept.attend(layer, query_NHK.index_select(0, order_N), by_owner, index_K)
        return torch.empty_like(attended_ND).index_copy_(0, order_N, attended_ND)

    def keep_utterances(self, order: Sequence[int]) -> None:
        """Utterance u is what was ``order[u]``; encoder outputs that none is left of go with them."""
        owners = [self._owners[u] for u in order]
        left = set(owners)
        kept = without_gaps([owner in left for owner in range(self._count)])
        self.kept.keep_utterances(kept)
        self._count = len(kept)
        place = {owner: index for index, owner in enumerate(kept)}
        self._follow([place[owner] for owner in owners])

    def _follow(self, owners: list[int]) -> None:
        self._owners = owners
        alone = owners == list(range(self._count))
        self._owner_U = None if alone else sent(torch.tensor(owners), self._device)
        self._grouped = None


class GridSource:
    """Keys and values (U, H, T, K) of all utterances (of encoder outputs, where utterances share them), padded."""

    def __init__(self, keys_values: Iterable[tuple[Tensor, Tensor]], lengths: Sequence[int]) -> None:
        self._layers = [
            (key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous())
            for key, value in keys_values
        ]
        self._bias: Tensor | None = None
        key, frames = self._layers[0][0], self._layers[0][0].shape[2]
        if any(length != frames for length in lengths):
            frame_T = torch.arange(frames, device=key.device)
            beyond_UT = frame_T >= torch.tensor(lengths, device=key.device).unsqueeze(1)
            bias_UT = torch.zeros(beyond_UT.shape, dtype=key.dtype, device=key.device)
            self._bias = bias_UT.masked_fill_(beyond_UT, float("-inf"))[:, None, None]

    def attend(self, layer: int, query_NHK: Tensor, rows: Rows, index_K: Tensor | None = None) -> Tensor:
        """Attention of some rows (default: of all) to their utterances, (K, D).

        Without the grid's empty slots where they cost more than single calls: on a CPU the time grows with the rows
        (749 frames of size 1024: 5 rows take 2.5 times as long as 1), on a GPU it does not.
        """
        keys, values = self._layers[layer]
        empty = rows.utterances * rows.width - len(query_NHK)
        per_row = 2 * keys[0].numel()
        if query_NHK.device.type != "cpu" or empty * per_row < rows.utterances * CALL:
            return attend(query_NHK, keys, values, self._bias, rows, index_K)
        attended = []
        for u, query_WHK in enumerate(query_NHK.split(rows.some(index_K).counts)):
            if query_WHK.shape[0]:
                mine = slice(u, u + 1)
                query_1HWK = query_WHK.transpose(0, 1).unsqueeze(0)
                bias = None if self._bias is None else self._bias[mine]
                out = F.scaled_dot_product_attention(query_1HWK, keys[mine], values[mine], attn_mask=bias)
                attended.append(out.squeeze(0).transpose(0, 1).flatten(1))
        return torch.cat(attended)

    def keep_utterances(self, order: Sequence[int]) -> None:
        """Utterance u is what was ``order[u]``, which is u or comes from behind those that stay."""
        moved = [(to, from_) for to, from_ in enumerate(order) if to != from_]
        if moved:
            move_to, move_from = sent(torch.tensor(moved), self._layers[0][0].device).unbind(1)
            for key, value in self._layers:
                key[move_to], value[move_to] = key[move_from], value[move_from]
            if self._bias is not None:
                self._bias[move_to] = self._bias[move_from]
        self._layers = [(key[: len(order)], value[: len(order)]) for key, value in self._layers]
        self._bias = None if self._bias is None else self._bias[: len(order)]


class BlockedSource:
    """Keys and values as weights of convolutions; oneDNN on a CPU only.

    A few utterances of about one length are one call, with a group for each head of each: short calls are no work for
    several threads. Of more, those that have left would be read for long, or the others laid out anew, which takes as
    long as some ten steps. Rows of what has left stay zero until all of a call have.
    """

    def __init__(
        self,
        keys_values: Iterable[tuple[Tensor, Tensor]],
        lengths: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._blocks: list[_Block] = []
        for key, value in keys_values:
            self._dtype = dtype or key.dtype
            if not self._blocks:
                few = max(1, round(ENOUGH / key[0].numel()))
                groups = [
                    some[n : n + few]
                    for some in of_about_one_length(lengths)
                    for n in range(0, len(some), few)
                ]
                self._blocks = [_Block(some, [lengths[u] for u in some]) for some in groups]
            for block in self._blocks:
                block.append(key, value, self._dtype)
        self._placed: tuple[Rows, Tensor, list[int]] | None = (
            None  # rows, their cells, rows of a slot by block
        )

    def attend(self, layer: int, query_NHK: Tensor, rows: Rows, index_K: Tensor | None = None) -> Tensor:
        """Attention of some rows (default: of all) to their utterances, (K, D)."""
        if self._placed is None or self._placed[0] is not rows:  # all layers of a step have the same rows
            self._placed = (rows, *self._place(rows.counts))
        _, cell_N, widths = self._placed
        if index_K is not None:
            cell_N = cell_N.index_select(0, index_K)
        x_ND = query_NHK.flatten(1).to(self._dtype)
        sizes = [width * len(block.members) for width, block in zip(widths, self._blocks, strict=True)]
        make = torch.empty if sum(sizes) == len(x_ND) else torch.zeros
        x_CD = make(sum(sizes), x_ND.shape[1], dtype=x_ND.dtype).index_copy_(0, cell_N, x_ND)
        y_CD = torch.cat(
            [
                block.attend(layer, part_CD.view(width, -1)).view(part_CD.shape)
                for block, width, part_CD in zip(self._blocks, widths, x_CD.split(sizes), strict=True)
                if width
            ]
        )
        return y_CD.index_select(0, cell_N).to(query_NHK.dtype)

    def keep_utterances(self, order: Sequence[int]) -> None:
        """Utterance u is what was ``order[u]``."""
        now = {before: u for u, before in enumerate(order)}
        for block in self._blocks:
            block.keep(now)
        self._blocks = [block for block in self._blocks if set(block.members) != {GONE}]
        self._placed = None

    def _place(self, counts: list[int]) -> tuple[Tensor, list[int]]:
        """The cell of each row, and how many rows each block's slots have; cells are blocks x rows x slots."""
        widths = [max(counts[u] for u in block.members if u != GONE) for block in self._blocks]
        first, slots, begin = [0] * len(counts), [0] * len(counts), 0
        for width, block in zip(widths, self._blocks, strict=True):
            for slot, u in enumerate(block.members):
                if u != GONE:
                    first[u], slots[u] = begin + slot, len(block.members)
            begin += width * len(block.members)
        cells = [first[u] + row * slots[u] for u, count in enumerate(counts) for row in range(count)]
        return torch.tensor(cells, dtype=torch.long), widths


def of_about_one_length(lengths: Sequence[int]) -> list[list[int]]:
    """Utterances in groups whose longest has a fifth more frames than the shortest, at most.

    >>> of_about_one_length([100, 30, 95, 29, 84])
    [[0, 2, 4], [1, 3]]
    """
    groups: list[list[int]] = []
    for u in sorted(range(len(lengths)), key=lambda u: -lengths[u]):
        if not groups or 5 * lengths[groups[-1][0]] > 6 * lengths[u]:
            groups.append([])
        groups[-1].append(u)
    return groups


class _Block:
    """Utterances whose attention is computed together.

    Attributes:
        members: The utterance in each slot, `GONE` where it has left.
    """

    def __init__(self, members: list[int], lengths: list[int]) -> None:
        self.members, self._lengths = members, lengths
        self._frames = -(-max(lengths) // BLOCK) * BLOCK
        self._layers: list[tuple[Tensor, Tensor]] = []

    def append(self, key_STHK: Tensor, value_STHK: Tensor, dtype: torch.dtype) -> None:
        """A layer's, of all encoder outputs."""
        self._heads, self._size = key_STHK.shape[2:]
        self._layers.append((self._keys(key_STHK, dtype), self._values(value_STHK, dtype)))
        if len(self._layers) == 1:
            self._bias = self._padding(dtype)

    def attend(self, layer: int, x_WC: Tensor) -> Tensor:
        """Of rows whose slots are side by side."""
        keys, values = self._layers[layer]
        score_WGP = self._convolve(x_WC, keys, self._bias).unflatten(1, (-1, self._frames))
        return self._convolve(score_WGP.softmax(-1).flatten(1), values, None)

    def keep(self, now: dict[int, int]) -> None:
        """Gives members their new numbers; those without one leave."""
        self.members = [now.get(u, GONE) for u in self.members]

    def _convolve(self, x_WC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Rows are places along the width, with channels last: nothing is copied."""
        x_1C1W = x_WC[None, None].permute(0, 3, 1, 2)
        y_1C1W = convolution(x_1C1W, weight, bias, [0, 0], len(self.members) * self._heads)
        return y_1C1W.permute(0, 2, 3, 1)[0, 0]

    def _keys(self, key_STHK: Tensor, dtype: torch.dtype) -> Tensor:
        weight_UHPK = key_STHK.new_empty(
            len(self.members), self._heads, self._frames, self._size, dtype=dtype
        )
        for u, own_HPK, n in zip(self.members, weight_UHPK, self._lengths, strict=True):
            torch.mul(key_STHK[u, :n].transpose(0, 1).to(dtype), self._size**-0.5, out=own_HPK[:, :n])
            own_HPK[:, n:] = 0
        return _reordered(weight_UHPK.flatten(0, 1))

    def _values(self, value_STHK: Tensor, dtype: torch.dtype) -> Tensor:
        weight_UHKP = value_STHK.new_empty(
            len(self.members), self._heads, self._size, self._frames, dtype=dtype
        )
        for u, own_HKP, n in zip(self.members, weight_UHKP, self._lengths, strict=True):
            # PyTorch turns a matrix around in tiles where it and the result are contiguous, else 3 times as slowly.
            turned_CT = value_STHK[u, :n].flatten(1).to(dtype).contiguous().t().contiguous()
            own_HKP.flatten(0, 1)[:, :n] = turned_CT
            own_HKP[..., n:] = 0
        return _reordered(weight_UHKP.flatten(0, 1))

    def _padding(self, dtype: torch.dtype) -> Tensor:
        """Nothing for a frame, minus infinity for what pads them."""
        frame_P = torch.arange(self._frames)
        beyond_UP = frame_P >= torch.tensor(self._lengths, dtype=torch.long).view(-1, 1)
        bias_UP = torch.zeros(beyond_UP.shape, dtype=dtype).masked_fill_(beyond_UP, float("-inf"))
        return bias_UP.repeat_interleave(self._heads, dim=0).flatten()


class MemorySource:
    """Encoder outputs as they are; a head's query is brought to where they lie, and its average back from there:

        q K^T = (q W_k) m^T + what is the same for all frames,    p V = (p m) W_v^T + b_v

    A row so multiplies with every frame of D numbers once per head, and reads each frame twice as it would read its key
    and its value. What is saved is to make these: as much time as some hundred tokens of an utterance lose by it.
    """

    def __init__(
        self,
        memory_STD: Tensor,
        weights: Sequence[tuple[Tensor, Tensor, Tensor | None]],
        lengths: Sequence[int],
    ) -> None:
        self._weights = weights
        utterances = [memory_TD[:n] for memory_TD, n in zip(memory_STD, lengths, strict=True)]
        self._frames = [
            (
                Linear(m_TD, None, m_TD.dtype, rows=HEADS),
                Linear(m_TD.T.contiguous(), None, m_TD.dtype, rows=HEADS),
            )
            for m_TD in utterances
        ]

    def attend(self, layer: int, query_NHK: Tensor, rows: Rows, index_K: Tensor | None = None) -> Tensor:
        """Attention of some rows (default: of all) to their utterances, (K, D)."""
        key_HKD, value_HKD, bias_D = self._weights[layer]
        size = query_NHK.shape[2]
        query_HND = torch.bmm(query_NHK.transpose(0, 1) * size**-0.5, key_HKD)
        average_HND = torch.empty_like(query_HND)
        first = 0
        for (to_frames, to_average), count in zip(self._frames, rows.some(index_K).counts, strict=True):
            mine = slice(first, first + count)
            if count:
                x_RD = query_HND[:, mine].flatten(0, 1)
                average_RD = to_average(to_frames(x_RD).softmax(-1))
                average_HND[:, mine] = average_RD.unflatten(0, (-1, count))
            first += count
        out_NHK = torch.bmm(average_HND, value_HKD.transpose(1, 2)).transpose(0, 1)
        return out_NHK.flatten(1) if bias_D is None else out_NHK.flatten(1) + bias_D

    def keep_utterances(self, order: Sequence[int]) -> None:
        """Utterance u is what was ``order[u]``."""
        self._frames = [self._frames[u] for u in order]


def _reordered(weight_GOI: Tensor) -> Tensor:
    """Weights of a 1x1 convolution with a group for each head of each utterance, in oneDNN's layout."""
    groups, _, inputs = weight_GOI.shape
    weight = weight_GOI.flatten(0, 1)[:, :, None, None]
    blocked = blocked_convolution(weight, [0, 0], groups, [1, groups * inputs, 1, BLOCK])
    assert blocked is not None
    return blocked
