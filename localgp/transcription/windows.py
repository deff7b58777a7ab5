"""How a recording that is longer than the model's window is walked through.

Three ways. By timestamps, as OWSM and Whisper were made for and as ESPnet's ``Speech2Text.decode_long`` and
openai-whisper's ``transcribe`` do: decode a window with predicted times, keep the utterances that are complete in it,
and start the next window where they end. By pauses: cut beforehand where it is quietest, and decode every piece without
timestamps; for models that were never trained on timestamps, and all pieces can be decoded together. In windows that
overlap, of which the middles are joined frame by frame, as ESPnet does with CTC, which has a label for every frame.

    window 1  |--[0.00 … 4.10]--[4.60 … 7.9|    the last utterance reaches the end, it may be cut:
    window 2              |----[0.00 … 4.40]--|     it is decoded again from its own start

Shape legend: N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INCOMPLETE = (
    1.0  # seconds: what ends this close to the window's end may go on behind it (ESPnet: <29.00> of 30 s)
)
SHORTEST = 0.2  # seconds: a rest this short at the end of a recording holds no word (ESPnet's too)
# ESPnet goes on from wherever the last utterance ends, so a model that writes <0.00> <0.02> takes 1,500 windows
# for 30 s, and one that closes at <0.00> never ends. A window always moves on by at least this.
SMALLEST_STEP = 1.0
SILENCE = 1e-4  # peak (-80 dB) under which there is nothing to decode
_HOP = 0.05  # seconds between energy measurements when looking for a pause
_QUIET = 0.3  # seconds over which a pause is judged


@dataclass(frozen=True)
class TimeTokens:
    """Ids of the first and the last timestamp, which are contiguous, and the seconds between two of them."""

    first: int
    last: int
    resolution: float

    def is_time(self, token: int) -> bool:
        return self.first <= token <= self.last

    def seconds(self, token: int) -> float:
        return (token - self.first) * self.resolution

    def token(self, seconds: float) -> int:
        return min(self.first + round(seconds / self.resolution), self.last)


@dataclass(frozen=True)
class Stretch:
    """Samples [first, last) of a recording."""

    first: int
    last: int


def read_timed(
    tokens: Sequence[int], times: TimeTokens
) -> tuple[list[tuple[float, float, list[int]]], float]:
    """A window's output to its complete utterances and the time at which the next window begins.

    Args:
        tokens: Without prompt and eos: ``<start> text <end> <start> text <end> …``.

    Returns:
        (start, end, text tokens) of each utterance, in seconds of the window; and where to go on. That is 0
        where the output says nothing about it.
    """
    tokens = list(tokens)
    marks = [place for place, token in enumerate(tokens) if times.is_time(token)]
    if not marks:
        return [], 0.0
    if len(marks) == 1:  # a beginning alone: the utterance goes to the end
        tokens.append(times.last)
        marks.append(len(tokens) - 1)
    if len(marks) % 2:  # the last utterance has only its beginning: again from there
        going_on = tokens[marks[-1]]
        marks = marks[:-1]
    elif len(marks) > 2 and times.seconds(tokens[marks[-1]]) > times.seconds(times.last) - INCOMPLETE:
        going_on = tokens[marks[-2]]
        marks = marks[:-2]
    else:
        going_on = tokens[marks[-1]]
    utterances = [
        (times.seconds(tokens[begin]), times.seconds(tokens[end]), tokens[begin + 1 : end])
        for begin, end in zip(marks[::2], marks[1::2], strict=True)
    ]
    return utterances, times.seconds(going_on)


def read_pairs(
    tokens: Sequence[int], times: TimeTokens, window_seconds: float
) -> tuple[list[tuple[float, float, list[int]]], float]:
    """The same by Whisper's rules: an utterance is complete where its end and the start of the next stand side by
    side, and what is behind the last such pair is heard again. An output that ends in a single time says that nothing
    more is said in the window.

    Args:
        window_seconds: Length of what was decoded.
    """
    tokens = list(tokens)
    is_time = [times.is_time(token) for token in tokens]
    cuts = [place for place in range(1, len(tokens)) if is_time[place - 1] and is_time[place]]
    if not cuts:
        text = [token for token in tokens if not times.is_time(token)]
        marks = [times.seconds(token) for token in tokens if times.is_time(token)]
        begin = marks[0] if marks and is_time[0] else 0.0
        end = marks[-1] if marks and marks[-1] > begin else window_seconds
        return ([(begin, end, text)] if text else []), window_seconds
    going_on = times.seconds(tokens[cuts[-1] - 1])
    if is_time[-2:] == [False, True]:
        cuts.append(len(tokens))
        going_on = window_seconds
    utterances = [
        (times.seconds(tokens[first]), times.seconds(tokens[last - 1]), tokens[first + 1 : last - 1])
        for first, last in zip([0, *cuts], cuts, strict=False)
    ]
    return utterances, going_on


def step_after(going_on: float, window_seconds: float) -> float:
    """Seconds to the next window's beginning: where the output says, and never nothing."""
    if going_on <= 0:
        return window_seconds
    return min(max(going_on, SMALLEST_STEP), window_seconds)


def cut_at_pauses(samples_N: np.ndarray, rate: int, longest: float) -> list[Stretch]:
    """Windows of at most ``longest`` seconds that together are the recording, cut where it is quietest in the
    last third of each."""
    limit, windows, first = round(longest * rate), [], 0
    while len(samples_N) - first > limit:
        begin = first + limit * 2 // 3
        last = begin + _quietest(samples_N[begin : first + limit], rate)
        windows.append(Stretch(first, last))
        first = last
    if len(samples_N) - first >= SHORTEST * rate or not windows:
        windows.append(Stretch(first, len(samples_N)))
    else:
        windows[-1] = Stretch(windows[-1].first, min(len(samples_N), windows[-1].first + limit))
    return windows


def overlapping(samples: int, window: int, context: int) -> list[Stretch]:
    """Windows of which each begins two contexts before the end of the one before, as ESPnet has them.

    Examples:
        >>> [(w.first, w.last) for w in overlapping(25, 10, 2)]
        [(0, 10), (6, 16), (12, 22), (18, 25)]
    """
    windows = []
    for first in range(0, samples, window - 2 * context):
        windows.append(Stretch(first, min(first + window, samples)))
        if first + window > samples:
            break
    return windows


def _quietest(stretch_N: np.ndarray, rate: int) -> int:
    """The sample in the middle of the stretch's quietest `_QUIET` seconds."""
    hop, width = round(_HOP * rate), round(_QUIET * rate)
    if len(stretch_N) <= width:
        return max(1, len(stretch_N) // 2)
    energy_N = np.concatenate([[0.0], np.cumsum(stretch_N.astype(np.float64) ** 2)])
    starts = np.arange(0, len(stretch_N) - width + 1, hop)
    best = int(np.argmin(energy_N[starts + width] - energy_N[starts]))
    return int(starts[best]) + width // 2


def speech_bounds(samples_N: np.ndarray, rate: int) -> tuple[float, float]:
    """First and last second of a piece that are not quieter than -40 dB under its loudest 50 ms; for the times
    of a subtitle."""
    hop = round(_HOP * rate)
    frames = [float(np.sqrt(np.mean(samples_N[i : i + hop] ** 2))) for i in range(0, len(samples_N), hop)]
    loud = [place for place, level in enumerate(frames) if level > 0.01 * max(frames)]
    if not loud:
        return 0.0, len(samples_N) / rate
    return loud[0] * _HOP, min((loud[-1] + 1) * _HOP, len(samples_N) / rate)
