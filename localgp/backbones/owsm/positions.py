"""ESPnet's sinusoidal positions, in fp32 whatever they are added to.

Its PositionalEncoding casts its own table to the type of whatever it is given, for good: after one pass in bf16 the
positions of all later ones would be rounded.

Shape legend: B utterances, T frames, P positions, D model size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def position_table(encoding: Any, count: int, device: torch.device) -> Tensor:
    """``count`` positions or more, (P, D).

    Args:
        encoding: ESPnet's ``PositionalEncoding``.
    """
    if encoding.pe.dtype != torch.float32:  # cast by a forward pass of ESPnet's
        encoding.pe = None
    encoding.extend_pe(torch.empty(0, count, device=device))  # of which it reads size, type and device
    table: Tensor = encoding.pe[0]
    return table


def add_positions(encoding: Any, x_BTD: Tensor) -> Tensor:
    """``encoding(x_BTD)``, its table afterwards as it was."""
    frames = x_BTD.shape[1]
    table_PD = position_table(encoding, frames, x_BTD.device)
    encoding.pe = table_PD[None, :frames]
    try:
        summed: Tensor = encoding(x_BTD)
    finally:
        encoding.pe = table_PD[None]
    return summed
