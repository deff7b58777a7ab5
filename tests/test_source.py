"""Attention to the encoder's frames: however keys and values are kept, the softmax attention of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from localgp.backbones.base import Branch
from localgp.backbones.blocks import StepLayer
from localgp.decoder import source
from localgp.decoder.rows import Rows
from localgp.decoder.source import (
    BlockedSource,
    GridSource,
    MemorySource,
    SharedSource,
    keep_memory,
    keep_source,
)

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
    kept = keep_source(layers, LENGTHS, width=4)
    shared = SharedSource(kept, len(LENGTHS), owners, torch.device("cpu"))
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
    per_row = len(LENGTHS) * max(LENGTHS) * HEADS * SIZE  # all utterances' rows together
    monkeypatch.setitem(source.WORTH, torch.float32, 5 * per_row)
    assert isinstance(keep_source(layers, LENGTHS, width=5), BlockedSource)
    assert isinstance(keep_source(layers, LENGTHS, width=4), GridSource)
    monkeypatch.setitem(source.WORTH, torch.bfloat16, 4 * per_row)  # of the type that they are kept in
    assert isinstance(keep_source(layers, LENGTHS, width=4, dtype=torch.bfloat16), BlockedSource)
    assert isinstance(keep_source(layers, LENGTHS, width=3, dtype=torch.bfloat16), GridSource)
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


def step_layers(count: int, key_bias: bool) -> list[StepLayer]:
    """Layers whose attention to the source has keys with or without a bias."""
    generator = torch.Generator().manual_seed(2)
    size = HEADS * SIZE

    def linear(bias: bool = True) -> nn.Linear:
        made = nn.Linear(size, size, bias=bias)
        for parameter in made.parameters():
            nn.init.normal_(parameter, 0, 0.3, generator=generator)
        return made

    def layer() -> StepLayer:
        attend = [
            Branch(kind, (linear(), linear(key_bias), linear(), linear()), nn.LayerNorm(size), heads=HEADS)
            for kind in ("attention", "source")
        ]
        ffn = Branch("ffn", (linear(), linear()), nn.LayerNorm(size), activation=nn.GELU())
        return StepLayer(dict(zip(("own", "source", "ffn"), (*attend, ffn), strict=True)), torch.float32)

    return [layer() for _ in range(count)]


@blocked
@torch.no_grad()
@pytest.mark.parametrize("key_bias", [True, False])
def test_attention_without_keys_and_values_is_that_with_them(
    key_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of an utterance and more, an utterance without any, and those left when one has gone."""
    monkeypatch.setattr(source, "MEMORY_WORTH", 0)
    layers = step_layers(2, key_bias)
    memory = torch.randn(len(LENGTHS), max(LENGTHS), HEADS * SIZE, generator=torch.Generator().manual_seed(3))
    kept = keep_memory(memory, layers, LENGTHS, width=1)
    assert isinstance(kept, MemorySource)
    for order, owners in (([0, 1, 2, 3], [0, 0, 2, 3]), ([0, 3, 2], [0, 1, 2])):
        if len(order) < 4:
            kept.keep_utterances(order)
        lengths, owner = [LENGTHS[u] for u in order], torch.tensor(owners)
        for index, layer in enumerate(layers):
            found = kept.attend(index, queries(len(owners)), Rows(owner, len(order)))
            expected = attention(queries(len(owners)), layer.project_source(memory[order]), lengths, owner)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@blocked
def test_keys_and_values_are_made_for_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MEMORY_WORTH", max(LENGTHS) * HEADS * SIZE)
    layers = step_layers(1, key_bias=True)
    memory = torch.zeros(len(LENGTHS), max(LENGTHS), HEADS * SIZE)
    assert not isinstance(keep_memory(memory, layers, LENGTHS, width=2), MemorySource)
    assert isinstance(keep_memory(memory, layers, LENGTHS, width=1), MemorySource)
    assert not isinstance(keep_memory(memory[:, 1:], layers, LENGTHS, width=1), MemorySource)


@blocked
def test_calls_of_which_all_have_left_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order they leave in, those left attend to what is theirs."""
    monkeypatch.setattr(source, "ENOUGH", 2 * 21 * HEADS * SIZE)
    lengths = [21, 20, 19, 20, 8, 21]
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 2, len(lengths), max(lengths), HEADS, SIZE, generator=generator)
    both[:, :, 4, 8:] = float("nan")  # behind an utterance's end may be anything
    layers = [(key, value) for key, value in both]
    kept, left = BlockedSource(layers, lengths), list(range(len(lengths)))
    for order in ([0, 1, 2, 3, 4, 5], [0, 5, 2, 3, 4], [4, 1, 2], [2, 1], [0]):
        left = [left[u] for u in order]
        kept.keep_utterances(order)
        owners = torch.arange(len(left)).repeat_interleave(torch.arange(1, len(left) + 1))
        for index, layer in enumerate(layers):
            found = kept.attend(index, queries(len(owners)), Rows(owners, len(left)))
            own = torch.tensor(left)[owners]
            torch.testing.assert_close(found, attention(queries(len(owners)), layer, lengths, own))
        assert sorted(u for block in kept._blocks for u in block.members if u >= 0) == list(range(len(left)))
        assert all(len(block.members) <= 2 for block in kept._blocks)
        assert len(kept._blocks) <= len(left)
    kept.keep_utterances([])
    assert kept._blocks == []
