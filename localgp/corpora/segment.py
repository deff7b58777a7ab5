"""What every corpus reader yields: one stretch of one recording, its transcript and translations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
