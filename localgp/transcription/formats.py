"""What a transcription is, and how it is written: text, JSON, SubRip, WebVTT."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from localgp.errors import ConfigError

FORMATS = ("text", "json", "srt", "vtt")
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}
TIMED = ("srt", "vtt")  # formats that make no sense without segment times


@dataclass(frozen=True)
class TimedText:
    """A stretch of a recording, in seconds, and what was said in it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """A recording's text with its times.

    Attributes:
        source: The file, or what the caller named it.
        seconds: Length of the recording.
        language: What is spoken, ISO 639-3.
        target: What is written; the language itself for a transcript.
        language_probability: Where the language was detected, its probability among the model's languages.
        segments: In order.
        warnings: Why it may not be what was said, for people.

    Examples:
        >>> transcript = Transcript("a.m4a", 2.0, "deu", "deu", None, [TimedText(0.0, 1.5, "guten tag.")])
        >>> transcript.text
        'guten tag.'
        >>> print(transcript.format("srt"), end="")
        1
        00:00:00,000 --> 00:00:01,500
        guten tag.
    """

    source: str
    seconds: float
    language: str
    target: str
    language_probability: float | None
    segments: list[TimedText] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "text": self.text}

    def format(self, name: str) -> str:
        """The whole file in one of `FORMATS`."""
        if name == "text":
            return self.text + "\n"
        if name == "json":
            return json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n"
        spoken = [segment for segment in self.segments if segment.text]
        if name == "srt":
            blocks = [
                f"{number}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{cue(s.text)}\n"
                for number, s in enumerate(spoken, start=1)
            ]
            return "\n".join(blocks)
        if name == "vtt":
            blocks = [
                f"{clock(s.start, '.')} --> {clock(s.end, '.')}\n{_escaped(cue(s.text))}\n" for s in spoken
            ]
            return "\n".join(["WEBVTT\n", *blocks])
        raise ConfigError(f"format is {name!r}; valid: {', '.join(FORMATS)}")


def clock(seconds: float, mark: str) -> str:
    """``hh:mm:ss<mark>mmm``, as subtitles write it.

    Examples:
        >>> clock(3661.0405, ",")
        '01:01:01,040'
    """
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def _escaped(text: str) -> str:
    """WebVTT reads ``<`` as the start of a tag and ``&`` as that of a character reference; SubRip knows neither.

    Examples:
        >>> _escaped("R&D <b>")
        'R&amp;D &lt;b&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cue(text: str, width: int = 42) -> str:
    """A cue's text in lines of at most ``width`` characters, which is what a subtitle line holds; ``-->`` would
    end the cue, so it is written as an arrow."""

    return "\n".join(textwrap.wrap(text.replace("-->", "→"), width, break_long_words=False)) or " "
