"""Gated modules on a GPU without the host's knowing how many frames are kept.

`compact` lists, on the device, the frames that each module runs on. Everything behind it is given room for all frames,
so that none can be lost, and does no more than it has to: its kernels read from memory how many rows there are, and
leave early.

    gather, norm -> product, activation -> product, added to the rows it came from       3 launches, an FFN

Each is here in PyTorch too, for reference, where it does wait for the host. Where Triton is missing
`localgp.kernels.plan` lists the frames on the host.

Shape legend: N frames of all utterances, B utterances, M gated modules, D model size, K inputs and U outputs of a
product. Of N rows the first ``ends[-1]`` exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.kernels import devices, ragged
from localgp.kernels.ragged import Ragged

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "swish": F.silu,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class Kept:
    """The frames that a module runs on.

    Attributes:
        index_N: They come first, in their order; int32.
        ends_B1: Where each utterance's begin and end among them, int32.
        longest: No utterance has more.
    """

    index_N: Tensor
    ends_B1: Tensor
    longest: int

    @property
    def count(self) -> Tensor:
        """How many there are, one number on the device."""
        return self.ends_B1[-1:]


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all that this needs can be had: Triton, and attention to utterances whose lengths the host does not
    know, which there is in half precision."""
    if device.type != "cuda" or dtype == torch.float32 or ragged.varlen_attention() is None:
        return False
    return devices.triton_on(device) is not None


def compact(masks_MN: Tensor, layout: Ragged) -> list[Kept]:
    """Of each module, (N,) bool."""
    found: list[Kept] = _kernels(masks_MN).compact(masks_MN, layout)
    return found


def product(
    x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, activation: str = "none"
) -> Tensor:
    """``activation(x W^T + b)`` of the rows that exist."""
    y_NU: Tensor = _kernels(x_NK).product(x_NK, weight_UK, bias_U, kept, activation)
    return y_NU


def product_to_rows(
    x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, out_NU: Tensor, *, add: bool
) -> Tensor:
    """``x W^T + b`` of the rows that exist, put (or added) where they came from, in place."""
    _kernels(x_NK).product_to_rows(x_NK, weight_UK, bias_U, kept, out_NU, add=add)
    return out_NU


def attend(qkv_N3Hd: Tensor, kept: Kept) -> Tensor:
    """Attention inside each utterance, (N, 3, H, d) to (N, H * d); what is behind the rows that exist is not read."""
    varlen: Any = ragged.varlen_attention()
    ends, longest = kept.ends_B1, kept.longest
    attended: Tensor = varlen(*qkv_N3Hd.unbind(1), ends, ends, longest, longest)
    return attended.flatten(1)


class Reference:
    """The kernels in PyTorch."""

    @staticmethod
    def compact(masks_MN: Tensor, layout: Ragged) -> list[Kept]:
        found = []
        for mask_N in masks_MN:
            index_N = (~mask_N).to(torch.uint8).argsort(stable=True).int()
            ends_B1 = F.pad(mask_N.cumsum(0), (1, 0)).index_select(0, layout.ends_B1).int()
            found.append(Kept(index_N, ends_B1, layout.longest))
        return found

    @staticmethod
    def product(
        x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, activation: str
    ) -> Tensor:
        count = int(kept.count)
        out_NU = x_NK.new_zeros(len(x_NK), len(weight_UK))
        out_NU[:count] = ACTIVATIONS[activation](F.linear(x_NK[:count], weight_UK, bias_U))
        return out_NU

    @staticmethod
    def product_to_rows(
        x_NK: Tensor, weight_UK: Tensor, bias_U: Tensor | None, kept: Kept, out_NU: Tensor, *, add: bool
    ) -> Tensor:
        count = int(kept.count)
        index = kept.index_N[:count].long()
        y = F.linear(x_NK[:count], weight_UK, bias_U).to(out_NU.dtype)
        return out_NU.index_add_(0, index, y) if add else out_NU.index_copy_(0, index, y)


def _kernels(x: Tensor) -> Any:
    return devices.triton_on(x.device) or Reference
