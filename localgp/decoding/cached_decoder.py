"""ESPnet's Transformer decoder with caches, over the same weights.

ESPnet projects the keys and values of the whole prefix, and of every encoder frame, again at every step and for
every hypothesis. Here the encoder's are projected once per utterance and shared by its hypotheses, and those
of the prefix once per token (`localgp.decoding.cache`). The primer is consumed in one pass.

With gates, a module runs on the rows whose gate is open, and only on them; a token whose self-attention is
closed is neither query nor key.

Shape legend: N rows, U utterances, W slots, T encoder frames, C columns of the cache, D model size, H heads,
K size of a head, V vocabulary, B utterances of the whole batch, P passes, L layers, M gated modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localgp.decoding.cache import KeyValues, TokenTree
from localgp.decoding.gate_state import DecoderGates, GateState
from localgp.decoding.linear import PackedLinear
from localgp.decoding.rows import Rows
from localgp.errors import BackboneError
from localgp.pruning.decoder import MODULES


class _Layer:
    """Weights of one decoder layer: projections of the same input fused, laid out for few rows."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own, source, ffn = layer.self_attn, layer.src_attn, layer.feed_forward
        self.heads, self.head_size = own.h, own.d_k
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.own_qkv = _fuse(dtype, own.linear_q, own.linear_k, own.linear_v)
        self.own_out = _fuse(dtype, own.linear_out)
        self.source_q, self.source_kv = (
            _fuse(dtype, source.linear_q),
            _fuse(dtype, source.linear_k, source.linear_v),
        )
        self.source_out = _fuse(dtype, source.linear_out)
        self.own_norms, self.source_norms = (own.q_norm, own.k_norm), (source.q_norm, source.k_norm)
        relu = isinstance(ffn.activation, nn.ReLU)
        self.ffn_in, self.ffn_out = _fuse(dtype, ffn.w_1, relu=relu), _fuse(dtype, ffn.w_2)
        self.activation = nn.Identity() if relu else ffn.activation

    def heads_of(self, x_D: Tensor) -> Tensor:
        """(..., D) to (..., H, K)."""
        return x_D.unflatten(-1, (self.heads, self.head_size))

    def project_source(self, memory_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, K) of the encoder's output."""
        key, value = (self.heads_of(x).transpose(1, 2) for x in self.source_kv(memory_BTD).chunk(2, dim=-1))
        return _head_norm(self.source_norms[1], key).contiguous(), value.contiguous()

    def feed_forward(self, x_ND: Tensor) -> Tensor:
        return self.ffn_out(self.activation(self.ffn_in(x_ND)))


def _fuse(dtype: torch.dtype, *linears: Any, relu: bool = False) -> PackedLinear:
    """Several linear layers of one input as one."""
    weight = torch.cat([linear.weight.detach().to(dtype) for linear in linears])
    bias = torch.cat([linear.bias.detach().to(dtype) for linear in linears])
    return PackedLinear(weight, bias, relu=relu)


class CachedDecoder:
    """Args:
    decoder: ``espnet2.asr.decoder.transformer_decoder.TransformerDecoder`` in eval mode. Its weights are
        read here (some are fused), so make a new wrapper after changing them.
    gates: Per-token gates of every layer, or None for the dense decoder, where `start` is given none.
    dtype: Type that weights and caches are held in; default: the decoder's own. Norms and the residual
        stream are fp32 always.

    Raises:
        BackboneError: If the decoder is not of the kind OWSM has.
    """

    def __init__(
        self, decoder: Any, gates: DecoderGates | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        check_supported(decoder)
        self.dtype: torch.dtype = dtype or decoder.output_layer.weight.dtype
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.decoders]
        self.embedding, self._encoding = decoder.embed[0], decoder.embed[1]
        self._positions_PD = self._encoding.pe[0].to(self.embedding.weight.device, torch.float32)
        self.after_norm = decoder.after_norm
        self.output_layer = _fuse(self.dtype, decoder.output_layer)
        self.vocabulary = decoder.output_layer.out_features
        self.gates = gates

    def embed(self, tokens_N: Tensor, position_N: Tensor, longest: int) -> Tensor:
        """Embeddings scaled and with positions below ``longest``, in fp32 (as is the residual stream)."""
        if longest > self._positions_PD.shape[0]:
            self._encoding.extend_pe(self._positions_PD.new_zeros(1, 2 * longest))
            self._positions_PD = self._encoding.pe[0].to(self._positions_PD)
        positions_ND = self._positions_PD.index_select(0, position_N)
        return self.embedding(tokens_N).float() * self._encoding.xscale + positions_ND

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Unnormalised scores (N, V) in fp32 of the next token."""
        return self.output_layer(_norm(self.after_norm, hidden_ND, self.dtype)).float()

    def start(
        self,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        primers: list[list[int]],
        gates: DecoderGates | None = None,
        numbers: list[int] | None = None,
    ) -> tuple[DecoderState, Tensor]:
        """Projects the encoder's output, consumes the primers.

        Args:
            gates: In place of the decoder's own.
            numbers: What the gates shall know the utterances by; default: 0 to B - 1.

        Returns:
            The state, with one row per utterance, and the hidden vector (B, D) of each primer's last token.
        """
        state = DecoderState(self, memory_BTD.to(self.dtype), lengths_B, gates or self.gates, numbers)
        return state, state.consume(primers)


class DecoderState:
    """A running batch: source keys and values, self-attention caches, and which row sees what."""

    def __init__(
        self,
        decoder: CachedDecoder,
        memory_BTD: Tensor,
        lengths_B: Tensor,
        gates: DecoderGates | None = None,
        numbers: list[int] | None = None,
    ) -> None:
        self._decoder = decoder
        self._decide = gates
        self._utterances, frames = memory_BTD.shape[:2]
        self._source = [layer.project_source(memory_BTD) for layer in decoder.layers]
        self._source_bias: Tensor | None = None
        if bool((lengths_B != frames).any()):
            beyond_BT = torch.arange(frames, device=memory_BTD.device) >= lengths_B.unsqueeze(1)
            bias_BT = torch.zeros(beyond_BT.shape, dtype=memory_BTD.dtype, device=memory_BTD.device)
            self._source_bias = bias_BT.masked_fill_(beyond_BT, float("-inf"))[:, None, None]
        self._caches = [
            KeyValues(self._utterances, layer.heads, layer.head_size, memory_BTD) for layer in decoder.layers
        ]
        # Without gates every layer caches the same tokens, so one tree serves them all.
        groups = [self._caches] if gates is None else [[cache] for cache in self._caches]
        self._trees = [TokenTree(group, self._utterances, memory_BTD.device) for group in groups]
        self._original_U = torch.tensor(numbers or list(range(self._utterances)), device=memory_BTD.device)
        self._gates = GateState(self._original_U, torch.zeros_like(self._original_U))
        self._longest = 0

    def consume(self, primers: list[list[int]]) -> Tensor:
        """Runs all tokens of all primers as the rows of one pass."""
        device = self._original_U.device
        counts = [len(primer) for primer in primers]
        utterance_N = torch.tensor([u for u, count in enumerate(counts) for _ in range(count)], device=device)
        number_N = self._original_U.index_select(0, utterance_N)
        tokens_N = torch.tensor([token for primer in primers for token in primer], device=device)
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

        The last ones move into the gaps, so that at most as many caches are copied as utterances leave.

        Returns:
            The utterances left, by their numbers before, in their new order.
        """
        count = sum(keep_U)
        gaps = [u for u in range(count) if not keep_U[u]]
        movers = [u for u in range(count, len(keep_U)) if keep_U[u]]
        order = list(range(count))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        device = self._original_U.device
        move_to = torch.tensor(gaps, device=device, dtype=torch.long)
        move_from = torch.tensor(movers, device=device, dtype=torch.long)
        if gaps:
            for key, value in self._source:
                key[move_to], value[move_to] = key[move_from], value[move_from]
        self._source = [(key[:count], value[:count]) for key, value in self._source]
        index = torch.tensor(order, device=device)
        if self._source_bias is not None:
            self._source_bias = self._source_bias.index_select(0, index)
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
        decoder = self._decoder
        x_ND = decoder.embed(tokens_N, self._gates.position_N, self._longest)
        if self._decide is None:
            everyone = _Open(None, rows)
            columns, bias = self._grow(self._trees[0], rows, everyone, causal)
            for index, layer in enumerate(decoder.layers):
                x_ND = self._attend_own(layer, self._caches[index], x_ND, everyone, columns, bias)
                x_ND = self._attend_source(layer, self._source[index], x_ND, everyone)
                x_ND = self._feed_forward(layer, x_ND, everyone)
            return x_ND
        opened = x_ND.new_ones(rows.size, len(decoder.layers), len(MODULES), dtype=torch.bool)
        for index, layer in enumerate(decoder.layers):
            masks = self._decide(index, x_ND, self._gates)
            for m, name in enumerate(MODULES):
                if name in masks:
                    opened[:, index, m] = masks[name]
            own, source, ffn = (_Open.where(masks.get(name), rows) for name in MODULES)
            if own.rows.size:
                columns, bias = self._grow(self._trees[index], rows, own, causal)
                x_ND = self._attend_own(layer, self._caches[index], x_ND, own, columns, bias)
            if source.rows.size:
                x_ND = self._attend_source(layer, self._source[index], x_ND, source)
            if ffn.rows.size:
                x_ND = self._feed_forward(layer, x_ND, ffn)
        self._gates.record(opened)
        return x_ND

    @property
    def history_NPLM(self) -> Tensor | None:
        """Which modules ran for each token of each row (`GateState`); None without gates."""
        return self._gates.history_NPLM

    def _grow(self, tree: TokenTree, rows: Rows, own: _Open, causal: bool) -> tuple[Tensor, Tensor]:
        new_N = rows.index_N if own.index is None else own.index
        columns_N = tree.append(rows, own.rows, new_N, causal=causal)
        return columns_N, tree.mask(own.rows, own.index, self._decoder.dtype)

    def _attend_own(
        self, layer: _Layer, cache: KeyValues, x_ND: Tensor, own: _Open, columns_N: Tensor, bias: Tensor
    ) -> Tensor:
        normed = _norm(layer.norm1, own.take(x_ND), self._decoder.dtype)
        query, key, value = (layer.heads_of(part) for part in layer.own_qkv(normed).chunk(3, dim=-1))
        query, key = _head_norm(layer.own_norms[0], query), _head_norm(layer.own_norms[1], key)
        cache.write(own.rows.utterance_N, columns_N, key, value)
        keys, values = cache.read(bias.shape[-1])
        return own.add(x_ND, layer.own_out(_attend(query, keys, values, bias, own.rows)))

    def _attend_source(
        self, layer: _Layer, source: tuple[Tensor, Tensor], x_ND: Tensor, open_: _Open
    ) -> Tensor:
        normed = _norm(layer.norm2, open_.take(x_ND), self._decoder.dtype)
        query = _head_norm(layer.source_norms[0], layer.heads_of(layer.source_q(normed)))
        alike = open_.rows.full or query.device.type != "cpu"
        attended = (_attend if alike else _attend_one_by_one)(query, *source, self._source_bias, open_.rows)
        return open_.add(x_ND, layer.source_out(attended))

    def _feed_forward(self, layer: _Layer, x_ND: Tensor, open_: _Open) -> Tensor:
        return open_.add(x_ND, layer.feed_forward(_norm(layer.norm3, open_.take(x_ND), self._decoder.dtype)))


class _Open:
    """The rows whose gate is open: taken out before a module, its output added back."""

    def __init__(self, index: Tensor | None, rows: Rows) -> None:
        self.index, self.rows = index, rows

    @classmethod
    def where(cls, mask_N: Tensor | None, rows: Rows) -> _Open:
        return cls(None, rows) if mask_N is None else cls(*rows.subset(mask_N))

    def take(self, x_ND: Tensor) -> Tensor:
        return x_ND if self.index is None else x_ND.index_select(0, self.index)

    def add(self, x_ND: Tensor, y_ND: Tensor) -> Tensor:
        if self.index is None:
            return x_ND + y_ND
        return x_ND.index_add(0, self.index, y_ND.to(x_ND.dtype))


def _attend(query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Attention of every row to its utterance's keys (U, H, C, K); (N, D)."""
    query_UHWK = rows.to_grid(query_NHK).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query_UHWK, keys, values, attn_mask=bias)
    return rows.from_grid(attended.transpose(1, 2).flatten(2))


def _attend_one_by_one(
    query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows
) -> Tensor:
    """`_attend` without empty slots, for utterances that differ in rows.

    On a CPU the time grows with the rows (749 frames: 5 rows take 2.5 times as long as 1), and a call costs
    little beside it; on a GPU it is the other way round.
    """
    attended = []
    for u, query_WHK in enumerate(query_NHK.split(rows.counts)):
        if query_WHK.shape[0]:
            mine = slice(u, u + 1)
            query_1HWK = query_WHK.transpose(0, 1).unsqueeze(0)
            mask = None if bias is None else bias[mine]
            out = F.scaled_dot_product_attention(query_1HWK, keys[mine], values[mine], attn_mask=mask)
            attended.append(out.squeeze(0).transpose(0, 1).flatten(1))
    return torch.cat(attended)


def _head_norm(norm: Any, x: Tensor) -> Tensor:
    """ESPnet's ``qk_norm`` where the model has it."""
    return x if isinstance(norm, nn.Identity) else _norm(norm, x, x.dtype)


def _norm(norm: Any, x_ND: Tensor, dtype: torch.dtype) -> Tensor:
    """Layer normalisation in fp32, whatever the weights' type."""
    weight, bias = norm.weight.float(), norm.bias.float()
    return F.layer_norm(x_ND.float(), norm.normalized_shape, weight, bias, norm.eps).to(dtype)


def check_supported(decoder: Any) -> None:
    """Raises:
    BackboneError: If the decoder is not of the kind that OWSM has.
    """
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

    if not isinstance(decoder, TransformerDecoder):
        raise BackboneError(
            f"decoder is {type(decoder).__name__}, supported: ESPnet's TransformerDecoder, which OWSM models have"
        )
    problems = []
    first = decoder.decoders[0]
    if not isinstance(decoder.embed[0], nn.Embedding):
        problems.append("input_layer is not embed")
    if not decoder.normalize_before or first.concat_after:
        problems.append("layers are not pre-norm without concat_after")
    if type(first.self_attn) is not MultiHeadedAttention:
        problems.append(
            f"self-attention is {type(first.self_attn).__name__}, supported: MultiHeadedAttention"
        )
    if decoder.output_layer is None:
        problems.append("there is no output layer")
    if problems:
        raise BackboneError("this decoder cannot be cached: " + "; ".join(problems) + ". Use an OWSM model.")
