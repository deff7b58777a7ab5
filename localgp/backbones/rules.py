"""What may follow in an output: rules on time symbols, as ESPnet's ``ScoreFilter`` has them, for all rows at once.

With ``<notimestamps>`` in the primer, time symbols are forbidden. Without it, an utterance is a sequence of
``<start> text <end>``: it begins with a time, times do not go back, and only a complete pair may be followed by
eos.

Shape legend: N rows, V vocabulary, P tokens of a row so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from localgp.backbones.base import Forbid

NEVER = float("-inf")


@dataclass(frozen=True)
class TimestampRules:
    """Which time symbols may follow which tokens.

    Attributes:
        sos, eos, notimestamps: Token ids.
        first_time, last_time: Ids of the first and last time symbol, which are contiguous.
    """

    sos: int
    eos: int
    notimestamps: int
    first_time: int
    last_time: int

    def of(self, primers: list[list[int]]) -> Forbid:
        """For utterances that begin so: where times are forbidden in all of them, that is all there is to do."""
        return self.forbid_times if all(self.notimestamps in primer for primer in primers) else self.apply

    def forbid_times(self, scores_NV: Tensor, tokens_NP: Tensor, length_N: Tensor, written: int) -> None:
        """Forbids time symbols, in place."""
        scores_NV[:, self.first_time : self.last_time + 1] = NEVER

    def apply(self, scores_NV: Tensor, tokens_NP: Tensor, length_N: Tensor, written: int) -> None:
        """Forbids, in place, what may not follow each row's tokens.

        Args:
            scores_NV: Scores of the next token.
            tokens_NP: Tokens of each row, the primer included, then padding.
            length_N: Tokens of each row.
            written: Of them by the search; it makes no difference here.
        """
        place_P = torch.arange(tokens_NP.shape[1], device=tokens_NP.device)
        real_NP = place_P < length_N.unsqueeze(1)
        time_NP = (tokens_NP >= self.first_time) & (tokens_NP <= self.last_time) & real_NP
        newest_N = torch.where(time_NP, place_P, -1).amax(1)
        newest_time_N1 = tokens_NP.gather(1, newest_N.clamp(min=0).unsqueeze(1))
        last_N1 = tokens_NP.gather(1, (length_N - 1).unsqueeze(1))
        third_last_N = tokens_NP.gather(1, (length_N - 3).clamp(min=0).unsqueeze(1)).squeeze(1)

        untimed_N = ((tokens_NP == self.notimestamps) & real_NP).any(1)
        begins_N = ~untimed_N & (third_last_N == self.sos) & (length_N >= 3)
        inside_N = ~untimed_N & ~begins_N & (time_NP.sum(1) % 2 == 1)
        outside_N = ~untimed_N & ~begins_N & ~inside_N
        closed_N = outside_N & (newest_N == length_N - 1)

        label_V = torch.arange(scores_NV.shape[1], device=scores_NV.device)
        times_V = (label_V >= self.first_time) & (label_V <= self.last_time)
        eos_V = label_V == self.eos
        forbidden_NV = untimed_N.unsqueeze(1) & times_V
        forbidden_NV |= begins_N.unsqueeze(1) & ~times_V
        going_back_NV = times_V & (label_V <= newest_time_N1)
        forbidden_NV |= inside_N.unsqueeze(1) & (going_back_NV | eos_V)
        follows_NV = ((label_V >= last_N1) & (label_V <= self.last_time)) | eos_V
        forbidden_NV |= closed_N.unsqueeze(1) & ~follows_NV
        forbidden_NV |= (outside_N & ~closed_N).unsqueeze(1)  # cannot be continued legally
        scores_NV.masked_fill_(forbidden_NV, NEVER)
