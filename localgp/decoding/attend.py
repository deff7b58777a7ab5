"""Attention of decoding rows to their utterance's keys.

Shape legend: N rows, U utterances, W slots, C columns or frames, D model size, H heads, K size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.decoding.rows import Rows

CALL = 1 << 17  # multiplications of few rows that take a CPU core as long as a call by itself does (15 us)


def attend(query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """Attention of every row to its utterance's keys (U, H, C, K); (N, D)."""
    query_UHWK = rows.to_grid(query_NHK).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query_UHWK, keys, values, attn_mask=bias)
    return rows.from_grid(attended.transpose(1, 2).flatten(2))


def attend_source(query_NHK: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
    """`attend` to the encoder's frames: without the grid's empty slots where they cost more than single calls.

    On a CPU the time grows with the rows (749 frames of size 1024: 5 rows take 2.5 times as long as 1), on a
    GPU it does not.
    """
    empty = rows.utterances * rows.width - rows.size
    per_row = 2 * keys.shape[1] * keys.shape[2] * keys.shape[3]
    if query_NHK.device.type != "cpu" or empty * per_row < rows.utterances * CALL:
        return attend(query_NHK, keys, values, bias, rows)
    attended = []
    for u, query_WHK in enumerate(query_NHK.split(rows.counts)):
        if query_WHK.shape[0]:
            mine = slice(u, u + 1)
            query_1HWK = query_WHK.transpose(0, 1).unsqueeze(0)
            mask = None if bias is None else bias[mine]
            out = F.scaled_dot_product_attention(query_1HWK, keys[mine], values[mine], attn_mask=mask)
            attended.append(out.squeeze(0).transpose(0, 1).flatten(1))
    return torch.cat(attended)
