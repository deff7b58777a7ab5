"""The two phases and the methods, on tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from localgp.errors import ConfigError
from localgp.gates.binarised import binarised_attention_scores, most_attended
from localgp.speechprune.methods import METHODS, FirstLayer, Pruner
from localgp.speechprune.similarity import frame_budgets, most_similar, token_similarity


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def layer(generator):
    """Four query heads that share two key heads of width 8."""
    return FirstLayer(torch.randn(32, 24, generator=generator), torch.randn(16, 24, generator=generator), 4)


def test_token_similarity_is_the_mean_over_the_query(generator):
    audio_ND, query_LD = torch.randn(40, 24, generator=generator), torch.randn(7, 24, generator=generator)
    matrix_NL = cosine_similarity(audio_ND[:, None], query_LD[None], dim=-1)
    torch.testing.assert_close(token_similarity(audio_ND, query_LD), matrix_NL.mean(1))


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 3000.0])
def test_frame_budgets_fill_exactly_and_never_overflow(generator, spread):
    scores_F = spread * torch.randn(90, generator=generator)
    lengths_F = torch.full((90,), 25)
    lengths_F[-1] = 3
    for keep in (1, 89, 750, 2227, 2228):
        budgets_F = frame_budgets(scores_F, lengths_F, keep)
        assert budgets_F.sum() == keep
        assert (budgets_F >= 0).all()
        assert (budgets_F <= lengths_F).all()
        literal_F = torch.minimum((keep * scores_F.double().softmax(0)).floor().long(), lengths_F)
        assert (budgets_F >= literal_F).all()  # the paper's share is a lower bound
        assert frame_budgets(scores_F, lengths_F, keep, "drop").tolist() == literal_F.tolist()


def test_phase_one_keeps_the_best_of_each_frame_in_order(generator):
    audio_ND, query_LD = torch.randn(103, 24, generator=generator), torch.randn(5, 24, generator=generator)
    kept = most_similar(audio_ND, query_LD, keep=40, frame=10)
    assert len(kept) == 40
    assert (kept.diff() > 0).all()
    similarity_N = token_similarity(audio_ND, query_LD)
    for start in range(0, 103, 10):
        inside = set(range(start, min(start + 10, 103)))
        chosen = inside & set(kept.tolist())
        left_out = inside - chosen
        if chosen and left_out:
            assert min(similarity_N[i] for i in chosen) >= max(similarity_N[i] for i in left_out)


def reference_scores(x_TD, layer):
    """The paper's formula, head by head, with a plain softmax in double precision."""
    width = layer.weight_q.shape[0] // layer.n_heads
    share = layer.weight_q.shape[0] // layer.weight_k.shape[0]
    query_TD = (x_TD.sign() @ layer.weight_q.sign().T).double()
    key_TD = (x_TD.sign() @ layer.weight_k.sign().T).double()
    received = []
    for head in range(layer.n_heads):
        q = query_TD[:, head * width : (head + 1) * width]
        k = key_TD[:, head // share * width : (head // share + 1) * width]
        received.append((q @ k.T / math.sqrt(width)).softmax(-1).mean(0))
    return torch.stack(received).mean(0)


def test_binarised_attention_is_the_formula_with_padding_and_shared_keys(generator, layer):
    x_BTD = torch.randn(3, 20, 24, generator=generator)
    lengths = torch.tensor([20, 13, 1])
    scores_BT = binarised_attention_scores(x_BTD, *layer, lengths)
    for x_TD, score_T, length in zip(x_BTD, scores_BT, lengths.tolist(), strict=True):
        torch.testing.assert_close(score_T[:length].double(), reference_scores(x_TD[:length], layer))
        assert (score_T[length:] == 0).all()
    torch.testing.assert_close(scores_BT.sum(1), torch.ones(3))  # attention received adds up to that given


def test_log_scores_rank_where_the_softmax_underflows(generator):
    """Embeddings with a common offset have favourites; the others' scores are exactly 0 in a plain fp32 softmax."""
    x_TD = torch.randn(200, 1024, generator=generator) + 2 * torch.randn(1024, generator=generator)
    weights = [torch.randn(256, 1024, generator=generator) for _ in range(2)]
    plain_T = binarised_attention_scores(x_TD[None], *weights, n_heads=4)[0]
    log_T = binarised_attention_scores(x_TD[None], *weights, n_heads=4, log=True)[0]
    zero_T = plain_T == 0
    assert zero_T.float().mean() > 0.2
    assert len(log_T[zero_T].unique()) > 0.9 * zero_T.sum()
    assert log_T[zero_T].max() < log_T[~zero_T].min()
    torch.testing.assert_close(log_T[~zero_T].exp(), plain_T[~zero_T])


def test_magnitude_scale_comes_closer_to_the_true_attention(generator):
    x_TD, (w_q, w_k) = (
        torch.randn(60, 64, generator=generator),
        torch.randn(2, 16, 64, generator=generator) / 8,
    )
    true_T = ((x_TD @ w_q.T) @ (x_TD @ w_k.T).T / 4).softmax(-1).mean(0)
    errors = {
        scale: (binarised_attention_scores(x_TD[None], w_q, w_k, 1, scale=scale)[0] - true_T).abs().sum()
        for scale in ("literal", "magnitude")
    }
    assert errors["magnitude"] < 0.7 * errors["literal"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6, 0.8])
def test_every_method_keeps_the_same_number_in_order(generator, layer, method, rate):
    audio_ND, query_LD = torch.randn(230, 24, generator=generator), torch.randn(4, 24, generator=generator)
    kept = Pruner(method, rate, budget=75).select(audio_ND, query_LD, layer, "a")
    assert len(kept) == round((1 - rate) * 75)
    assert (kept.diff() > 0).all()
    assert kept[0] >= 0
    assert kept[-1] < 230


def test_the_papers_token_counts():
    assert [Pruner(rate=rate).keep(2250) for rate in (0, 0.2, 0.4, 0.6, 0.8)] == [750, 600, 450, 300, 150]
    assert Pruner(rate=0.2).keep(100) == 80  # short audio: the rate is of what there is
    assert Pruner(rate=0.99).keep(2) == 1


def test_both_is_phase_two_on_what_phase_one_kept(generator, layer):
    audio_ND, query_LD = torch.randn(230, 24, generator=generator), torch.randn(4, 24, generator=generator)
    first = most_similar(audio_ND, query_LD, 75)
    expected = first[most_attended(audio_ND[first], *layer, keep=45)]
    assert Pruner("both", 0.4, budget=75).select(audio_ND, query_LD, layer).tolist() == expected.tolist()


def test_rate_zero_selects_nothing_away(generator, layer):
    audio_ND, query_LD = torch.randn(230, 24, generator=generator), torch.randn(4, 24, generator=generator)
    for method in METHODS:
        kept = Pruner(method, 0.0, budget=75).select(audio_ND, query_LD, layer)
        assert kept.tolist() == list(range(230))


def test_random_baselines(layer):
    audio_ND, query_LD = torch.zeros(300, 24), torch.ones(1, 24)
    crop = Pruner("rac", 0.5, budget=None).select(audio_ND, query_LD, layer, "a")
    scattered = Pruner("rap", 0.5, budget=None).select(audio_ND, query_LD, layer, "a")
    assert (crop.diff() == 1).all()
    assert (scattered.diff() > 1).any()
    again = Pruner("rap", 0.5, budget=None).select(audio_ND, query_LD, layer, "a")
    assert scattered.tolist() == again.tolist()
    other = Pruner("rap", 0.5, budget=None).select(audio_ND, query_LD, layer, "b")
    assert scattered.tolist() != other.tolist()
    counts = torch.zeros(300)
    for name in range(400):
        counts[Pruner("rap", 0.5, budget=None).select(audio_ND, query_LD, layer, str(name))] += 1
    assert (counts / 400).mean() == 0.5
    assert (counts / 400 - 0.5).abs().max() < 0.15  # six standard deviations


def test_planted_tokens_survive_phase_one_and_not_chance(generator, layer):
    """A key sentence of 4 s in 30 s whose tokens mean what the question says, in noise of their own size."""
    recall = {"first": [], "rap": []}
    for trial in range(20):
        query_LD = torch.randn(8, 24, generator=generator)
        audio_ND = torch.randn(750, 24, generator=generator)
        start = int(torch.randint(650, (1,), generator=generator))
        audio_ND[start : start + 100] += query_LD[
            torch.randint(8, (100,), generator=generator)
        ] + query_LD.mean(0)
        for method, found in recall.items():
            kept = Pruner(method, 0.8).select(audio_ND, query_LD, layer, str(trial))
            found.append(((kept >= start) & (kept < start + 100)).sum().item() / 100)
    assert sum(recall["first"]) / 20 > 0.9
    assert sum(recall["rap"]) / 20 == pytest.approx(0.2, abs=0.04)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        Pruner(method="third", rate=1.0, budget=0, remainder="lose", scale="loud")
    for part in (
        "'third'",
        "both, first, second, rap, rac",
        "rate is 1.0",
        "budget is 0",
        "'lose'",
        "'loud'",
    ):
        assert part in str(caught.value)
