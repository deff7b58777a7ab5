"""Reader of a manifest: your own recordings, one JSON object a line (docs/corpora.md has an example)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localgp.corpora.languages import canonical
from localgp.corpora.segment import Reading, Segment
from localgp.corpora.text import normalize_text, read_lines
from localgp.errors import ConfigError, CorpusError

REQUIRED = ("audio", "language", "text")
OPTIONAL = ("start", "end", "speaker", "split", "id")
SPLITS = ("train", "dev", "test")
EXAMPLE = '{"audio": "a.m4a", "start": 1.2, "end": 4.5, "language": "de", "text": {"de": "…", "fr": "…"}}'


class _BadLine(Exception):
    """Why a line cannot be used: the kind and the sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_manifest(
    path: str | Path,
    *,
    languages: Sequence[str] | None = None,
    case: str = "lower",
    on_error: str = "raise",
) -> Reading:
    """Reads a JSONL manifest; audio is not touched.

    Args:
        path: The manifest; audio paths in it are relative to its folder.
        languages: Keep these spoken languages and targets only; None for all.
        case: `localgp.corpora.text.normalize_text`.
        on_error: What a wrong line does, ``raise`` or ``skip``.

    Raises:
        ConfigError: An unknown language or option.
        CorpusError: No such file; with ``on_error=raise``, any wrong line.
    """
    path = Path(path)
    wanted = None if languages is None else [_wanted(code) for code in languages]
    if not path.is_file():
        raise CorpusError(
            f"no manifest at {path}\n  Expected: a text file with one JSON object a line, such as\n    {EXAMPLE}\n"
            "  Then:     corpus.manifest=<its path>"
        )
    reading = Reading(on_error)
    seen: dict[str, int] = {}
    spoken: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for number, line in enumerate(read_lines(path), start=1):
        if line is not None and not line.strip():
            continue
        try:
            segment = _parse(line, path, number, case)
            if segment.utt_id in seen:
                raise _BadLine(
                    "duplicate id",
                    f"id {segment.utt_id!r} is also line {seen[segment.utt_id]}'s; ids are unique",
                )
        except _BadLine as bad:
            where = f"{path.name}:{number}"
            reading.damaged(bad.reason, f"{path}:{number}: {bad.detail}", utt_id=where, split="", language="")
            continue
        seen[segment.utt_id] = number
        spoken[segment.language] += 1
        written.update(segment.translations.keys())
        _keep(segment, wanted, reading)
    reading.check()
    if wanted is not None and spoken:
        if not spoken.keys() & set(wanted):
            raise ConfigError(_absent(path, languages or (), spoken, written))
        for code in set(wanted) - spoken.keys() - written.keys():
            reading.notes[f"language asked for and not there: {code}"] += 1
    return reading


def _wanted(code: str) -> str:
    try:
        return canonical(code)
    except ConfigError as error:
        raise ConfigError(f"corpus.languages: {error}") from None


def _absent(path: Path, languages: Sequence[str], spoken: Counter[str], written: Counter[str]) -> str:
    """What a manifest has, to somebody who asked for what it has not."""
    found = ", ".join(f"{code} {count}" for code, count in spoken.most_common())
    targets = f"; translated into {', '.join(sorted(written))}" if written else ""
    return (
        f"corpus.languages=[{','.join(languages)}]: nothing in {path} is spoken in {' or '.join(languages)}. "
        f"Segments by what is spoken: {found}{targets}"
    )


def _keep(segment: Segment, languages: Sequence[str] | None, reading: Reading) -> None:
    if languages is not None and segment.language not in languages:
        reading.notes["segments in other languages"] += 1
    elif not segment.transcript:
        reading.left_out(
            "empty text",
            f"{segment.source}: the text in {segment.language!r} is empty",
            utt_id=segment.utt_id,
            split=segment.split,
            language=segment.language,
        )
    else:
        for target in list(segment.translations):
            if not segment.translations[target]:
                reading.notes["empty translations"] += 1
            if not segment.translations[target] or (languages is not None and target not in languages):
                del segment.translations[target]
        reading.segments.append(segment)


def _parse(line: str | None, path: Path, number: int, case: str) -> Segment:
    if line is None:
        raise _BadLine("text is not UTF-8", "not UTF-8; convert the file (iconv -t utf-8)")
    try:
        return _segment(_row(line), path, number, case)
    except RecursionError:
        raise _BadLine("invalid line", f"brackets nested too deeply; a line is {EXAMPLE}") from None


def _row(line: str) -> Any:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _BadLine(
            "invalid line", f"not JSON: {error.msg} at column {error.colno}; a line is {EXAMPLE}"
        ) from None
    except ValueError:  # Python reads no whole numbers of over 4,300 digits
        raise _BadLine("invalid line", "a number of thousands of digits") from None
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("ascii", "backslashreplace").decode()
        raise _BadLine(
            "invalid line",
            f"{half} is half of a character, as is left of an emoji that was cut, or of a file name that is not UTF-8; "
            "write whole ones, and rename the file",
        ) from None
    return row


def _segment(row: Any, path: Path, number: int, case: str) -> Segment:
    _check_keys(row)
    row = {key: value for key, value in row.items() if value is not None}  # null is "not given"
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if end is not None and end <= (start or 0.0):
        raise _BadLine(
            "invalid times", f"the segment {start or 0.0} s to {end} s has no length; end is after start"
        )
    language, texts = _texts(row, case)
    split = row.get("split", "train")
    if split not in SPLITS:
        raise _BadLine("invalid line", f"split {_shown(split)}; valid are {', '.join(SPLITS)}")
    for key in ("audio", "speaker", "id"):
        if key in row and not (isinstance(row[key], str) and row[key].strip()):
            raise _BadLine("invalid line", f"{key} is {_shown(row[key])}; it is a string that is not empty")
    if Path(row["audio"]).name in ("", ".."):
        raise _BadLine(
            "invalid line", f"audio is {row['audio']!r}; it is the path of a file, not of a folder"
        )
    utt_id = row.get("id") or _default_id(row["audio"], start, end)
    if re.search(r"[\s/\0]", utt_id):
        raise _BadLine("invalid line", f"id {utt_id!r}; ids have no white space and no slash")
    return Segment(
        utt_id=utt_id,
        split=split,
        audio=path.parent / row["audio"],
        start=start,
        end=end,
        language=language,
        speaker=row.get("speaker"),
        transcript=texts.pop(language),
        translations=texts,
        source=f"{path}:{number}",
    )


def _check_keys(row: Any) -> None:
    if not isinstance(row, dict):
        raise _BadLine("invalid line", f"a JSON {type(row).__name__}, not an object; a line is {EXAMPLE}")
    known = REQUIRED + OPTIONAL
    if unknown := [key for key in row if key not in known]:
        raise _BadLine(
            "invalid line", f"unknown {', '.join(map(repr, unknown))}; valid keys are {', '.join(known)}"
        )
    if missing := [key for key in REQUIRED if row.get(key) is None]:
        raise _BadLine("invalid line", f"missing {', '.join(map(repr, missing))}; a line is {EXAMPLE}")


def _seconds(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        seconds = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise _BadLine("invalid times", f"{key} is {_shown(value)}; it is a number of seconds, 0 or more")
    return seconds


def _texts(row: dict[str, Any], case: str) -> tuple[str, dict[str, str]]:
    given, texts = row["language"], row["text"]
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise _BadLine("invalid line", f'text is {_shown(texts)}; it is one text per language, {{"de": "…"}}')
    language = _language(given)
    named: dict[str, str] = {}
    for code, text in texts.items():
        name = _language(code)
        if name in named:
            raise _BadLine("invalid line", f"text has {name!r} twice, the second time as {code!r}")
        named[name] = normalize_text(text, case)
    if language not in named:
        raise _BadLine(
            "invalid line",
            f"no text in {given!r}, the language spoken: training and scoring need the transcript "
            f"(there is {', '.join(texts) or 'none'})",
        )
    return language, named


def _language(code: Any) -> str:
    try:
        return canonical(code)
    except ConfigError as error:
        raise _BadLine("unknown language", str(error)) from None


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}… ({len(text)} characters)"


def _default_id(audio: str, start: float | None, end: float | None) -> str:
    name = re.sub(r"[\s/\\]+", "_", str(Path(audio).with_suffix(""))).strip("._")
    if start is None and end is None:
        return name
    last = "end" if end is None else f"{round(end * 1000):07d}"
    return f"{name}_{round((start or 0.0) * 1000):07d}_{last}"
