"""What every corpus reader yields: stretches of recordings with transcript and translations, and what it left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from localgp.corpora.audio_errors import Remark
from localgp.errors import CorpusError

_SHOWN = 20  # faults that an error lists; the others are counted


@dataclass(frozen=True)
class Segment:
    """One segment of a recording.

    Attributes:
        utt_id: Unique within the corpus; no white space.
        split: ``train``, ``dev`` or ``test``.
        audio: The recording's file.
        start: Seconds into the recording; None for its beginning.
        end: Seconds into the recording; None for its end.
        language: Two-letter code of the language spoken (``de``).
        speaker: Speaker identity where the corpus knows it.
        transcript: What is said, in ``language``.
        translations: Target language to text; the source language is not among its keys.
        asr: Whether this segment belongs to the corpus's ASR set. Europarl-ST has none of its own: ASR
            is the source side of one direction, and the other directions have other segments.
        source: Where it came from, for error messages (``segments.lst:12``).
    """

    utt_id: str
    split: str
    audio: Path
    start: float | None
    end: float | None
    language: str
    speaker: str | None
    transcript: str
    translations: dict[str, str] = field(default_factory=dict)
    asr: bool = True
    source: str = ""


@dataclass(frozen=True)
class Dropped:
    """A segment that a reader or the preparation left out, and why."""

    utt_id: str
    split: str
    language: str
    reason: str  # one of a small set of kinds, counted in the report: "missing audio", "empty text", ...
    detail: str  # the sentence for a person, with file, line and value


@dataclass
class Reading:
    """What came of reading a corpus, and the one place that decides between raising and skipping.

    Attributes:
        on_error: ``raise``: damage ends the reading; ``skip``: it is listed in ``dropped``.
        segments: The good segments, in the corpus's order.
        dropped: Those left out.
        notes: Counts of what was changed or left out without losing a segment.
        remarks: What was found wrong with recordings and could be mended; the details name the file.
    """

    on_error: str = "raise"
    segments: list[Segment] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    remarks: list[Remark] = field(default_factory=list)
    _faults: list[tuple[type[CorpusError], str]] = field(default_factory=list)

    def damaged(
        self,
        reason: str,
        detail: str,
        *,
        utt_id: str,
        split: str,
        language: str,
        error: type[CorpusError] = CorpusError,
    ) -> None:
        """A segment that is wrong: kept for `check`, or listed, as ``on_error`` says."""
        if self.on_error == "raise":
            self._faults.append((error, detail))
        else:
            self.left_out(reason, detail, utt_id=utt_id, split=split, language=language)

    def check(self) -> None:
        """Raises what was found wrong, where that is asked for.

        Raises:
            CorpusError: With ``on_error=raise``, damage was found since; it has the first twenty and how many.
        """
        if not self._faults:
            return
        details = [detail for _, detail in self._faults]
        more = f"\n… and {len(details) - _SHOWN} more, {len(details)} in all" if len(details) > _SHOWN else ""
        what = "it" if len(details) == 1 else "them"
        raise self._faults[0][0](
            "\n".join(details[:_SHOWN])
            + more
            + f"\n  Correct or replace {what}, or set corpus.on_error=skip to leave such segments out "
            "(they are then listed in dropped.jsonl)."
        )

    def left_out(self, reason: str, detail: str, *, utt_id: str, split: str, language: str) -> None:
        """A segment that is sound and not wanted (too long, no text): listed, never an error."""
        self.dropped.append(Dropped(utt_id, split, language, reason, detail))
