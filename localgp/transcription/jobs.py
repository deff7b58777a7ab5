"""One recording on its way through the model: which windows it wants decoded next, and what came of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from localgp.timeline import Timeline
from localgp.transcription.formats import TimedText
from localgp.transcription.windows import (
    SHORTEST,
    SILENCE,
    Stretch,
    TimeTokens,
    cut_at_pauses,
    overlapping,
    read_pairs,
    read_timed,
    speech_bounds,
    step_after,
)

GAP = 1.0  # seconds without a label that end a segment
LONGEST = 10.0  # seconds, after which the next word begins another


class Job(ABC):
    """One recording on its way through the windows.

    Args:
        samples: The recording (N,).
        rate: Hz.
        decode_text: Text of token ids.
    """

    timed = False  # whether its windows are decoded with timestamps
    by_frames = False  # whether it takes the label of every frame, and not a text

    def __init__(self, samples: np.ndarray, rate: int, decode_text: Callable[[Sequence[int]], str]) -> None:
        self.samples, self.rate, self._text = samples, rate, decode_text
        self.segments: list[TimedText] = []
        self.language: str | None = None
        self.language_probability: float | None = None
        self.warnings: list[str] = []
        self.text_before: list[int] = []  # ids of what is written so far, for windows that are given it
        self.forgets = (
            False  # what comes next is not given the text of the window just decoded, nor any before
        )

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    @property
    @abstractmethod
    def done_seconds(self) -> float:
        """How much of the recording is behind it."""

    @abstractmethod
    def ready(self) -> list[Stretch]:
        """The windows that can be decoded now; empty when the recording is finished."""

    @abstractmethod
    def accept(self, window: Stretch, tokens: Sequence[int]) -> None:
        """Takes what was decoded for a window of `ready`."""

    def silent(self, window: Stretch) -> bool:
        return float(np.abs(self.samples[window.first : window.last]).max(initial=0.0)) < SILENCE


class TimestampJob(Job):
    """Windows one after the other, each beginning where the output of the one before says."""

    timed = True

    def __init__(
        self,
        samples: np.ndarray,
        rate: int,
        decode_text: Callable[[Sequence[int]], str],
        times: TimeTokens,
        window_seconds: float,
        *,
        by_pairs: bool = False,
    ) -> None:
        super().__init__(samples, rate, decode_text)
        self._times, self._window, self._by_pairs = times, window_seconds, by_pairs
        self._offset = 0
        self._skip_silence()

    @property
    def done_seconds(self) -> float:
        return min(self._offset / self.rate, self.seconds)

    def ready(self) -> list[Stretch]:
        left = len(self.samples) - self._offset
        # A recording that is shorter than that altogether is decoded all the same.
        if left <= 0 or (self._offset and left < SHORTEST * self.rate):
            return []
        return [self._next()]

    def accept(self, window: Stretch, tokens: Sequence[int]) -> None:
        if self._by_pairs:
            length = (window.last - window.first) / self.rate
            utterances, going_on = read_pairs(tokens, self._times, length)
        else:
            utterances, going_on = read_timed(tokens, self._times)
        offset = window.first / self.rate
        for start, end, text in utterances:
            begin, finish = offset + start, min(offset + end, self.seconds)
            written = self._text(text)
            if written and finish > begin:
                self.segments.append(TimedText(round(begin, 2), round(finish, 2), written))
                self.text_before += self._with_times(start, text, end) if self._by_pairs else text
        if self.forgets:
            self.text_before = []
        self._offset += round(step_after(going_on, self._window) * self.rate)
        self._skip_silence()

    def _with_times(self, start: float, text: list[int], end: float) -> list[int]:
        return [self._times.token(start), *text, self._times.token(end)]

    def _next(self) -> Stretch:
        last = self._offset + round(self._window * self.rate)
        return Stretch(self._offset, min(last, len(self.samples)))

    def _skip_silence(self) -> None:
        while self._offset < len(self.samples) and self.silent(self._next()):
            self._offset += round(self._window * self.rate)


class PauseJob(Job):
    """Pieces cut beforehand; all of them can be decoded together."""

    def __init__(
        self,
        samples: np.ndarray,
        rate: int,
        decode_text: Callable[[Sequence[int]], str],
        longest: float,
    ) -> None:
        super().__init__(samples, rate, decode_text)
        self._left = [w for w in cut_at_pauses(samples, rate, longest) if not self.silent(w)]
        self._left_seconds = sum(w.last - w.first for w in self._left) / rate

    @property
    def done_seconds(self) -> float:
        return self.seconds - sum(w.last - w.first for w in self._left) / self.rate

    def ready(self) -> list[Stretch]:
        return list(self._left)

    def accept(self, window: Stretch, tokens: Sequence[int]) -> None:
        self._left.remove(window)
        text = self._text(tokens)
        if not text:
            return
        first, last = speech_bounds(self.samples[window.first : window.last], self.rate)
        offset = window.first / self.rate
        self.segments.append(TimedText(round(offset + first, 2), round(offset + last, 2), text))
        self.segments.sort(key=lambda segment: segment.start)


class OverlapJob(Job):
    """Windows that overlap, all of which can be decoded together; of each, CTC's labels of the middle frames count.

    Args:
        window_seconds: Of the model.
        context: Seconds at either end of a window that do not count.
        timeline: Of the encoder's frames.
        blank: CTC's.
        begins: Whether a label begins a word.
    """

    by_frames = True

    def __init__(
        self,
        samples: np.ndarray,
        rate: int,
        decode_text: Callable[[Sequence[int]], str],
        window_seconds: float,
        context: float,
        timeline: Timeline,
        blank: int,
        begins: Callable[[int], bool],
    ) -> None:
        self._ahead = round(context * rate)
        super().__init__(np.pad(samples, self._ahead), rate, decode_text)
        self._windows = overlapping(len(self.samples), round(window_seconds * rate), self._ahead)
        frames_per_second = rate / (timeline.hop * timeline.stride)
        self._middle = slice(
            int(frames_per_second * context),
            int(frames_per_second * window_seconds) - int(frames_per_second * context),
        )
        self._timeline, self._blank, self._begins = timeline, blank, begins
        self._found: dict[Stretch, list[int]] = {}

    @property
    def seconds(self) -> float:
        return (len(self.samples) - 2 * self._ahead) / self.rate

    @property
    def done_seconds(self) -> float:
        return self.seconds * len(self._found) / len(self._windows)

    def ready(self) -> list[Stretch]:
        return [window for window in self._windows if window not in self._found]

    def accept(self, window: Stretch, tokens: Sequence[int]) -> None:
        """Takes the label of each frame."""
        self._found[window] = list(tokens)
        if not self.ready():
            self._write()

    def _write(self) -> None:
        """Segments of all labels: cut before words, where nothing is written for a while or after a long time."""
        written: list[tuple[int, float]] = []  # label and seconds
        before = self._blank
        for window in self._windows:
            centres_T = (
                self._timeline.centres(len(self._found[window])) + window.first - self._ahead
            ) / self.rate
            labels = self._found[window][self._middle]
            for label, second in zip(labels, centres_T[self._middle], strict=True):
                if label not in (before, self._blank):
                    written.append((label, min(max(float(second), 0.0), self.seconds)))
                before = label
        part: list[tuple[int, float]] = []
        for label, second in written:
            if part and self._begins(label) and (second - part[-1][1] > GAP or second - part[0][1] > LONGEST):
                self._close(part, second)
                part = []
            part.append((label, second))
        self._close(part, self.seconds)

    def _close(self, part: list[tuple[int, float]], latest: float) -> None:
        text = self._text([label for label, _ in part])
        if text:
            end = min(part[-1][1] + GAP / 2, latest)
            self.segments.append(TimedText(round(part[0][1], 2), round(end, 2), text))
