"""Steps of the decoder whose shapes stay the same, so that a CUDA graph can hold one and replay it.

Rows stand in a full grid of utterances and slots, whether there are hypotheses in them or not; what a step is given and
what it leaves lies where it lay in the step before. A grid is made anew when half of its utterances have left, and the
cache when its columns are used up: the next graph is recorded then.

A step by itself starts some hundred kernels, which takes a host longer than the device needs for them. As a graph it is
one launch; what is before and behind it, the search's choice among others, is not in the graph.

Shape legend: N rows, U utterances of the grid, W slots, R = U W rows of the grid, C columns of the cache, D model size,
L layers, M gated modules, G trees (one, or one of each layer).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.blocks import StepLayer
from localgp.decoder.cache import BLOCK, KeyValues
from localgp.decoder.gates import GateState
from localgp.decoder.rows import Rows
from localgp.decoder.source import GridSource, without_gaps
from localgp.decoder.state import DecoderState, Open
from localgp.kernels.ragged import sent

COLUMNS = 256  # that a cache has room for when it is made: some fifty steps of a beam of 5


@dataclass
class _Tree:
    """Which row of the grid sees which column, for the layers that share it; in place.

    Attributes:
        visible_RC: Of the first grid's rows; a smaller one has the first of them.
    """

    caches: list[KeyValues]
    visible_RC: Tensor


class _Grid:
    """What a step is given and what it leaves, in the rows of a full grid."""

    def __init__(self, utterances: int, slots: int, size: int, passes: tuple[int, int], like: Tensor) -> None:
        device, rows = like.device, utterances * slots
        row_R = torch.arange(rows, device=device)
        self.rows = Rows(row_R // slots, utterances, [slots] * utterances)
        self.x_RD = torch.zeros(rows, size, device=device)
        self.hidden_RD = torch.zeros_like(self.x_RD)
        self.parent_R = torch.zeros_like(row_R)
        self.exists_R = torch.zeros(rows, dtype=torch.bool, device=device)
        self.known = GateState(torch.zeros_like(row_R), torch.zeros_like(row_R))
        self.known.rows = self.rows
        self.open_RLM = torch.zeros(rows, *passes, dtype=torch.bool, device=device)


class FixedState(DecoderState):
    """`DecoderState` with steps of fixed shapes; the same results.

    Each utterance has an encoder output of its own.

    Attributes:
        graphs: Whether a GPU records them.
    """

    graphs = True
    _grid: _Grid | None = None
    _graph: torch.cuda.CUDAGraph | None = None
    _warm = False

    def consume(self, primers: list[list[int]]) -> Tensor:
        """The primers' pass is as ever; what it leaves is laid out for the steps."""
        hidden_ND = super().consume(primers)
        utterances, slots = self._utterances, self._beam
        self._cell_N = slots * torch.arange(utterances, device=hidden_ND.device)
        self._fixed = [
            _Tree(caches, _spread(visible_NC[:, :used], utterances, slots, self._cell_N))
            for caches, visible_NC, used in zip(
                self._tree.layers, self._tree.visible_LNC, self._tree.used, strict=True
            )
        ]
        self._used_1 = torch.zeros(1, dtype=torch.long, device=hidden_ND.device)
        dtype = self._decoder.dtype
        self._seen = torch.zeros((), dtype=dtype, device=hidden_ND.device)
        self._hidden = torch.full_like(self._seen, torch.finfo(dtype).min / 2)  # as of `TokenTree.masks`
        self._regrid(utterances).exists_R.index_fill_(0, self._cell_N, True)
        self._make_room()
        return hidden_ND

    def keep_utterances(self, keep_U: list[bool]) -> list[int]:
        assert self._grid is not None
        assert isinstance(self._source.kept, GridSource)
        order, utterances = without_gaps(keep_U), self._grid.rows.utterances
        count = self._utterances = len(order)
        left = count if 2 * count <= utterances else utterances
        stay = [*order, *range(count, left)]  # those that have left keep their places
        moved = [(to, from_) for to, from_ in enumerate(stay) if to != from_]
        move_to, move_from = sent(torch.tensor(moved).view(-1, 2).long(), self._original_U.device).unbind(1)
        for tree in self._fixed:
            for cache in tree.caches:
                cache.keep_utterances(move_to, move_from, left)
        self._source.kept.keep_utterances(stay)
        self._original_U = self._original_U.index_select(
            0, sent(torch.tensor(order), self._original_U.device)
        )
        if left < utterances:
            self._regrid(left)
        else:
            self._number()
        return order

    def step(self, tokens_N: Tensor, parents_N: Tensor, rows: Rows) -> Tensor:
        grid, gates = self._grid, self._gates
        assert grid is not None
        gates.follow(parents_N, self._original_U.index_select(0, rows.utterance_N))
        gates.position_N = gates.position_N + 1
        self._longest += 1
        cell_N = rows.utterance_N * self._beam + rows.slot_N
        grid.x_RD.index_copy_(0, cell_N, self._decoder.embed(tokens_N, gates.position_N, self._longest))
        grid.parent_R.index_copy_(0, cell_N, self._cell_N.index_select(0, parents_N))
        grid.exists_R.zero_().index_fill_(0, cell_N, True)
        grid.known.position_N.index_copy_(0, cell_N, gates.position_N)
        self._cell_N = cell_N
        self._play()
        hidden_ND = grid.hidden_RD.index_select(0, cell_N)
        if self._decide is not None:
            gates.record(grid.open_RLM.index_select(0, cell_N))
        self._used += self._beam
        if self._used + self._beam > self._capacity:
            self._make_room()
        return hidden_ND

    def _play(self) -> None:
        """A step: by itself the first time, which compiles what has to be compiled, and then as a graph."""
        if self.graphs and self._used_1.is_cuda:
            if self._graph is None and self._warm:
                self._graph = self._recorded()
            if self._graph is not None:
                self._graph.replay()  # recording it ran nothing
                return
            self._warm = True
        self.body()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """`body` as a graph. `torch.cuda.graph` would empty all caches of memory before, pinned memory's among them."""
        graph, here, aside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            graph.capture_begin(capture_error_mode="thread_local")  # a loader's threads go on
            self.body()
            graph.capture_end()
        here.wait_stream(aside)
        return graph

    def body(self) -> None:
        """All of a step that a graph holds."""
        grid = self._grid
        assert grid is not None
        column_R = self._used_1 + grid.rows.slot_N
        columns_C = torch.arange(self._capacity, device=column_R.device)
        self._columns_R = column_R
        self._own_RC = (columns_C == column_R.unsqueeze(1)) & grid.exists_R.unsqueeze(1)
        for tree in self._fixed:
            tree.visible_RC[: grid.rows.size] = tree.visible_RC.index_select(0, grid.parent_R)
        hidden_RD, open_RLM = self._layers(grid.x_RD, grid.rows, grid.known, causal=False)
        grid.hidden_RD.copy_(hidden_RD)
        if open_RLM is not None:
            grid.open_RLM.copy_(open_RLM)
        self._used_1.add_(self._beam)

    def _grow(self, index: int, own: Open, causal: bool) -> tuple[Tensor, Tensor]:
        if self._grid is None:
            return super()._grow(index, own, causal)
        rows = own.rows
        visible_RC = self._fixed[index].visible_RC[: rows.size]
        visible_RC |= self._own_RC if own.mask_N is None else self._own_RC & own.mask_N.unsqueeze(1)
        return self._columns_R, rows.to_grid(torch.where(visible_RC, self._seen, self._hidden)).unsqueeze(1)

    def _opened(self, masks_MN: list[Tensor], rows: Rows, layer: StepLayer) -> list[Open | None]:
        """All rows are computed, on a CPU too."""
        return [Open(rows, mask_N=mask_N) for mask_N in masks_MN]

    def _regrid(self, utterances: int) -> _Grid:
        decoder = self._decoder
        passes = len(decoder.layers), len(decoder.modules)
        size = decoder.layers[0].heads * decoder.layers[0].head_size
        self._grid = _Grid(utterances, self._beam, size, passes, self._original_U)
        self._graph, self._warm = None, False
        self._number()
        return self._grid

    def _number(self) -> None:
        """Whose rows are whose, for the gates."""
        assert self._grid is not None
        number_UW = self._grid.known.utterance_N.view(-1, self._beam)
        number_UW[: self._utterances] = self._original_U.unsqueeze(1)

    def _make_room(self) -> None:
        """Drops columns that nobody sees, and makes room for `COLUMNS` more; the one wait, once in so many."""
        assert self._grid is not None
        utterances, rows = self._grid.rows.utterances, self._grid.rows.size
        exists_R1 = self._grid.exists_R.unsqueeze(1)
        live_GUC = torch.stack(
            [
                (tree.visible_RC[:rows] & exists_R1).unflatten(0, (utterances, -1)).any(1)
                for tree in self._fixed
            ]
        )
        most = int(live_GUC.sum(2).max())
        self._capacity = -(-(most + COLUMNS) // BLOCK) * BLOCK
        for tree, live_UC in zip(self._fixed, live_GUC, strict=True):
            keep_UC = live_UC.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
            keep_RC = keep_UC.index_select(0, self._grid.rows.utterance_N)
            tree.visible_RC = F.pad(tree.visible_RC[:rows].gather(1, keep_RC), (0, self._capacity - most))
            for cache in tree.caches:
                cache.resize(self._capacity, keep_UC)
        self._used = most
        self._used_1.fill_(most)
        self._graph, self._warm = None, False


def _spread(visible_NC: Tensor, utterances: int, slots: int, cell_N: Tensor) -> Tensor:
    """What the rows of one hypothesis an utterance see, among the rows of a grid."""
    visible_RC = visible_NC.new_zeros(utterances * slots, visible_NC.shape[1])
    return visible_RC.index_copy_(0, cell_N, visible_NC)
