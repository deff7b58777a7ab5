"""Attention to the encoder's frames: however keys and values are kept, the softmax attention of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from localgp.decoder import source
from localgp.decoder.rows import Rows
from localgp.decoder.source import BlockedSource, GridSource, SharedSource, keep_source

LENGTHS = [21, 4, 16, 9]
HEADS, SIZE = 2, 16
blocked = pytest.mark.skipif(not source.takes_convolutions(torch.zeros(1)), reason="PyTorch without oneDNN")


def keys_values(layers: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(layers, 2, len(LENGTHS), max(LENGTHS), HEADS, SIZE, generator=generator)
    return [(key, value) for key, value in both]


def queries(count: int) -> Tensor:
    return torch.randn(count, HEADS, SIZE, generator=torch.Generator().manual_seed(1))


def attention(query_NHK: Tensor, layer: tuple[Tensor, Tensor], lengths: list[int], owners: Tensor) -> Tensor:
    rows = []
    for query_HK, owner in zip(query_NHK, owners.tolist(), strict=True):
        key_THK, value_THK = (part[owner, : lengths[owner]] for part in layer)
        score_TH = torch.einsum("hk,thk->th", query_HK, key_THK) / SIZE**0.5
        rows.append(torch.einsum("th,thk->hk", score_TH.softmax(0), value_THK).flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("lengths", [LENGTHS, [21] * 4])
@pytest.mark.parametrize(
    "kind",
    ["grid", "one by one", pytest.param("blocked", marks=blocked)],
)
def test_attention_to_the_utterances_frames(
    kind: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different numbers of rows, an utterance without any, and the utterances left when one has gone."""
    monkeypatch.setattr(source, "CALL", 0 if kind == "one by one" else 1 << 60)
    layers = keys_values()
    kept = BlockedSource(layers, lengths) if kind == "blocked" else GridSource(layers, lengths)
    owners = torch.tensor([0, 0, 0, 2, 3, 3])
    for index, layer in enumerate(layers):
        found = kept.attend(index, queries(6), Rows(owners, 4))
        torch.testing.assert_close(found, attention(queries(6), layer, lengths, owners))
    kept.keep_utterances([0, 3, 2])
    owners = torch.tensor([0, 1, 1, 2])
    moved = [tuple(part[[0, 3, 2]] for part in layer) for layer in layers]
    lengths = [lengths[u] for u in (0, 3, 2)]
    for index, (key, value) in enumerate(moved):
        found = kept.attend(index, queries(4), Rows(owners, 3))
        torch.testing.assert_close(found, attention(queries(4), (key, value), lengths, owners))


@pytest.mark.parametrize("worth", [0, pytest.param(1 << 60, id="grid")])
def test_utterances_of_one_recording_share_it(worth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each had a copy, also when some have left, and with them an encoder output that no other one needs."""
    monkeypatch.setitem(source.WORTH, torch.float32, worth)
    layers, owners = keys_values(), [0, 0, 2, 3, 3]
    shared = SharedSource(layers, LENGTHS, owners, beam=2)
    rows = Rows(torch.tensor([0, 0, 1, 2, 3, 4, 4]), 5)
    for order in ([0, 1, 2, 3, 4], [0, 4, 2, 3], [3, 1], [1]):
        if order != [0, 1, 2, 3, 4]:
            owners = [owners[u] for u in order]
            shared.keep_utterances(order)
            rows = Rows(torch.arange(len(order)).repeat_interleave(2), len(order))
        mine = torch.tensor(owners).index_select(0, rows.utterance_N)
        for index, layer in enumerate(layers):
            found = shared.attend(index, queries(rows.size), rows)
            torch.testing.assert_close(found, attention(queries(rows.size), layer, LENGTHS, mine))


@blocked
def test_the_blocked_layout_is_for_many_multiplications(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = keys_values()
    per_row = max(LENGTHS) * HEADS * SIZE
    monkeypatch.setitem(source.WORTH, torch.float32, 5 * per_row)
    assert isinstance(keep_source(layers, LENGTHS, width=5), BlockedSource)
    assert isinstance(keep_source(layers, LENGTHS, width=4), GridSource)
    assert isinstance(
        keep_source([(k.double(), v.double()) for k, v in layers], LENGTHS, width=5), GridSource
    )


@blocked
def test_bf16_is_no_further_off_than_the_fused_attention() -> None:
    if not source.takes_convolutions(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip("this CPU has no bf16")
    exact = keys_values()
    rounded = [(key.bfloat16(), value.bfloat16()) for key, value in exact]
    owners = torch.tensor([0, 1, 2, 2])
    expected = attention(queries(4), exact[0], LENGTHS, owners)
    errors = [
        (kind(rounded, LENGTHS).attend(0, queries(4).bfloat16(), Rows(owners, 4)).float() - expected)
        .abs()
        .mean()
        for kind in (BlockedSource, GridSource)
    ]
    assert 0 < errors[0] < 1.5 * errors[1]
