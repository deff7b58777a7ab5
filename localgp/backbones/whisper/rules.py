"""What Whisper's decoders suppress, for all rows at once: some tokens always, some as the first, and, where times are
wanted, all that breaks their order.

Times stand in pairs and never go back, ``<start> text <end> <start> text <end>``; the first is no later than the model
says; where all times together are likelier than any text, it is a time. (``ApplyTimestampRules`` of openai-whisper,
``WhisperTimeStampLogitsProcessor`` of `transformers`.)

Shape legend: R rows (hypotheses), V vocabulary, P tokens of a row, S times.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from localgp.backbones.rules import NEVER
from localgp.kernels.ragged import sent


class Rules:
    """What Whisper may write next.

    Args:
        eos: ``<|endoftext|>``.
        notimestamps: The times follow it.
        never: Ids that are suppressed.
        never_first: Ids that no output begins with.
        latest_first: The latest time that an output may begin with, counted from 0; None for any.
        timed: Whether times are wanted.
    """

    def __init__(
        self,
        eos: int,
        notimestamps: int,
        never: Sequence[int],
        never_first: Sequence[int],
        latest_first: int | None,
        timed: bool,
    ) -> None:
        self._eos, self._first, self._latest_first, self._timed = eos, notimestamps + 1, latest_first, timed
        always = [*never, notimestamps] if timed else never
        self._always, self._at_first = (
            torch.tensor(sorted(set(ids)), dtype=torch.long) for ids in (always, [*always, *never_first])
        )

    def __call__(self, scores_RV: Tensor, tokens_RP: Tensor, length_R: Tensor, written: int) -> None:
        """See `localgp.backbones.base.Forbid`."""
        if self._always.device != scores_RV.device:
            self._always, self._at_first = (
                sent(ids, scores_RV.device) for ids in (self._always, self._at_first)
            )
        scores_RV.index_fill_(1, self._always if written else self._at_first, NEVER)
        if not self._timed:
            return
        if written:
            self._order(scores_RV, tokens_RP, length_R, written)
            return
        scores_RV[:, : self._first] = NEVER
        if self._latest_first is not None:
            scores_RV[:, self._first + self._latest_first + 1 :] = NEVER

    def _order(self, scores_RV: Tensor, tokens_RP: Tensor, length_R: Tensor, written: int) -> None:
        first = self._first
        place_P = torch.arange(tokens_RP.shape[1], device=tokens_RP.device)
        end_R1 = length_R.unsqueeze(1)
        time_RP = (place_P >= end_R1 - written) & (place_P < end_R1) & (tokens_RP >= first)
        newest_R1 = tokens_RP.where(time_RP, first - 1).amax(1, keepdim=True)
        is_time_R1 = time_RP.gather(1, end_R1 - 1)
        begun_R1 = is_time_R1 if written == 1 else is_time_R1 & time_RP.gather(1, end_R1 - 2)
        ended_R1 = is_time_R1 & ~begun_R1
        # Where one text ended the next may begin; else time moves on.
        time_S = torch.arange(first, scores_RV.shape[1], device=tokens_RP.device)
        scores_RV[:, first:].masked_fill_(begun_R1 | (time_S < newest_R1 + ~ended_R1), NEVER)
        scores_RV[:, : self._eos].masked_fill_(ended_R1, NEVER)
        likelier_R = scores_RV[:, first:].logsumexp(1) > scores_RV[:, :first].amax(1)
        scores_RV[:, :first].masked_fill_(likelier_R.unsqueeze(1), NEVER)
