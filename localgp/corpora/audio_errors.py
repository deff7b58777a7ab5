"""What can be wrong with a recording or a stretch of it, and what was wrong and could be mended."""

from __future__ import annotations

from typing import NamedTuple

from localgp.errors import AudioError


class MissingAudio(AudioError):
    """There is no such file."""

    reason = "missing audio"


class UnreadableAudio(AudioError):
    """Not audio, damaged, cut off, or not to be read by this user."""

    reason = "unreadable audio"


class InvalidTimes(AudioError):
    """A segment without length, reversed, or before the recording."""

    reason = "invalid times"


class BeyondEnd(AudioError):
    """A segment that the recording does not contain."""

    reason = "segment beyond the end"


class NonFiniteSamples(AudioError):
    """NaN or infinity among a segment's samples."""

    reason = "NaN or infinite samples"


class Remark(NamedTuple):
    """Something about a recording that a person should know although it was read.

    Attributes:
        kind: What reports count: "gaps in the time stamps".
        detail: What was found in this recording and what was made of it.
    """

    kind: str
    detail: str
