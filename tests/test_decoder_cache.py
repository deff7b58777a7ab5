"""The cached decoder, dense and gated, against straightforward passes over the whole prefix."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from localgp.decoder import state as state_module
from localgp.decoder.cache import BLOCK
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import DecoderGates, GateState
from localgp.decoder.rows import Rows
from localgp.decoder.state import DecoderState
from localgp.errors import BackboneError
from localgp.pruning import DECODER_MODULES as MODULES
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from tests.conftest import make_backbone, make_encoder
from tests.decoding_helpers import PRIMER, Model, make_memory, make_model

LENGTHS = [13, 9, 11]


def gate_margins(layer: int, x_ND: Tensor) -> dict[str, Tensor]:
    """Random-looking logits that only depend on the token's own layer input."""
    return {name: (x_ND[:, k] * 40 + layer + k).sin() + 0.4 for k, name in enumerate(MODULES)}


def gate_of_input(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
    return {name: margin > 0 for name, margin in gate_margins(layer, x_ND).items()}


@torch.no_grad()
def reference_logits(
    decoder: nn.Module, memory_TD: Tensor, tokens: list[int], gates: DecoderGates | None
) -> Tensor | None:
    """Logits after the last token: the whole prefix, every module, then masks; no cache, no gathering.

    None if a gate is so close to its threshold that rounding could turn it.
    """
    count = len(tokens)
    x = decoder.embed(torch.tensor([tokens]))[0]
    state = GateState(torch.zeros(count, dtype=torch.long), torch.arange(count))
    causal = torch.ones(count, count).tril().bool()
    for index, layer in enumerate(decoder.decoders):
        open_ = {name: torch.ones(count, dtype=torch.bool) for name in MODULES}
        if gates is not None:
            open_.update(gates(index, x, state))
            if min(float(m.abs().min()) for m in gate_margins(index, x).values()) < 2e-4:
                return None
        own = open_["self_attention"]
        normed = layer.norm1(x)[None]
        keys = (causal & own)[None]
        # A closed token may have no open token before it; it is not a query, so its output is not used.
        attended = layer.self_attn(normed, normed, normed, keys | torch.eye(count).bool())[0]
        x = x + attended * own[:, None]
        attended = layer.src_attn(layer.norm2(x)[None], memory_TD[None], memory_TD[None], None)[0]
        x = x + attended * open_["source_attention"][:, None]
        x = x + layer.feed_forward(layer.norm3(x)) * open_["ffn"][:, None]
    return decoder.output_layer(decoder.after_norm(x[-1]))


def random_walk(decoder: CachedDecoder, gates: DecoderGates | None, steps: int, seed: int, check) -> int:
    """Random beams: hypotheses fork, die, and utterances leave; ``check(utterance, tokens, logits)`` sees each."""
    generator = torch.Generator().manual_seed(seed)
    memory, lengths = make_memory(seed, LENGTHS)
    primers = [PRIMER, [7, 8, 9, *PRIMER], PRIMER[:2]]
    state, hidden = decoder.start(memory, lengths, primers, gates)
    left = list(range(len(LENGTHS)))
    rows = [(u, list(primer)) for u, primer in enumerate(primers)]
    checked = 0
    for step in range(steps):
        logits = decoder.logits(hidden)
        for (u, tokens), row in zip(rows, logits, strict=True):
            check(memory[u, : LENGTHS[u]], tokens, row)
            checked += 1
        if step in (6, 13):
            keep = [u != (0 if step == 6 else 1) for u in left]
            left = [left[u] for u in state.keep_utterances(keep)]
        new_rows, parents = [], []
        for u in left:
            mine = [n for n, (owner, _) in enumerate(rows) if owner == u]
            for _ in range(int(torch.randint(1, 6, (1,), generator=generator))):
                parent = mine[int(torch.randint(len(mine), (1,), generator=generator))]
                token = int(torch.randint(4, 40, (1,), generator=generator))
                parents.append(parent)
                new_rows.append((u, [*rows[parent][1], token]))
        rows = new_rows
        utterance_N = torch.tensor([left.index(u) for u, _ in rows])
        tokens_N = torch.tensor([tokens[-1] for _, tokens in rows])
        hidden = state.step(tokens_N, torch.tensor(parents), Rows(utterance_N, len(left)))
    return checked


@pytest.fixture(params=["masked", "gathered"])
def closed_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether closed rows are computed and dropped, or taken out."""
    monkeypatch.setattr(state_module, "FEW", 0)
    monkeypatch.setattr(state_module, "WORTH", 0 if request.param == "gathered" else 1 << 60)
    return request.param


@pytest.mark.parametrize("gates", [None, gate_of_input], ids=["dense", "gated"])
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_every_hypothesis_sees_its_own_history(gates, seed: int, closed_rows: str) -> None:
    if gates is None and closed_rows == "gathered":
        pytest.skip("nothing is closed")
    model = make_model(seed, num_blocks=3)
    decoder = CachedDecoder(model.backbone)

    def check(memory_TD: Tensor, tokens: list[int], logits_V: Tensor) -> None:
        expected = reference_logits(model.decoder, memory_TD, tokens, gates)
        if expected is not None:
            torch.testing.assert_close(logits_V, expected, atol=2e-4, rtol=1e-4)
            compared.append(len(tokens))

    compared: list[int] = []
    steps = 2 * BLOCK // 5  # enough for the cache to grow, and to drop what no hypothesis sees
    assert len(compared) <= random_walk(decoder, gates, steps, seed, check)
    assert len(compared) > 90
    assert max(compared) > 15


@torch.no_grad()
def test_gates_change_the_result() -> None:
    """The gated test above means something: its gates are neither all open nor without effect."""
    model = make_model(0)
    memory, _ = make_memory(0, [10])
    dense = reference_logits(model.decoder, memory[0], [*PRIMER, 9, 9, 12], None)
    gated = reference_logits(model.decoder, memory[0], [*PRIMER, 9, 9, 12], gate_of_input)
    assert dense is not None
    assert gated is not None
    assert (dense - gated).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("sharing", [None, [0, 0, 1]], ids=["alone", "sharing"])
def test_taking_rows_out_changes_nothing(sharing, monkeypatch) -> None:
    """Hypotheses of several utterances, of which some share an encoder output."""
    model = make_model(1)
    memory, lengths = make_memory(1, LENGTHS if sharing is None else LENGTHS[:2])
    search = BeamSearch(model.backbone, DecodeOptions(beam=4, maxlenratio=-9, nbest=4))
    found = []
    for worth in (0, 1 << 60):
        monkeypatch.setattr(state_module, "FEW", 0)
        monkeypatch.setattr(state_module, "WORTH", worth)
        found.append(search(memory, lengths, [PRIMER] * 3, gate_of_input, sharing))
    for ours, theirs in zip(*found, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
        assert all(torch.equal(a.open_PLM, b.open_PLM) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def test_closed_tokens_never_enter_the_cache() -> None:
    def closed_after_primer(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        return {"self_attention": state.position_N < len(PRIMER)}

    state = _after_steps(9, closed_after_primer)
    assert [*state._tree.used] == [len(PRIMER)] * 2
    dense = _after_steps(9)
    assert [*dense._tree.used] == [len(PRIMER) + 9]


@torch.no_grad()
def test_all_closed_leaves_the_embedding() -> None:
    def closed(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        return {name: torch.zeros(x_ND.shape[0], dtype=torch.bool) for name in MODULES}

    decoder = CachedDecoder(make_model(0).backbone)
    memory, lengths = make_memory(0, [8])
    _, hidden = decoder.start(memory, lengths, [PRIMER], closed)
    position = torch.tensor([len(PRIMER) - 1])
    torch.testing.assert_close(hidden, decoder.embed(torch.tensor(PRIMER[-1:]), position, len(PRIMER)))


def test_dead_columns_are_dropped() -> None:
    """One of five hypotheses survives each step, so the cache holds little more than its history."""
    decoder = CachedDecoder(make_model(0).backbone)
    memory, lengths = make_memory(0, [8])
    with torch.no_grad():
        state, _ = decoder.start(memory, lengths, [PRIMER])
        rows = Rows(torch.zeros(5, dtype=torch.long), 1)
        steps = 40
        for _ in range(steps):
            state.step(torch.arange(5) + 10, torch.zeros(5, dtype=torch.long), rows)
    assert 5 * steps > 3 * BLOCK
    assert state._tree.used[0] <= steps + len(PRIMER) + BLOCK


def test_search_with_open_gates_equals_the_dense_search() -> None:
    def open_(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        return {name: torch.ones(x_ND.shape[0], dtype=torch.bool) for name in MODULES}

    model = make_model(2)
    options = DecodeOptions(beam=3, ctc_weight=0.3, nbest=3, maxlenratio=0.7)
    memory, lengths = make_memory(2, [30, 22])
    found = [
        BeamSearch(model.backbone, options)(memory, lengths, [PRIMER] * 2, gates) for gates in (None, open_)
    ]
    assert [[h.tokens for h in hs] for hs in found[0]] == [[h.tokens for h in hs] for hs in found[1]]


@torch.no_grad()
def test_gated_search_scores_are_those_of_the_reference(closed_rows: str) -> None:
    model = make_model(3)
    memory, lengths = make_memory(3, [14, 10])
    search = BeamSearch(model.backbone, DecodeOptions(beam=4, maxlenratio=-7))
    for u, hypotheses in enumerate(search(memory, lengths, [PRIMER] * 2, gate_of_input)):
        tokens = hypotheses[0].tokens
        real = tokens[: len(PRIMER) + 7]  # what lies beyond is the eos forced at the bound, not scored
        total = 0.0
        for end in range(len(PRIMER), len(real)):
            logits = reference_logits(model.decoder, memory[u, : lengths[u]], real[:end], gate_of_input)
            assert logits is not None, "choose another seed: a gate is too close to its threshold"
            total += float(logits.log_softmax(-1)[real[end]])
        assert hypotheses[0].score == pytest.approx(total, abs=1e-3)


@torch.no_grad()
def test_bf16_is_closer_to_fp32_than_espnet_in_bf16() -> None:
    """The residual stream stays in fp32."""
    model = make_model(4, size=64)
    memory, lengths = make_memory(4, [20], size=64)
    exact = CachedDecoder(model.backbone)
    expected = exact.logits(exact.start(memory, lengths, [PRIMER])[1])
    rounded = copy.deepcopy(model.decoder).bfloat16()
    ours = CachedDecoder(Model(rounded, None).backbone)
    found = ours.logits(ours.start(memory, lengths, [PRIMER])[1])
    primer = torch.tensor([PRIMER])
    theirs, _ = rounded(memory.bfloat16(), lengths, primer, torch.tensor([len(PRIMER)]))
    error, their_error = (found - expected).abs().mean(), (theirs[:, -1].float() - expected).abs().mean()
    assert 0 < error < their_error


@torch.no_grad()
def test_models_that_normalise_queries_and_keys() -> None:
    """ESPnet's ``qk_norm``, whose norms carry weights of their own."""
    model = make_model(5, qk_norm=True)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.decoder.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    decoder = CachedDecoder(model.backbone)
    memory, lengths = make_memory(5, [12])
    state, hidden = decoder.start(memory, lengths, [PRIMER])
    expected = reference_logits(model.decoder, memory[0], PRIMER, None)
    torch.testing.assert_close(decoder.logits(hidden)[0], expected, atol=2e-4, rtol=1e-4)
    hidden = state.step(torch.tensor([9]), torch.tensor([0]), Rows(torch.tensor([0]), 1))
    expected = reference_logits(model.decoder, memory[0], [*PRIMER, 9], None)
    torch.testing.assert_close(decoder.logits(hidden)[0], expected, atol=2e-4, rtol=1e-4)


def test_other_decoders_are_refused() -> None:
    with pytest.raises(BackboneError, match="Linear"):
        make_backbone(make_encoder(), nn.Linear(2, 2))
    with pytest.raises(BackboneError, match="pre-norm"):
        make_backbone(decoder=make_model(0, concat_after=True).decoder)


def _after_steps(steps: int, gates: DecoderGates | None = None) -> DecoderState:
    memory, lengths = make_memory(0, [8])
    state, _ = CachedDecoder(make_model(0).backbone).start(memory, lengths, [PRIMER], gates)
    for step in range(steps):
        state.step(torch.tensor([10 + step]), torch.tensor([0]), Rows(torch.tensor([0]), 1))
    return state
