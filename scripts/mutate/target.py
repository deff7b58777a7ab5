"""One kind of input that can be damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass
class Target:
    """One kind of input.

    Attributes:
        make: Writes a good input into a directory.
        use: Reads it; returns the number of skips it listed.
        files: Those that may be damaged, as patterns; the first level of damage is to bytes.
        fields: Damage to what is inside, by pattern; returns what was done and whether it has to be noticed.
        optional: Patterns of files that may be absent or empty.
    """

    make: Callable[[Path], None]
    use: Callable[[Path], int]
    files: tuple[str, ...]
    fields: dict[str, Callable[[Path, Random], tuple[str, bool]]]
    optional: tuple[str, ...] = ()
