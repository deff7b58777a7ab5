"""Utterances of different lengths as one sequence without padding.

Shape legend: B utterances, T frames of the longest, N frames of all together, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.precision import cpu_multiplies_bf16

RANGE = "localgp::"  # prefix of the parts' names in a profile
LONG = 8192  # size of a head's keys (frames x d) from which on plain products can be faster than the fused attention
SCORES = 1 << 20  # bytes of scores at a time, where they are in memory


class Ragged:
    """Where the utterances of a packed (N, ...) sequence lie.

    Args:
        lengths: Frames of each utterance.
        device: Of the index tensors.

    Examples:
        >>> layout = Ragged([2, 1])
        >>> layout.unpack(torch.tensor([[1.0], [2.0], [3.0]])).squeeze(-1)
        tensor([[1., 2.],
                [3., 0.]])
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = list(lengths)
        self.device = torch.device(device)
        self.offsets = [0, *accumulate(self.lengths)]

    @property
    def total(self) -> int:
        return self.offsets[-1]

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    @property
    def equal(self) -> bool:
        """Whether the packed sequence is a plain (B, T) batch, reshaped."""
        return len(set(self.lengths)) <= 1

    @cached_property
    def owner_N(self) -> Tensor:
        """The utterance that each frame belongs to."""
        counts = torch.tensor(self.lengths)
        return sent(torch.repeat_interleave(torch.arange(len(self.lengths)), counts), self.device)

    @cached_property
    def frame_N(self) -> Tensor:
        """Each frame's place in its utterance."""
        return sent(torch.cat([torch.arange(n) for n in self.lengths]), self.device)

    @cached_property
    def place_N(self) -> Tensor:
        """Each frame's place in the padded batch, its first two dimensions flattened."""
        return self.owner_N * self.longest + self.frame_N

    @cached_property
    def ends_B1(self) -> Tensor:
        """Where utterances begin and end, int32: 0 and the running sum of their lengths."""
        return sent(torch.tensor(self.offsets, dtype=torch.int32), self.device)

    def segments(self) -> Iterator[slice]:
        for begin, end in zip(self.offsets, self.offsets[1:], strict=False):
            yield slice(begin, end)

    def pack(self, x_BTC: Tensor) -> Tensor:
        """(B, T or more, ...) to (N, ...); a view where there is nothing to leave out."""
        if self.equal and x_BTC.shape[1] == self.longest:
            return x_BTC.flatten(0, 1)
        return torch.cat([x[:n] for x, n in zip(x_BTC, self.lengths, strict=True)])

    def unpack(self, x_NC: Tensor) -> Tensor:
        """(N, ...) to (B, T, ...), zero behind the end of shorter utterances; a view where all are equal."""
        if self.equal:
            return x_NC.unflatten(0, (len(self.lengths), self.longest))
        x_MC = x_NC.new_zeros(len(self.lengths) * self.longest, *x_NC.shape[1:])
        return x_MC.index_copy_(0, self.place_N, x_NC).unflatten(0, (len(self.lengths), self.longest))

    def batches(self, x_NC: Tensor) -> Iterator[Tensor]:
        """Views (B', T', C) that cover the packed sequence, as few as the lengths allow."""
        if self.equal:
            yield self.unpack(x_NC)
        else:
            for segment in self.segments():
                if segment.stop > segment.start:
                    yield x_NC[segment].unsqueeze(0)


@lru_cache(maxsize=64)
def layout_of(lengths: tuple[int, ...], device: torch.device) -> Ragged:
    """The layout, kept: batches of full windows all have the same, and a GPU its indices already."""
    return Ragged(lengths, device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device; a GPU fetches it when it comes to it, without the host's waiting."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def listed(values: Sequence[Any], device: torch.device) -> Tensor:
    """A tensor of numbers that the host knows, `sent`."""
    return sent(torch.tensor(values), device)


def nonzero(mask: Tensor, count: int) -> Tensor:
    """``mask.nonzero()`` where it is known how many there are: a GPU's host need not wait for that."""
    return torch.nonzero_static(mask, size=count) if mask.is_cuda else mask.nonzero()


def attend(qkv_N3HD: Tensor, layout: Ragged) -> Tensor:
    """Softmax attention inside each utterance, packed (N, 3, H, d) to (N, H * d); no scores between utterances.

    Utterances of one length are one call. Otherwise CUDA in half precision has one kernel for all lengths, and
    elsewhere there is a call per utterance: to copy and pad utterances of about one length into one costs about what
    it saves.
    """
    if not layout.equal and qkv_N3HD.is_cuda and qkv_N3HD.dtype != torch.float32:
        varlen = varlen_attention()
        if varlen is not None:
            ends, longest = layout.ends_B1, layout.longest
            return varlen(*qkv_N3HD.unbind(1), ends, ends, longest, longest).flatten(1)
    if layout.equal:
        return _attend_batch(layout.unpack(qkv_N3HD)).flatten(2).flatten(0, 1)
    out_NHd = qkv_N3HD.new_empty(layout.total, *qkv_N3HD.shape[2:])
    for segment in layout.segments():
        if segment.stop > segment.start:
            out_NHd[segment] = _attend_batch(qkv_N3HD[segment].unsqueeze(0))[0]
    return out_NHd.flatten(1)


def _attend_batch(qkv_BT3Hd: Tensor) -> Tensor:
    """Of utterances of one length, (B, T, H, d)."""
    if _fused_is_slow(qkv_BT3Hd):
        return torch.stack([_attend_by_products(qkv_T3Hd) for qkv_T3Hd in qkv_BT3Hd])
    query, key, value = qkv_BT3Hd.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _fused_is_slow(qkv_BT3Hd: Tensor) -> bool:
    """On a CPU that multiplies bf16 without AMX, PyTorch's fused kernel runs far below the rate of
    plain products."""
    frames, size = qkv_BT3Hd.shape[1], qkv_BT3Hd.shape[4]
    if not qkv_BT3Hd.is_cpu or qkv_BT3Hd.dtype != torch.bfloat16 or frames * size < LONG:
        return False
    has_amx: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    return cpu_multiplies_bf16() and not has_amx()


def _attend_by_products(qkv_T3Hd: Tensor) -> Tensor:
    """Of one utterance, (T, H, d): so many queries of a head at a time that their scores stay in the cache."""
    frames, size = len(qkv_T3Hd), qkv_T3Hd.shape[3]
    query, key, value = qkv_T3Hd.permute(1, 2, 0, 3).contiguous()
    query *= size**-0.5
    parts = -(-frames * frames * qkv_T3Hd.element_size() // SCORES)
    for query_Td, key_Td, value_Td in zip(query, key, value, strict=True):
        for some in query_Td.chunk(parts):  # whose place is their result's
            torch.mm(torch.softmax(some @ key_Td.t(), dim=-1), value_Td, out=some)
    return query.transpose(0, 1)


def varlen_attention() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # older PyTorch
        return None
    return varlen_attn
