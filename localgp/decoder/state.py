"""A running batch of the cached decoder: what is kept from step to step, and one step.

With gates, a module runs on the rows whose gate is open, and only on them; a token whose self-attention is
closed is neither query nor key. (Where that is faster it runs on all rows and drops the others, see `opened`.)

Shape legend: N rows, U utterances, W slots, T encoder frames, C columns of the cache, D model size, H heads,
K size of a head, B utterances of the whole batch, P passes, L layers, M gated modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from localgp.backbones.blocks import StepLayer
from localgp.decoder.cache import KeyValues, TokenTree
from localgp.decoder.gates import DecoderGates, GateState
from localgp.decoder.rows import Rows, attend
from localgp.decoder.source import SharedSource, keep_memory, without_gaps
from localgp.kernels.ragged import listed, sent

if TYPE_CHECKING:
    from localgp.decoder.cached import CachedDecoder


WORTH = 2_000_000  # multiplications that a CPU does in the time that it takes rows out and puts them back
FEW = 8  # rows up to which it takes as long as it reads the weights


class DecoderState:
    """A running batch: source keys and values, self-attention caches, and which row sees what."""

    def __init__(
        self,
        decoder: CachedDecoder,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        gates: DecoderGates | None = None,
        numbers: list[int] | None = None,
        owners: list[int] | None = None,
        beam: int = 1,
    ) -> None:
        self._decoder = decoder
        self._decide, self._beam = gates, beam
        owners = owners or list(range(len(memory_BTD)))
        self._utterances = len(owners)
        most = max(owners.count(owner) for owner in set(owners))
        kept = keep_memory(memory_BTD, decoder.layers, lengths_B.tolist(), most * beam, decoder.source_dtype)
        self._source = SharedSource(kept, len(memory_BTD), owners, memory_BTD.device)
        self._caches = [
            KeyValues(self._utterances, layer.heads, layer.head_size, memory_BTD) for layer in decoder.layers
        ]
        # Without gates every layer caches the same tokens, so one table serves them all.
        groups = [self._caches] if gates is None else [[cache] for cache in self._caches]
        self._tree = TokenTree(groups, self._utterances, memory_BTD.device)
        self._original_U = listed(numbers or list(range(self._utterances)), memory_BTD.device)
        self._gates = GateState(self._original_U, torch.zeros_like(self._original_U))
        self._longest = 0

    def consume(self, primers: list[list[int]]) -> Tensor:
        """Runs all tokens of all primers as the rows of one pass."""
        device = self._original_U.device
        counts = [len(primer) for primer in primers]
        utterance_N = listed([u for u, count in enumerate(counts) for _ in range(count)], device)
        number_N = self._original_U.index_select(0, utterance_N)
        tokens_N = listed([token for primer in primers for token in primer], device)
        rows = Rows(utterance_N, self._utterances, counts)
        self._gates = GateState(number_N, rows.slot_N)
        self._longest = rows.width
        self._tree.begin(rows)
        hidden_ND = self._run(tokens_N, rows, causal=True)
        self._follow(rows.last_U, torch.arange(self._utterances, device=device))
        return hidden_ND.index_select(0, rows.last_U)

    def keep_utterances(self, keep_U: list[bool]) -> list[int]:
        """Lets utterances leave; the rows must be given anew by the next `step`.

        Returns:
            The utterances left, by their numbers before, in their new order.
        """
        order = without_gaps(keep_U)
        count, device = len(order), self._original_U.device
        moved = [(to, from_) for to, from_ in enumerate(order) if to != from_]
        move_to, move_from = sent(torch.tensor(moved, dtype=torch.long).view(-1, 2), device).unbind(1)
        self._source.keep_utterances(order)
        index = listed(order, device)
        self._tree.keep_utterances(move_to, move_from, count)
        self._original_U = self._original_U.index_select(0, index)
        self._utterances = count
        return order

    def step(self, tokens_N: Tensor, parents_N: Tensor, rows: Rows) -> Tensor:
        """Appends a token to each hypothesis.

        Args:
            tokens_N: The tokens.
            parents_N: The row of the step before that each row continues.
            rows: The utterance of each row, as numbered after `keep_utterances`.

        Returns:
            Hidden vectors (N, D).
        """
        self._follow(parents_N, rows.utterance_N)
        self._gates.rows = rows
        self._gates.position_N = self._gates.position_N + 1
        self._longest += 1
        return self._run(tokens_N, rows, causal=False)

    def _follow(self, parents_N: Tensor, utterance_N: Tensor) -> None:
        self._tree.reorder(parents_N)
        self._gates.follow(parents_N, self._original_U.index_select(0, utterance_N))

    def _run(self, tokens_N: Tensor, rows: Rows, *, causal: bool) -> Tensor:
        x_ND = self._decoder.embed(tokens_N, self._gates.position_N, self._longest)
        self._tree.append(rows, causal=causal)
        self._masks_LUWC = self._tree.masks(rows, self._decoder.dtype)
        self._ran = [self._decide is None] * len(self._tree.layers)
        x_ND, open_NLM = self._layers(x_ND, rows, self._gates, causal=causal)
        open_LN = None if causal or open_NLM is None else open_NLM[:, :, 0].t()
        self._tree.close(rows, open_LN, self._ran)
        if open_NLM is not None:
            self._gates.record(open_NLM)
        return x_ND

    def _layers(
        self, x_ND: Tensor, rows: Rows, known: GateState, *, causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """All of them, and which of their modules ran (N, L, M), if there are gates."""
        decoder, everyone = self._decoder, Open(rows)
        if self._decide is None:
            seen = self._grow(0, everyone, causal)
            for index, layer in enumerate(decoder.layers):
                x_ND = self._attend_own(index, x_ND, everyone, *seen)
                x_ND = self._attend_source(index, x_ND, everyone)
                x_ND = self._feed_forward(layer, x_ND, everyone)
            return x_ND, None
        opened, modules = [], decoder.modules
        always_N = torch.ones(rows.size, dtype=torch.bool, device=x_ND.device)
        for index, layer in enumerate(decoder.layers):
            masks = self._decide(index, x_ND, known)
            masks_MN = [masks.get(name, always_N) for name in modules]
            opened += masks_MN
            own, source, ffn = self._opened(masks_MN, rows, layer)
            if own is not None:
                x_ND = self._attend_own(index, x_ND, own, *self._grow(index, own, causal))
            if source is not None:
                x_ND = self._attend_source(index, x_ND, source)
            if ffn is not None:
                x_ND = self._feed_forward(layer, x_ND, ffn)
        return x_ND, torch.stack(opened, dim=1).unflatten(1, (-1, len(modules)))

    @property
    def history_NPLM(self) -> Tensor | None:
        """Which modules ran for each token of each row (`GateState`); None without gates."""
        return self._gates.history_NPLM

    def _opened(self, masks_MN: list[Tensor], rows: Rows, layer: StepLayer) -> list[Open | None]:
        """The rows that each module runs on, None where there are none."""
        return opened(masks_MN, rows, layer.sizes)

    def _grow(self, index: int, own: Open, causal: bool) -> tuple[Tensor, Tensor]:
        """The columns of the rows that run, and what every row of the grid sees (U, 1, W, C)."""
        tree, rows = self._tree, own.rows
        self._ran[index] = True
        used = tree.used[index] + rows.width
        columns_N = own.take(tree.column_LN[index])
        mask_N = own.mask_of()
        if causal and mask_N is not None:
            tree.hide(index, mask_N, rows)
            return columns_N, tree.masks(rows, self._decoder.dtype)[index, ..., :used].unsqueeze(1)
        return columns_N, self._masks_LUWC[index, ..., :used].unsqueeze(1)

    def _attend_own(self, index: int, x_ND: Tensor, own: Open, columns_K: Tensor, bias: Tensor) -> Tensor:
        layer, cache = self._decoder.layers[index], self._caches[index]
        query, key_value = layer.project_own(layer.own_norm(own.take(x_ND)))
        cache.write(own.take(own.rows.utterance_N), columns_K, key_value)
        keys, values = cache.read(bias.shape[-1])
        return own.add(x_ND, layer.own_out(attend(query, keys, values, bias, own.rows, own.index_K)))

    def _attend_source(self, index: int, x_ND: Tensor, open_: Open) -> Tensor:
        layer = self._decoder.layers[index]
        query = layer.source_query(layer.source_norm(open_.take(x_ND)))
        return open_.add(x_ND, layer.source_out(self._source.attend(index, query, open_.rows, open_.index_K)))

    def _feed_forward(self, layer: StepLayer, x_ND: Tensor, open_: Open) -> Tensor:
        return open_.add(x_ND, layer.feed_forward(layer.ffn_norm(open_.take(x_ND))))


class Open:
    """The rows that a module runs on: taken out before it, its output added back.

    Args:
        rows: All.
        index_K: Those with an open gate, ascending, where no others are to be computed.
        mask_N: Whose output is added, where all are computed.
        weight_N1: The same in numbers, if there are any: a CPU multiplies by them in half of the time.
    """

    def __init__(
        self,
        rows: Rows,
        index_K: Tensor | None = None,
        mask_N: Tensor | None = None,
        weight_N1: Tensor | None = None,
    ) -> None:
        self.rows, self.index_K, self.mask_N, self._weight_N1 = rows, index_K, mask_N, weight_N1

    def take(self, x_N: Tensor) -> Tensor:
        return x_N if self.index_K is None else x_N.index_select(0, self.index_K)

    def add(self, x_ND: Tensor, y_KD: Tensor) -> Tensor:
        if self.mask_N is not None:
            weight_N1 = self.mask_N.unsqueeze(1) if self._weight_N1 is None else self._weight_N1
            return x_ND.addcmul(y_KD, weight_N1)
        if self.index_K is None:
            return x_ND + y_KD
        return x_ND.index_add(0, self.index_K, y_KD.to(x_ND.dtype))

    def mask_of(self) -> Tensor | None:
        """Where it runs; None for everywhere."""
        if self.index_K is None:
            return self.mask_N
        return torch.zeros_like(self.rows.index_N, dtype=torch.bool).index_fill_(0, self.index_K, True)


def opened(masks_MN: list[Tensor], rows: Rows, sizes: Sequence[int]) -> list[Open | None]:
    """The rows that each module of a layer runs on, None where there are none; decided for all modules at once.

    A GPU computes the closed rows too and adds nothing for them: a step reads all weights as soon as one of them runs,
    and to know which ones do its host would have to wait. So does a CPU where taking rows out costs more than computing
    them.

    Args:
        sizes: Multiplications that each module has with a row.
    """
    if masks_MN[0].is_cuda:
        return [Open(rows, mask_N=mask_N) for mask_N in masks_MN]
    found: list[Open | None] = []
    stacked_MN = torch.stack(masks_MN)
    runs_MN: list[list[bool]] = stacked_MN.tolist()
    weight_MN1 = stacked_MN.unsqueeze(2).to(torch.float32)
    for runs_N, mask_N, weight_N1, size in zip(runs_MN, masks_MN, weight_MN1, sizes, strict=True):
        closed = runs_N.count(False)
        if closed == 0:
            found.append(Open(rows))
        elif closed == rows.size:
            found.append(None)
        elif rows.size <= FEW or closed * size < WORTH:
            found.append(Open(rows, mask_N=mask_N, weight_N1=weight_N1))
        else:
            found.append(Open(rows, torch.tensor([n for n, runs in enumerate(runs_N) if runs])))
    return found
