"""CTC prefix scores of many hypotheses at once.

For a hypothesis g, r_n[t] and r_b[t] are the log-probabilities of all alignments of the frames up to t that
spell g and end in its last label (n) or in blank (b). The probability that the transcript *begins* with g c is

    psi(g c) = logsum over t of  phi[t-1] + log p_t(c),   phi = log(r_n + r_b), or r_b if c repeats g's last label

which needs g's own r only. So candidates cost one sum over time each, and the recursion over time

    r_n'[t] = log(exp(r_n'[t-1]) + exp(phi[t-1])) + log p_t(c)

is run for the few that survive the beam. It is linear in the probabilities, so it is a cumulative log-sum
after dividing by the running product P[t] of the p_t: r_n'[t] = log P[t] + logcumsum(phi[t-1] - log P[t-1]).
log P reaches thousands where log-probabilities near 0 matter, hence fp64 there.

The vocabulary is large and a step asks for few labels, so label log-probabilities are not kept (0.15 GB an
utterance of 30 s for 50,000 labels) but computed from the encoder's output for the labels asked for.

Shape legend: N rows, U utterances, T frames, D model size, V vocabulary, K candidates of a row, M survivors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from localgp.decoder.rows import Rows
from localgp.kernels.linear import Linear

LOG_ZERO = -1e10  # ESPnet's log of 0; finite, so that differences of impossible prefixes are no NaN
VOCABULARY_BLOCK = 4096  # labels per block of the normaliser: 749 frames x 4096 x 4 B = 12 MB
CANDIDATE_BUDGET = 1 << 24  # elements (row, candidate, frame) scored at once


@dataclass(frozen=True)
class _Scored:
    """What `CTCPrefixScorer.advance` needs of the call of `CTCPrefixScorer.score` before.

    Attributes:
        labels_NK, psi_NK: Candidates, and the log-probability of the prefixes that they make.
        logp_NKT: Theirs by frame; None where there are so many that they were scored block by block.
        sum_NT: log(r_n + r_b) of the rows.
        last_N, length_N: Last token and length of the rows.
    """

    labels_NK: Tensor
    psi_NK: Tensor
    logp_NKT: Tensor | None
    sum_NT: Tensor
    last_N: Tensor
    length_N: Tensor


class CTCPrefixScorer:
    """The state of every running hypothesis of a batch, with ESPnet's conventions.

    As in ESPnet, a hypothesis of n tokens with its primer cannot end before frame n - 1: the primer's tokens
    count as if each took a frame.

    Args:
        ctc: CTC's output layer.
        memory_BTD: Encoder output.
        lengths_B: Its lengths; frames beyond are not looked at.
        blank: Blank's label.
        eos: Ends a hypothesis: its score is that of all frames spelling the hypothesis so far.
    """

    def __init__(
        self, ctc: nn.Linear, memory_BTD: Tensor, lengths_B: Tensor, *, blank: int, eos: int
    ) -> None:
        # Products are computed in the encoder output's type, sums over them in fp32 or fp64.
        self._weight_VD = ctc.weight.detach().to(memory_BTD.dtype)
        bias = ctc.bias
        self._bias_V = None if bias is None else bias.detach().to(memory_BTD.dtype)
        self._blank, self._eos = blank, eos
        self._memory_UTD = memory_BTD
        self._lengths_U = lengths_B
        utterances, frames = memory_BTD.shape[:2]
        device = memory_BTD.device
        self._beyond_UT = torch.arange(frames, device=device) >= lengths_B.unsqueeze(1)
        self._normalizer_UT = self._normalizer()
        every = torch.arange(utterances, device=device)
        blank_U1 = torch.full((utterances, 1), blank, device=device)
        blank_UT = self._label_logp(blank_U1, Rows(every, utterances, [1] * utterances)).squeeze(1)
        self._blank_cumulative_UT = blank_UT.double().cumsum(1)
        self._rn_NT = torch.full_like(self._blank_cumulative_UT, LOG_ZERO)
        self._rb_NT = self._blank_cumulative_UT.clone()
        self._psi_N = torch.zeros(utterances, dtype=torch.double, device=device)
        self._scored: _Scored | None = None

    @property
    def vocabulary(self) -> int:
        return self._weight_VD.shape[0]

    def score(self, labels_NK: Tensor, last_N: Tensor, length_N: Tensor, rows: Rows) -> Tensor:
        """Log-probability that candidates add to the hypotheses' prefixes.

        Args:
            labels_NK: Candidates of each row; eos and blank may be among them.
            last_N: Last token of each row.
            length_N: Tokens of each row, the primer included.
            rows: The utterance of each row.

        Returns:
            (N, K) fp32, ESPnet's ``log_psi - s_prev``.
        """
        frames = self._memory_UTD.shape[1]
        sum_NT = torch.logaddexp(self._rn_NT, self._rb_NT)
        per_block = max(1, CANDIDATE_BUDGET // max(1, rows.size * frames))
        blocks = labels_NK.split(per_block, dim=1)
        found = [self._prefix(block, sum_NT, last_N, length_N, rows) for block in blocks]
        psi_NK = torch.cat([psi for psi, _ in found], dim=1)
        ends_N1 = self._lengths_U.index_select(0, rows.utterance_N).unsqueeze(1) - 1
        psi_NK = torch.where(labels_NK == self._eos, sum_NT.gather(1, ends_N1), psi_NK)
        psi_NK = torch.where(labels_NK == self._blank, LOG_ZERO, psi_NK)
        logp_NKT = found[0][1] if len(found) == 1 else None
        self._scored = _Scored(labels_NK, psi_NK, logp_NKT, sum_NT, last_N, length_N)
        return (psi_NK - self._psi_N.unsqueeze(1)).float()

    def _prefix(
        self, labels_NK: Tensor, sum_NT: Tensor, last_N: Tensor, length_N: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Log-probability (N, K) of the prefixes that labels make, and of the labels by frame (N, K, T)."""
        frames = self._memory_UTD.shape[1]
        logp_NKT = self._label_logp(labels_NK, rows)
        start_N1 = (length_N - 1).clamp(min=1).unsqueeze(1)
        time_T = torch.arange(frames, device=labels_NK.device)
        outside_NT = (time_T < start_N1) | self._beyond_UT.index_select(0, rows.utterance_N)
        before_NT, after_blank_NT = _shift(sum_NT), _shift(self._rb_NT)
        # Sums in fp32, relative to each row's largest term, where they are exact enough (1e-6).
        top_N1 = before_NT.masked_fill(outside_NT, LOG_ZERO).amax(1, keepdim=True)
        phi_NT = (before_NT - top_N1).float().masked_fill(outside_NT, float("-inf"))
        phi_b_NT = (after_blank_NT - top_N1).float().masked_fill(outside_NT, float("-inf"))
        repeats_NK1 = (labels_NK == last_N.unsqueeze(1)).unsqueeze(2)
        phi_NKT = torch.where(repeats_NK1, phi_b_NT.unsqueeze(1), phi_NT.unsqueeze(1))
        psi_NK = torch.logsumexp(phi_NKT + logp_NKT.float(), dim=2).double() + top_N1
        first_N1 = (length_N == 1).unsqueeze(1)  # nothing but <sos>: the label may also start at frame 0
        psi_NK = torch.where(first_N1, torch.logaddexp(psi_NK, logp_NKT[:, :, 0].double()), psi_NK)
        return psi_NK.clamp(min=LOG_ZERO), logp_NKT

    def advance(self, parents_M: Tensor, choice_M: Tensor, new_rows: Rows) -> None:
        """Makes the hypotheses that survive the beam the rows.

        Args:
            parents_M: The row that each continues.
            choice_M: Which of that row's candidates in `score` it took.
            new_rows: The rows from now on, by the same numbers of utterances.
        """
        assert self._scored is not None, "score comes before advance"
        scored = self._scored
        label_M = scored.labels_NK[parents_M, choice_M]
        if scored.logp_NKT is None:
            logp_MT = self._label_logp(label_M.unsqueeze(1), new_rows).squeeze(1).double()
        else:
            logp_MT = scored.logp_NKT[parents_M, choice_M].double()
        repeats_M1 = (label_M == scored.last_N.index_select(0, parents_M)).unsqueeze(1)
        phi_MT = torch.where(
            repeats_M1, self._rb_NT.index_select(0, parents_M), scored.sum_NT.index_select(0, parents_M)
        )
        length_M1 = scored.length_N.index_select(0, parents_M).unsqueeze(1)
        time_T = torch.arange(phi_MT.shape[1], device=phi_MT.device)
        before_MT = time_T < (length_M1 - 1).clamp(min=1)
        cumulative_MT = logp_MT.cumsum(1)
        entering_MT = (_shift(phi_MT) - _shift(cumulative_MT, 0.0)).masked_fill(before_MT, LOG_ZERO)
        entering_MT[:, 0] = torch.where(length_M1.squeeze(1) == 1, 0.0, LOG_ZERO)
        rn_MT = cumulative_MT + entering_MT.logcumsumexp(1)
        blanks_MT = self._blank_cumulative_UT.index_select(0, new_rows.utterance_N)
        leaving_MT = (_shift(rn_MT) - _shift(blanks_MT, 0.0)).masked_fill(before_MT, LOG_ZERO)
        rb_MT = blanks_MT + leaving_MT.logcumsumexp(1)
        self._rn_NT, self._rb_NT = rn_MT.clamp_(min=LOG_ZERO), rb_MT.clamp_(min=LOG_ZERO)
        self._psi_N = scored.psi_NK[parents_M, choice_M]

    def keep_utterances(self, order: list[int]) -> None:
        """Utterance u is what was ``order[u]``; those not named leave. Rows are given anew by `advance`."""
        index = torch.tensor(order, device=self._lengths_U.device)
        self._memory_UTD = self._memory_UTD.index_select(0, index)
        self._lengths_U = self._lengths_U.index_select(0, index)
        self._beyond_UT = self._beyond_UT.index_select(0, index)
        self._normalizer_UT = self._normalizer_UT.index_select(0, index)
        self._blank_cumulative_UT = self._blank_cumulative_UT.index_select(0, index)

    def _normalizer(self) -> Tensor:
        """Log of the softmax's denominator (U, T), from one block of labels at a time."""
        parts = []
        for start in range(0, self.vocabulary, VOCABULARY_BLOCK):
            block = slice(start, start + VOCABULARY_BLOCK)
            bias = None if self._bias_V is None else self._bias_V[block]
            linear = Linear(self._weight_VD[block], bias, self._weight_VD.dtype)
            logits = [linear(memory).float().logsumexp(-1) for memory in self._memory_UTD]
            parts.append(torch.stack(logits))
        return torch.stack(parts).logsumexp(0)

    def _label_logp(self, labels_NK: Tensor, rows: Rows) -> Tensor:
        """log p_t(label): (N, K, T)."""
        weight_NKD = self._weight_VD[labels_NK]
        weight_UWKD = rows.to_grid(weight_NKD)
        utterances, width, labels, size = weight_UWKD.shape
        logits = weight_UWKD.reshape(utterances, width * labels, size) @ self._memory_UTD.transpose(1, 2)
        logits_NKT = rows.from_grid(logits.view(utterances, width, labels, -1)).float()
        if self._bias_V is not None:
            logits_NKT = logits_NKT + self._bias_V[labels_NK].float().unsqueeze(2)
        return logits_NKT - self._normalizer_UT.index_select(0, rows.utterance_N).unsqueeze(1)


def _shift(x_NT: Tensor, first: float = LOG_ZERO) -> Tensor:
    """x[t-1] at t; ``first`` at 0."""
    return pad(x_NT[:, :-1], (1, 0), value=first)
