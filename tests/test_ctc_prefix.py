"""CTC prefix scores against all alignments written out, and against a recursion in fp64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from localgp.decoder.rows import Rows
from localgp.search import ctc_prefix
from localgp.search.ctc_prefix import LOG_ZERO, CTCPrefixScorer
from tests.decoding_helpers import make_memory

BLANK, SOS, EOS = 0, 1, 2


class Head(torch.nn.Module):
    """What the scorer uses of ``espnet2.asr.ctc.CTC``."""

    def __init__(self, vocabulary: int, size: int, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.ctc_lo = torch.nn.Linear(size, vocabulary)
        with torch.no_grad():
            self.ctc_lo.weight.mul_(scale)

    def logp(self, memory: Tensor) -> np.ndarray:
        return self.ctc_lo(memory).double().log_softmax(-1).detach().numpy()


def spell(alignment: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(alignment) if label != BLANK)


def by_enumeration(logp_TV: np.ndarray, prefix: tuple[int, ...], *, complete: bool) -> float:
    """Log-probability that the labels begin with ``prefix``, or are it."""
    frames, vocabulary = logp_TV.shape
    total = 0.0
    for alignment in itertools.product(range(vocabulary), repeat=frames):
        labels = spell(alignment)
        if labels == prefix if complete else labels[: len(prefix)] == prefix:
            total += math.exp(sum(logp_TV[t, label] for t, label in enumerate(alignment)))
    return math.log(total) if total else LOG_ZERO


class Walk:
    """Follows given label sequences, one row each, and sums what the scorer says."""

    def __init__(self, scorer: CTCPrefixScorer, owners: list[int], utterances: int, primer: int = 1) -> None:
        self.scorer, self.primer = scorer, primer
        self.rows = Rows(torch.arange(utterances), utterances)
        self.next_rows = Rows(torch.tensor(owners), utterances)
        self.parents = torch.tensor(owners)
        self.last = torch.full((utterances,), SOS)
        self.length = torch.full((utterances,), primer)

    @torch.no_grad()
    def scores(self, labels_NK: Tensor) -> Tensor:
        return self.scorer.score(labels_NK, self.last, self.length, self.rows)

    @torch.no_grad()
    def take(self, labels_N: Tensor) -> Tensor:
        """Extends row n by ``labels_N[n]``; the prefix scores of the new rows."""
        candidates = torch.zeros(self.rows.size, labels_N.shape[0], dtype=torch.long)
        candidates[self.parents, torch.arange(labels_N.shape[0])] = labels_N
        added = self.scores(candidates)[self.parents, torch.arange(labels_N.shape[0])]
        choice = torch.arange(labels_N.shape[0])
        self.scorer.advance(self.parents, choice, self.next_rows)
        self.rows, self.last = self.next_rows, labels_N
        self.length = self.length.index_select(0, self.parents) + 1
        self.parents = torch.arange(labels_N.shape[0])
        return added


@pytest.mark.parametrize("prefix", [(3,), (3, 4), (3, 3), (4, 3, 3), (3, 4, 3, 4)])
def test_against_all_alignments(prefix: tuple[int, ...]) -> None:
    head = Head(5, 8, scale=4)
    memory, lengths = make_memory(1, [5, 4], size=8)
    scorer = CTCPrefixScorer(head.ctc_lo, memory, lengths, blank=BLANK, eos=EOS)
    walk = Walk(scorer, [0, 1], 2)
    total = torch.zeros(2)
    for label in prefix:
        total += walk.take(torch.tensor([label, label]))
    next_labels = torch.tensor([[3, 4, EOS], [EOS, 4, 3]])
    found = walk.scores(next_labels) + total.unsqueeze(1)
    for u in range(2):
        logp = head.logp(memory[u, : lengths[u]])
        assert float(total[u]) == pytest.approx(by_enumeration(logp, prefix, complete=False), abs=1e-4)
        for k, label in enumerate(next_labels[u].tolist()):
            complete = label == EOS
            expected = by_enumeration(logp, prefix if complete else (*prefix, label), complete=complete)
            if expected == LOG_ZERO:
                assert float(found[u, k]) < LOG_ZERO / 2
            else:
                assert float(found[u, k]) == pytest.approx(expected, abs=1e-4)


def recursion(logp_TV: np.ndarray, labels: list[int], primer: int) -> list[float]:
    """psi after each label, by the frame-by-frame recursion in fp64; a primer token takes a frame."""
    frames = logp_TV.shape[0]
    r_n, r_b = np.full(frames, LOG_ZERO), logp_TV[:, BLANK].cumsum()
    last, psis = SOS, []
    for n, label in enumerate(labels):
        start = max(primer + n - 1, 1)
        phi = r_b if label == last else np.logaddexp(r_n, r_b)
        new_n, new_b = np.full(frames, LOG_ZERO), np.full(frames, LOG_ZERO)
        if primer + n == 1:
            new_n[0] = logp_TV[0, label]
        psi = new_n[start - 1]
        for t in range(start, frames):
            new_n[t] = np.logaddexp(new_n[t - 1], phi[t - 1]) + logp_TV[t, label]
            new_b[t] = np.logaddexp(new_n[t - 1], new_b[t - 1]) + logp_TV[t, BLANK]
            psi = np.logaddexp(psi, phi[t - 1] + logp_TV[t, label])
        psis.append(float(psi))
        r_n, r_b, last = new_n, new_b, label
    return psis


@pytest.mark.parametrize("primer", [1, 4, 30])
def test_exact_over_thirty_seconds(primer: int) -> None:
    """749 frames: log-probabilities of paths reach -10,000, where fp32 resolves 1e-3."""
    head = Head(40, 16, scale=8)
    memory, lengths = make_memory(2, [749, 500], size=16)
    walk = Walk(CTCPrefixScorer(head.ctc_lo, memory, lengths, blank=BLANK, eos=EOS), [0, 0, 1], 2, primer)
    generator = torch.Generator().manual_seed(0)
    labels_LN = torch.randint(3, 40, (25, 3), generator=generator)
    labels_LN[5:8] = labels_LN[5]  # repeats
    found = torch.stack([walk.take(labels) for labels in labels_LN]).double().cumsum(0)
    for n, owner in enumerate([0, 0, 1]):
        expected = recursion(head.logp(memory[owner, : lengths[owner]]), labels_LN[:, n].tolist(), primer)
        np.testing.assert_allclose(found[:, n].numpy(), expected, atol=2e-3, rtol=0)


def test_blocks_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(50, 16, scale=3)
    memory, lengths = make_memory(3, [20, 14], size=16)
    labels = torch.arange(50).expand(2, -1)
    results = []
    for vocabulary_block, budget in ((4096, 1 << 24), (7, 300)):
        monkeypatch.setattr(ctc_prefix, "VOCABULARY_BLOCK", vocabulary_block)
        monkeypatch.setattr(ctc_prefix, "CANDIDATE_BUDGET", budget)
        walk = Walk(CTCPrefixScorer(head.ctc_lo, memory, lengths, blank=BLANK, eos=EOS), [0, 1], 2)
        walk.take(torch.tensor([5, 6]))
        results.append(walk.scores(labels))
    torch.testing.assert_close(results[0], results[1])


def test_probabilities_of_all_continuations_sum_to_one() -> None:
    """psi(g) = P(g exactly) + sum of psi(g c): nothing is lost or counted twice."""
    head = Head(6, 8, scale=3)
    with torch.no_grad():
        head.ctc_lo.bias[5] = -100  # eos stands for "exactly", so as a label it must not occur
    memory, lengths = make_memory(4, [12], size=8)
    walk = Walk(CTCPrefixScorer(head.ctc_lo, memory, lengths, blank=BLANK, eos=5), [0], 1)
    walk.take(torch.tensor([3]))
    added = walk.scores(torch.arange(6).unsqueeze(0))
    assert float(added.logsumexp(1)) == pytest.approx(0.0, abs=1e-5)
    assert float(added[0, BLANK]) < LOG_ZERO / 2


@torch.no_grad()
def test_utterances_leave_and_move() -> None:
    head = Head(12, 8, scale=3)
    memory, lengths = make_memory(5, [20, 17, 14], size=8)
    before = memory.clone()
    all_three = Walk(CTCPrefixScorer(head.ctc_lo, memory, lengths, blank=BLANK, eos=EOS), [0, 1, 2], 3)
    alone = Walk(CTCPrefixScorer(head.ctc_lo, memory[2:, :14], lengths[2:], blank=BLANK, eos=EOS), [0], 1)
    all_three.take(torch.tensor([3, 4, 5]))
    alone.take(torch.tensor([5]))
    all_three.scores(torch.tensor([[6], [6], [6]]))
    all_three.scorer.keep_utterances([2])
    rows = Rows(torch.tensor([0]), 1)
    all_three.scorer.advance(torch.tensor([2]), torch.tensor([0]), rows)
    all_three.rows, all_three.last, all_three.length = rows, torch.tensor([6]), torch.tensor([3])
    alone.take(torch.tensor([6]))
    labels = torch.tensor([[7, 6, EOS]])
    torch.testing.assert_close(all_three.scores(labels), alone.scores(labels))
    assert torch.equal(memory, before), "the caller's encoder output must stay as it is"
