"""A running batch of the cached decoder: what is kept from step to step, and one step.

With gates, a module runs on the rows whose gate is open, and only on them; a token whose self-attention is
closed is neither query nor key. (A GPU runs it on all rows and drops the others, see `Open`.)

Shape legend: N rows, U utterances, W slots, T encoder frames, C columns of the cache, D model size, H heads,
K size of a head, B utterances of the whole batch, P passes, L layers, M gated modules.
"""

from __future__ import annotations

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
        # Without gates every layer caches the same tokens, so one tree serves them all.
        groups = [self._caches] if gates is None else [[cache] for cache in self._caches]
        self._trees = [TokenTree(group, self._utterances, memory_BTD.device) for group in groups]
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
        for tree in self._trees:
            tree.begin(rows)
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
        for tree in self._trees:
            tree.keep_utterances(move_to, move_from, count)
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
        self._gates.position_N = self._gates.position_N + 1
        self._longest += 1
        return self._run(tokens_N, rows, causal=False)

    def _follow(self, parents_N: Tensor, utterance_N: Tensor) -> None:
        for tree in self._trees:
            tree.reorder(parents_N)
        self._gates.follow(parents_N, self._original_U.index_select(0, utterance_N))

    def _run(self, tokens_N: Tensor, rows: Rows, *, causal: bool) -> Tensor:
        x_ND = self._decoder.embed(tokens_N, self._gates.position_N, self._longest)
        x_ND, open_NLM = self._layers(x_ND, rows, self._gates, causal=causal)
        if open_NLM is not None:
            self._gates.record(open_NLM)
        return x_ND

    def _layers(
        self, x_ND: Tensor, rows: Rows, known: GateState, *, causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """All of them, and which of their modules ran (N, L, M), if there are gates."""
        decoder = self._decoder
        if self._decide is None:
            everyone = Open(None, rows)
            columns, bias = self._grow(0, rows, everyone, causal)
            for index, layer in enumerate(decoder.layers):
                x_ND = self._attend_own(layer, self._caches[index], x_ND, everyone, columns, bias)
                x_ND = self._attend_source(index, x_ND, everyone)
                x_ND = self._feed_forward(layer, x_ND, everyone)
            return x_ND, None
        opened, modules = [], decoder.modules
        always_N = torch.ones(rows.size, dtype=torch.bool, device=x_ND.device)
        for index, layer in enumerate(decoder.layers):
            masks = self._decide(index, x_ND, known)
            opened += [masks.get(name, always_N) for name in modules]
            own, source, ffn = (self._where(masks.get(name), rows) for name in modules)
            if own.rows.size:
                columns, bias = self._grow(index, rows, own, causal)
                x_ND = self._attend_own(layer, self._caches[index], x_ND, own, columns, bias)
            if source.rows.size:
                x_ND = self._attend_source(index, x_ND, source)
            if ffn.rows.size:
                x_ND = self._feed_forward(layer, x_ND, ffn)
        return x_ND, torch.stack(opened, dim=1).unflatten(1, (-1, len(modules)))

    @property
    def history_NPLM(self) -> Tensor | None:
        """Which modules ran for each token of each row (`GateState`); None without gates."""
        return self._gates.history_NPLM

    def _where(self, mask_N: Tensor | None, rows: Rows) -> Open:
        return Open.where(mask_N, rows)

    def _grow(self, index: int, rows: Rows, own: Open, causal: bool) -> tuple[Tensor, Tensor]:
        tree = self._trees[index]
        new_N = rows.index_N if own.index is None else own.index
        if own.mask_N is not None:  # a closed row's column is nobody's
            new_N = new_N.where(own.mask_N, rows.size)
        columns_N = tree.append(rows, own.rows, new_N, causal=causal)
        return columns_N, tree.mask(own.rows, own.index, self._decoder.dtype)

    def _attend_own(
        self, layer: StepLayer, cache: KeyValues, x_ND: Tensor, own: Open, columns_N: Tensor, bias: Tensor
    ) -> Tensor:
        query, key_value = layer.project_own(layer.own_norm(own.take(x_ND)))
        cache.write(own.rows.utterance_N, columns_N, key_value)
        keys, values = cache.read(bias.shape[-1])
        return own.add(x_ND, layer.own_out(attend(query, keys, values, bias, own.rows)))

    def _attend_source(self, index: int, x_ND: Tensor, open_: Open) -> Tensor:
        layer = self._decoder.layers[index]
        query = layer.source_query(layer.source_norm(open_.take(x_ND)))
        return open_.add(x_ND, layer.source_out(self._source.attend(index, query, open_.rows)))

    def _feed_forward(self, layer: StepLayer, x_ND: Tensor, open_: Open) -> Tensor:
        return open_.add(x_ND, layer.feed_forward(layer.ffn_norm(open_.take(x_ND))))


class Open:
    """The rows whose gate is open: taken out before a module, its output added back.

    A GPU computes the others too (``mask_N``) and adds nothing for them: a step reads all weights as soon as one row of
    it runs, and to know which ones do its host would have to wait at every module.
    """

    def __init__(self, index: Tensor | None, rows: Rows, mask_N: Tensor | None = None) -> None:
        self.index, self.rows, self.mask_N = index, rows, mask_N

    @classmethod
    def where(cls, mask_N: Tensor | None, rows: Rows) -> Open:
        if mask_N is None or mask_N.is_cuda:
            return cls(None, rows, mask_N)
        return cls(*rows.subset(mask_N))

    def take(self, x_ND: Tensor) -> Tensor:
        return x_ND if self.index is None else x_ND.index_select(0, self.index)

    def add(self, x_ND: Tensor, y_ND: Tensor) -> Tensor:
        if self.mask_N is not None:
            return x_ND.addcmul(y_ND, self.mask_N.unsqueeze(1))
        if self.index is None:
            return x_ND + y_ND
        return x_ND.index_add(0, self.index, y_ND.to(x_ND.dtype))
