"""Attention of decoding rows to their utterance's keys.

Shape legend: N rows, U utterances, W slots, C columns or frames, D model size, H heads, K size of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from localgp.decoder.rows import Rows


def attend(query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Attention of every row to its utterance's keys (U, H, C, K); (N, D)."""
    query_UHWK = rows.to_grid(query_NHK).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query_UHWK, keys, values, attn_mask=bias)
    return rows.from_grid(attended.transpose(1, 2).flatten(2))
