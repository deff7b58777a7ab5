"""Decoder gates: all tokens at once against ESPnet, and token by token against all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from localgp.backbones.cost import DecoderCost
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import StepGates
from localgp.decoder.rows import Rows
from localgp.decoder.train import decode_tokens
from localgp.evaluation.decoder_gates_file import (
    DecoderGateRecord,
    join_records,
    read_decoder_gates,
    write_decoder_gates,
)
from localgp.evaluation.measured import measured_ratios
from localgp.gates import Gate, GlobalGates, LocalGates, OpenGates
from localgp.model import GatedS2T
from localgp.pruning import DECODER_MODULES as MODULES
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from localgp.window import Window
from tests.conftest import make_backbone, make_encoder
from tests.decoding_helpers import EOS, PRIMER, VOCABULARY, make_memory, make_model
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)

SIZE, CONTEXT, LAYERS = 32, 6, 2


class Planted(nn.Module):
    """Gates as given, (Q, L) by module."""

    def __init__(self, **gates: Tensor) -> None:
        super().__init__()
        self.gates = gates

    def begin(self, contexts):
        return None

    def gate(self, layer, x, state):
        return {name: Gate(value, value) for name, value in self.gates.items()}


class PlantedLayers(nn.Module):
    """Gates as given, (Q, L) by layer and module."""

    def __init__(self, gates: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.gates = gates

    def begin(self, contexts):
        return None

    def gate(self, layer, x, state):
        return {name: Gate(value, value) for name, value in self.gates[layer].items()}


def make_policy(kind: str, seed: int = 0) -> nn.Module:
    """Predictors whose gates are about as often open as closed."""
    torch.manual_seed(seed)
    policy: nn.Module
    if kind in ("local", "cosine"):
        attention = "cosine" if kind == "cosine" else "dot"
        policy = LocalGates(LAYERS, SIZE, MODULES, {"lang2vec": CONTEXT}, bias=0.5, attention=attention)
        heads = [head for layer in policy.layers for head in layer.heads.values()]
    else:
        policy = GlobalGates(LAYERS, SIZE, MODULES, {"front": SIZE, "lang2vec": CONTEXT}, bias=0.2)
        heads = [policy.predictor[-1]]
    for head in heads:
        nn.init.normal_(head.weight, std=1.0)
    return policy.eval()


def make_contexts(seed: int, sequences: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "front": torch.randn(sequences, 1, SIZE, generator=generator),
        "lang2vec": torch.randn(sequences, 1, CONTEXT, generator=generator),
    }


TEXT = torch.tensor([[1, 4, 5, 3, 9, 10, 11], [1, 4, 6, 3, 12, EOS, EOS]])
LENGTHS = torch.tensor([7, 5])


@pytest.mark.parametrize("policy", [None, OpenGates(MODULES)], ids=["none", "open"])
@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_open_gates_are_espnets_decoder(policy, fused):
    model = make_model(0)
    for child in model.decoder.modules():
        if hasattr(child, "use_sdpa"):
            child.use_sdpa = fused
    memory, lengths = make_memory(0, [13, 9])
    expected, _ = model.decoder(memory, lengths, TEXT, LENGTHS)
    found = decode_tokens(model.backbone, memory, lengths, TEXT, LENGTHS, policy)
    for row, count in enumerate(LENGTHS):
        assert (found.logits[row, :count] - expected[row, :count]).abs().max() <= 1e-5
    assert len(found.gates) == (0 if policy is None else LAYERS)


@torch.no_grad()
def test_closed_token_is_nobodys_key():
    """Whatever stands there, the others do not see it; while it is open, they do."""
    backbone = make_model(1).backbone
    memory, lengths = make_memory(1, [11])
    other = TEXT[:1].clone()
    other[0, 4] = 20
    for closed in (True, False):
        own = torch.ones(1, 7)
        own[0, 4] = 1 - float(closed)
        logits = [
            decode_tokens(backbone, memory, lengths, text, LENGTHS[:1], Planted(self_attention=own)).logits
            for text in (TEXT[:1], other)
        ]
        difference = (logits[0] - logits[1]).abs().amax(-1)[0]
        assert difference[:4].max() < 1e-6
        assert difference[4] > 1e-3  # its own input still differs
        assert (difference[5:].max() < 1e-6) == closed


@torch.no_grad()
def test_closed_token_is_no_query():
    model = make_model(1)
    decoder = model.decoder
    memory, lengths = make_memory(1, [11])
    own = torch.zeros(1, 7)
    everything = Planted(self_attention=own, source_attention=own, ffn=own)
    found = decode_tokens(model.backbone, memory, lengths, TEXT[:1], LENGTHS[:1], everything).logits
    torch.testing.assert_close(found, decoder.output_layer(decoder.after_norm(decoder.embed(TEXT[:1]))))


@pytest.mark.parametrize("kind", ["local", "global"])
def test_gradient_reaches_every_predictor(kind):
    model = make_model(2)
    model.decoder.train()
    policy = make_policy(kind).train()
    memory, lengths = make_memory(2, [9, 9])
    torch.manual_seed(0)
    found = decode_tokens(model.backbone, memory, lengths, TEXT, LENGTHS, policy, make_contexts(2, 2))
    assert found.logits.isfinite().all()
    found.logits.square().mean().backward()
    grads = {name: p.grad for name, p in policy.named_parameters()}
    # the last layer's heads see no later loss term than their own module's, all of which count here
    assert all(g is not None and g.isfinite().all() for g in grads.values())
    assert sum(float(g.abs().sum()) > 0 for g in grads.values()) > len(grads) / 2


@pytest.mark.parametrize("kind", ["local", "cosine", "global"])
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_gates_of_a_hypothesis_token_by_token(kind, seed):
    """Beam search, step by step with caches: every token of every hypothesis has the gates, and every hypothesis the
    score, that one pass over the whole of it gives."""
    model, policy = make_model(seed, eos_bias=0.0), make_policy(kind, seed)
    memory, lengths = make_memory(seed, [14, 9, 11])
    contexts = make_contexts(seed, 3)
    primers = [PRIMER, [1, 5, 4, 3], [1, 6, 5, 3]]
    search = BeamSearch(model.backbone, DecodeOptions(beam=3, maxlenratio=-9, nbest=3))
    seen = []
    for u, hypotheses in enumerate(search(memory, lengths, primers, StepGates(policy, contexts))):
        assert hypotheses
        for hypothesis in hypotheses:
            tokens = hypothesis.tokens
            passes = hypothesis.open_PLM.shape[0]
            given = torch.tensor([tokens[: len(PRIMER) - 1 + passes]])
            whole = decode_tokens(
                model.backbone,
                memory[u : u + 1, : lengths[u]],
                lengths[u : u + 1],
                given,
                torch.tensor([given.shape[1]]),
                policy,
                {name: value[u : u + 1] for name, value in contexts.items()},
            )
            expected = torch.stack(
                [
                    torch.stack([layer[name].mask.expand(1, given.shape[1])[0] for name in MODULES], -1)
                    for layer in whole.gates
                ],
                1,
            )
            assert torch.equal(hypothesis.open_PLM, expected[len(PRIMER) - 1 :])
            seen.append(hypothesis.open_PLM.flatten(0, 1))
            scored = whole.logits[0].log_softmax(-1)[len(PRIMER) - 1 :]
            total = sum(float(scored[p, tokens[len(PRIMER) + p]]) for p in range(passes))
            assert hypothesis.score == pytest.approx(total, abs=1e-3)
    share = torch.cat(seen).float().mean(0)
    assert 0.05 < float(share.mean()) < 0.95  # the gates above were neither all open nor all closed


@pytest.mark.parametrize("kind", ["local", "global"])
@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_one_decision_for_all_hypotheses(kind, fixed):
    """That of the best one; and with the gates that it had, each hypothesis has the score that one pass over the whole
    of it gives."""
    model, policy = make_model(0, eos_bias=0.0), make_policy(kind, 0)
    memory, lengths = make_memory(0, [14, 9, 11])
    contexts, primers = make_contexts(0, 3), [PRIMER, [1, 5, 4, 3], [1, 6, 5, 3]]
    together, alone = StepGates(policy, contexts, "utterance"), StepGates(policy, contexts)
    differed = []

    def watched(layer, x_ND, state):
        found, own = together(layer, x_ND, state), alone(layer, x_ND, state)
        if not fixed and state.rows is not None:
            first_N = state.rows.first_U[state.rows.utterance_N]
            assert all(torch.equal(found[name], own[name][first_N]) for name in MODULES)
            differed.extend(bool((found[name] != own[name]).any()) for name in MODULES)
        return found

    options = DecodeOptions(beam=3, maxlenratio=-9, nbest=3)
    search = BeamSearch(model.backbone, options, CachedDecoder(model.backbone, fixed=fixed))
    for u, hypotheses in enumerate(search(memory, lengths, primers, watched)):
        for hypothesis in hypotheses:
            passes, tokens = len(hypothesis.open_PLM), hypothesis.tokens
            given = torch.tensor([tokens[: len(PRIMER) - 1 + passes]])
            one = (memory[u : u + 1, : lengths[u]], lengths[u : u + 1], given, torch.tensor([given.shape[1]]))
            own = {name: value[u : u + 1] for name, value in contexts.items()}
            before = decode_tokens(model.backbone, *one, policy, own).gates
            planted = [
                {
                    name: torch.cat(
                        [
                            layer[name].mask.expand(1, given.shape[1])[:, : len(PRIMER) - 1].float(),
                            hypothesis.open_PLM[:, index, place].float()[None],
                        ],
                        1,
                    )
                    for place, name in enumerate(MODULES)
                }
                for index, layer in enumerate(before)
            ]
            logits = decode_tokens(model.backbone, *one, PlantedLayers(planted)).logits
            scored = logits[0].log_softmax(-1)[len(PRIMER) - 1 :]
            total = sum(float(scored[p, tokens[len(PRIMER) + p]]) for p in range(passes))
            assert hypothesis.score == pytest.approx(total, abs=1e-3)
    assert fixed or kind == "global" or any(differed)


@torch.no_grad()
def test_pruned_tokens_are_never_cached():
    class Closed(Planted):
        def gate(self, layer, x, state):
            return {"self_attention": Gate(x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2]))}

    memory, lengths = make_memory(0, [8])
    state, _ = CachedDecoder(make_model(0).backbone).start(memory, lengths, [PRIMER], StepGates(Closed(), {}))
    for token in range(10, 15):
        state.step(torch.tensor([token]), torch.tensor([0]), Rows(torch.tensor([0]), 1))
    assert state._tree.used == [0, 0]


@torch.no_grad()
def test_utterances_keep_their_numbers_where_some_are_decoded_again():
    """ESPnet's retry with a lower minimum length runs over a part of the utterances."""
    seen = []

    def gates(layer, x, state):
        seen.append(state.utterance_N.unique().tolist())
        return {}

    memory, lengths = make_memory(0, [8, 8])
    CachedDecoder(make_model(0).backbone).start(memory, lengths, [PRIMER, PRIMER], gates, [2, 5])
    assert seen == [[2, 5]] * LAYERS


def test_loss_with_open_gates_is_espnets(espnet, batch):  # noqa: F811
    model = GatedS2T(make_backbone(net=espnet), None, OpenGates(MODULES)).eval()
    names = {"tasks": ["de", "de-fr", "fr"]}
    for previous in ([[2], [2], [2]], [[4, 5], [2, -1], [6, -1]]):
        batch["text_prev"] = torch.tensor(previous)
        batch["text_prev_lengths"] = (batch["text_prev"] >= 0).sum(1)
        encoded = model.encode(batch["speech"], batch["speech_lengths"])
        losses = model.losses(encoded, batch | names)
        expected, _, _ = espnet(**{k: v.clone() for k, v in batch.items() if k != "utterance"})
        torch.testing.assert_close(losses.total, expected.squeeze())
        plain = GatedS2T(make_backbone(net=espnet)).eval().losses(encoded, batch)
        assert losses.accuracy == pytest.approx(plain.accuracy)
        previous_tokens = torch.tensor([0 if 2 in row else sum(t >= 0 for t in row) + 1 for row in previous])
        assert losses.tokens.sum(1).tolist() == (batch["text_lengths"] + previous_tokens + 1).tolist()


def test_checkpoint_has_both_policies(espnet):  # noqa: F811
    model = GatedS2T(
        make_backbone(net=espnet),
        LocalGates(3, SIZE, ["ffn1"], {"front": SIZE}),
        GlobalGates(2, SIZE, MODULES, {"front": SIZE, "task": 2 * SIZE}),
    )
    names = {key.split(".")[0] for key in model.state_dict()}
    assert names == {"espnet", "policy", "decoder_policy"}
    assert sum(p.numel() for p in model.gate_parameters()) == sum(
        value.numel() for key, value in model.state_dict().items() if not key.startswith("espnet.")
    )


def test_task_context_is_the_prompts_embeddings(espnet):  # noqa: F811
    model = GatedS2T(
        make_backbone(net=espnet),
        None,
        GlobalGates(2, SIZE, MODULES, {"front": SIZE, "task": 2 * SIZE}, bias=0.0),
    ).eval()
    speech = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    encoded = model.packed().encode(speech, torch.full((2,), 16000))
    owner = torch.tensor([0, 1, 0])
    prompts = torch.tensor([[3, 4], [3, 5], [3, 5]])
    contexts = model.decoder_contexts(encoded, owner, ["de", "de-fr", "de-fr"], prompts)
    assert contexts["task"].shape == (3, 1, 2 * SIZE)
    torch.testing.assert_close(contexts["task"][1], contexts["task"][2])
    assert not torch.equal(contexts["task"][0], contexts["task"][1])
    torch.testing.assert_close(contexts["front"][0], encoded.front[0].mean(0, keepdim=True))
    torch.testing.assert_close(contexts["front"][0], contexts["front"][2])


OWN = Window("utterance", 0.0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_trimmed_utterances_context_does_not_depend_on_its_batch(espnet, packed):  # noqa: F811
    model = GatedS2T(
        make_backbone(net=espnet), None, GlobalGates(2, SIZE, MODULES, {"front": SIZE}), window=OWN
    ).eval()
    speech = torch.randn(2, 32000, generator=torch.Generator().manual_seed(0)) * 0.1
    ends = torch.tensor([32000, 12000])
    fronts = [
        model.decoder_contexts(
            (model.packed() if packed else model).encode(speech[rows], ends[rows]),
            torch.tensor([0]),
            ["de"],
            torch.tensor([[3, 4]]),
        )["front"]
        for rows in ([1, 0], [1])
    ]
    torch.testing.assert_close(*fronts)


def test_trimmed_utterances_do_not_depend_on_their_batch(espnet):  # noqa: F811
    model = GatedS2T(make_backbone(net=espnet), window=OWN).eval()
    speech = torch.randn(3, 32000, generator=torch.Generator().manual_seed(0)) * 0.1
    ends = torch.tensor([32000, 20000, 100])
    encoded = model.encode(speech, ends)
    alone = model.encode(speech[1:2, :20000], ends[1:2])
    assert encoded.lengths.tolist()[1] == alone.x.shape[1] < encoded.x.shape[1]
    torch.testing.assert_close(encoded.x[1, : alone.x.shape[1]], alone.x[0])
    assert encoded.lengths[2] >= 1  # nearly empty, and still encoded


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    return DecoderGateRecord(
        list(MODULES), rng.random((5, 2, 3)) < 0.5, ["▁a", "b", "▁c", "▁a", "d"], ["u2", "u1"], ["de", "de"],
        np.array([3, 2]),
    )  # fmt: skip


def test_joined_records_keep_every_hypothesis(record, tmp_path):
    joined = join_records(
        [record, DecoderGateRecord(record.modules, record.open[:1], ["x"], ["u0"], ["de-fr"], np.array([1]))]
    )
    assert (joined.utt_ids, joined.tasks) == (["u1", "u2", "u0"], ["de", "de", "de-fr"])
    assert joined.pieces == ["▁a", "d", "▁a", "b", "▁c", "x"]
    np.testing.assert_array_equal(joined.open[:2], record.open[3:])
    write_decoder_gates(tmp_path / "gates.npz", joined)
    np.testing.assert_array_equal(read_decoder_gates(tmp_path / "gates.npz").open, joined.open)


def test_kept_ratios_of_decoder_modules(record):
    record.open[:] = True
    record.open[0, :, 1] = False
    found = measured_ratios(None, record)
    assert found["kept"] == {
        "decoder.self_attention": 1.0,
        "decoder.source_attention": 0.8,
        "decoder.ffn": 1.0,
    }
    assert found["kept_layers"]["decoder.source_attention"] == [0.8, 0.8]
    assert found["sparsity"] == {"decoder_tokens": pytest.approx(1 / 15, abs=1e-4)}


def test_decoder_cost_of_what_ran(record):
    decoder = make_model(0, size=4, attention_heads=2, linear_units=8).decoder
    cost = DecoderCost(make_backbone(make_encoder(4), decoder), frames=10)
    terms = cost.terms(5)
    assert cost.measured(np.ones((5, 2, 3), dtype=bool), list(MODULES)) == pytest.approx(sum(terms.values()))
    # written out: 5 tokens, 15 query-key pairs, 2 layers, norms of 5 x size
    assert terms["self_attention"] == 2 * (5 * (4 * 16 + 20) + 2 * 15 * 4)
    assert terms["source_attention"] == 2 * 5 * (2 * 16 + 2 * 10 * 4 + 20)
    assert terms["ffn"] == 2 * 5 * (2 * 4 * 8 + 20)
    assert terms["output"] == 5 * (4 * VOCABULARY + 20)
    assert terms["source keys and values"] == 2 * 10 * 2 * 16
    none = cost.measured(np.zeros((5, 2, 3), dtype=bool), list(MODULES))
    assert none == terms["output"] + terms["source keys and values"]
