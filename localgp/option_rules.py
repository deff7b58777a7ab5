"""What a value of a configuration may be, each rule with the words that say so."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A test of a value, and in words what passes it."""

    accepts: Callable[[Any], bool]
    valid: str

    def or_null(self) -> Rule:
        """The same, or null."""
        return Rule(lambda value: value is None or self.accepts(value), f"null, {self.valid}")

    def or_list(self) -> Rule:
        """One such value, or a list of them with at least one."""
        return Rule(
            lambda v: self.accepts(v) or (isinstance(v, list) and bool(v) and all(map(self.accepts, v))),
            f"{self.valid}; or a list of such",
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def integer(least: int, most: int = 2**31) -> Rule:
    """A whole number; neither a boolean nor 3.0 is one."""
    return Rule(lambda v: _is_int(v) and least <= v <= most, f"a whole number, {least} or more")


def number(least: float, most: float = math.inf, *, open_below: bool = False) -> Rule:
    """A finite number; ``open_below``: not ``least`` itself."""
    words = f"a number {'above' if open_below else 'from'} {least:g}"
    words += f" to {most:g}" if most < math.inf else ""
    return Rule(
        lambda v: _is_number(v) and (least < v if open_below else least <= v) and v <= most,
        words + (" or more" if most == math.inf and not open_below else ""),
    )


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(lambda v: isinstance(v, str) and v in choices, ", ".join(choices))


def names(pattern: str = r".+", example: str = "a, b") -> Rule:
    """A list of texts that match a regular expression, each from end to end; it may be empty."""
    return Rule(
        lambda v: isinstance(v, list) and all(isinstance(x, str) and re.fullmatch(pattern, x) for x in v),
        f"a list of names such as [{example}]",
    )


def some_of(*choices: str) -> Rule:
    """A list of these words; it may be empty."""
    return Rule(
        lambda v: isinstance(v, list) and all(isinstance(x, str) and x in choices for x in v),
        f"a list of some of {', '.join(choices)}",
    )


def list_of(rule: Rule) -> Rule:
    """A list, perhaps an empty one, of what ``rule`` accepts."""
    return Rule(lambda v: isinstance(v, list) and all(map(rule.accepts, v)), f"a list, each {rule.valid}")


BOOLEAN = Rule(lambda v: isinstance(v, bool), "true, false")
PATH = Rule(lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v, "a path")
# What names a folder must not lead out of where the folder belongs.
FOLDER_NAME = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", v) is not None,
    "letters, digits, '.', '_', '+' and '-'",
)
COUNT, AMOUNT = integer(1), integer(0)
TEXT = Rule(lambda v: isinstance(v, str), "a text")
PROCESSES = Rule(lambda v: v == "auto" or (_is_int(v) and v >= 1), "auto, or 1 and more")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The names that ``given`` most likely stands for, as the end of a message; empty where none is near.

    Examples:
        >>> did_you_mean("prunning.target", ["pruning.target", "seed"]), did_you_mean("x", ["seed"])
        ('; did you mean pruning.target', '')
    """
    known = list(known)
    leaf = given.rpartition(".")[2]
    same = [key for key in known if key.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.75)
    if not set(near) <= set(same):
        near = [*near, *same[:3]]  # as it is without its section, or in another one
    if not near:
        leaves = {key.rpartition(".")[2]: key for key in reversed(known)}
        near = same[:3] or [
            leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)
        ]
    if not near and "." in given:
        sections = {key.partition(".")[0] for key in known if "." in key}
        near = [f"{name}. ..." for name in difflib.get_close_matches(given.partition(".")[0], sections, n=1)]
    return f"; did you mean {' or '.join(near)}" if near else ""
