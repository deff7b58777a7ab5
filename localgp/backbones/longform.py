"""What a family does with a long recording that it walks through by its own times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LongForm:
    """How a family's long recordings go on from one window to the next.

    Attributes:
        by_pairs: An utterance is complete where its end and the next one's start stand side by side, as in Whisper;
            else where it has both its times and does not reach the window's end, as in OWSM
            (`localgp.transcription.windows`).
        temperatures: What a window is decoded at, one after the other, until its output can be trusted
            (`localgp.transcription.trust`).
        context: Seconds on either side of a window that are heard and not written: recordings are cut into windows that
            overlap, whose middles are joined frame by frame, as ESPnet does with CTC. 0: not so.
        no_speech: The symbol whose probability behind `Tokens.start` says that nothing is said; None without one.
    """

    by_pairs: bool = False
    temperatures: tuple[float, ...] = (0.0,)
    no_speech: int | None = None
    context: float = 0.0
