"""Where transcripts go, and which of them are there already.

    <output-dir>/<stem>.<suffix>           with folders before it where `output_places` says
    <output-dir>/.transcribed.jsonl        a line per output: from which recording and with which settings it was made

An output is finished where the record says that it was made from the same samples with the same settings: it is not
made again, so an interrupted command goes on. A recording that the record knows keeps its place whatever is given
beside it. Any other file that is in the way is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localgp import __version__
from localgp.errors import ConfigError
from localgp.io import write_atomically
from localgp.signals import Signals, heed
from localgp.transcription.inputs import Input, readable

RECORD = ".transcribed.jsonl"
_LONGEST_NAME = 255  # bytes, of nearly every file system
_WEIGHTS = ("*.safetensors", "*.pth", "*.yaml", "*.npz", "*.model")


class Outputs:
    """Where transcripts go, and which are there already.

    Args:
        directory: ``--output-dir``; it is made.
        inputs: All recordings of the command.
        suffix: ``.txt`` and the like.
        settings: What decides what is written, for the record; JSON values.
        overwrite: Make all outputs anew, whatever is there.
        full_names: ``a.wav.txt`` instead of ``a.txt``.

    Attributes:
        places: A path per input.
        problems: Input's index to what keeps its output from being written.
        finished: Indices of the inputs whose outputs were there before.
        written: Those of the inputs whose outputs are there since.

    Raises:
        ConfigError: The directory cannot be one, or two inputs have one output.
    """

    def __init__(
        self,
        directory: Path,
        inputs: Sequence[Input],
        suffix: str,
        settings: dict[str, Any],
        *,
        overwrite: bool = False,
        full_names: bool = False,
    ) -> None:
        self.directory, self.inputs, self.settings = directory, inputs, settings
        _make(directory)
        record = _read(directory / RECORD)
        computed = output_places(inputs, directory, suffix, full_names=full_names)
        earlier = {
            entry["source"]: directory / name
            for name, entry in record.items()
            if name.endswith(suffix) and (directory / name).is_file()
        }
        self.places = [
            earlier.get(_source(item), place) for item, place in zip(inputs, computed, strict=True)
        ]
        _refuse_shared(inputs, self.places)
        self.problems: dict[int, str] = {}
        self.finished: set[int] = set()
        self.written: set[int] = set()
        for index, (item, place) in enumerate(zip(inputs, self.places, strict=True)):
            problem = self._unwritable(place)
            if problem is None and place.exists() and not overwrite:
                entry = record.get(place.relative_to(directory).as_posix())
                problem = self._in_the_way(item, place, entry)
                if problem is None:
                    self.finished.add(index)
            if problem is not None:
                self.problems[index] = problem

    def write(self, index: int, text: str) -> Path:
        """Writes a finished transcript and notes what it was made from."""
        place, item = self.places[index], self.inputs[index]
        entry = {
            "output": place.relative_to(self.directory).as_posix(),
            "source": _source(item),
            "sha256": None if item.base is None else _digest(item.path),  # a pipe's content is gone
            "settings": self.settings,
        }
        with Signals(defer=True):  # an output that is not noted would be taken for another program's
            write_atomically(place, text)
            with (self.directory / RECORD).open("a", encoding="utf-8") as file:
                # On a line of its own, whatever became of the one before.
                file.write(f"\n{json.dumps(entry)}\n")
            self.written.add(index)
            heed()
        return place

    def _unwritable(self, place: Path) -> str | None:
        if len(os.fsencode(place.name)) > _LONGEST_NAME:
            return f"{readable(place)}: this name is longer than {_LONGEST_NAME} bytes; shorten that of the recording"
        if place.is_dir():
            return f"{readable(place)} is a folder, where the output has to be; choose another --output-dir"
        above = place.parent
        while above != self.directory:
            if above.exists() and not above.is_dir():
                return f"{readable(above)} is a file, where a folder has to be; choose another --output-dir"
            above = above.parent
        return None

    def _in_the_way(self, item: Input, place: Path, entry: dict[str, Any] | None) -> str | None:
        """Why an existing output is not this input's finished one; None where it is."""
        remedy = "--overwrite replaces it, another --output-dir keeps both"
        if entry is None or item.base is None:
            return f"{readable(place)} is there already, and nothing says from what it was made; {remedy}"
        if entry["sha256"] != _digest(item.path):
            what = "another recording" if entry["source"] == _source(item) else readable(entry["source"])
            return f"{readable(place)} is there already, made from {what}; {remedy}"
        changed = sorted(
            key
            for key in {*entry["settings"], *self.settings}
            if entry["settings"].get(key) != self.settings.get(key)
        )
        if changed:
            shown = ", ".join(f"{key} {entry['settings'].get(key)}" for key in changed)
            return f"{readable(place)} is there already, made with other settings ({shown}); {remedy}"
        return None


def output_places(
    inputs: Sequence[Input], directory: Path, suffix: str, *, full_names: bool = False
) -> list[Path]:
    """One path per input: its name with another ending. What was found in folders keeps those below the root of all
    that was named, and so do files that were named where two of them would have one output.

    Examples:
        >>> talks = [Input("/x/day1/a.wav", "/x/day1"), Input("/x/day2/a.wav", "/x/day2")]
        >>> [path.as_posix() for path in output_places(talks, Path("out"), ".srt")]
        ['out/day1/a.srt', 'out/day2/a.srt']
        >>> [path.as_posix() for path in output_places(talks[:1], Path("out"), ".srt")]
        ['out/a.srt']
    """
    names = [(Path(item.path).name if full_names else Path(item.path).stem) + suffix for item in inputs]
    if len(set(names)) == len(names) and not any(item.found for item in inputs):
        return [directory / name for name in names]
    bases = [item.base for item in inputs if item.base is not None]
    root = os.path.commonpath(bases) if bases else ""
    folders = [
        "" if item.base is None else os.path.relpath(os.path.dirname(os.path.abspath(item.path)), root)
        for item in inputs
    ]
    return [directory / folder / name for folder, name in zip(folders, names, strict=True)]


def _refuse_shared(inputs: Sequence[Input], places: Sequence[Path]) -> None:
    by_place: dict[Path, list[str]] = {}
    for item, place in zip(inputs, places, strict=True):
        by_place.setdefault(place, []).append(readable(item.path))
    shared = [f"{' and '.join(names)} to {readable(p)}" for p, names in by_place.items() if len(names) > 1]
    if shared:
        raise ConfigError(
            f"several recordings would be written to one file: {'; '.join(shared[:3])}. --full-names keeps their "
            "endings apart, as in a.wav.txt"
        )


def _make(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(
            f"--output-dir {readable(directory)} is a file; give a folder, which is made if need be"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK | os.X_OK)
        reason = "no permission to write there"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise ConfigError(f"--output-dir {readable(directory)}: {reason}; give another folder")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The record by output, the last line of each; what cannot be read is as if it were not there."""
    found: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry["settings"], dict) and isinstance(entry["source"], str):
                found[str(entry["output"])] = {"sha256": None, **entry}
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # an empty line, or one that was cut off
    return found


def _source(item: Input) -> str:
    return os.path.abspath(item.path)


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def model_identity(source: str) -> str:
    """A model's name with what tells whether it is still the same: its files' sizes and times, or our version."""
    path = Path(source).expanduser()
    if source == "embedded" or not path.exists():
        return f"{source} ({__version__})"
    files = [path] if path.is_file() else sorted({f for kind in _WEIGHTS for f in path.glob(f"**/{kind}")})
    stamp = hashlib.sha256()
    for file in files:
        state = file.stat()
        stamp.update(
            f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode(errors="replace")
        )
    return f"{path.resolve()} ({stamp.hexdigest()[:12]})"
