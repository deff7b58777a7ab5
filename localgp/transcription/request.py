"""What can be asked of a model, checked by its vocabulary alone, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localgp.errors import ConfigError, refuse

if TYPE_CHECKING:
    from localgp.backbones.base import Tokens

TASKS: dict[str, str | None] = {
    "transcribe": None,
    "translate": "eng",
}  # of every model, and what is then written


def windows_of(tokenizer: Tokens) -> tuple[str, str]:
    """How a model can walk through a long recording; the first is its own way."""
    return ("overlap" if tokenizer.long_form.context else "timestamps", "pauses")


def check_request(
    tokenizer: Tokens,
    window_seconds: float,
    *,
    src: str | None = None,
    tgt: str | None = None,
    batch: int = 1,
    windows: str | None = None,
    max_window: float | None = None,
    ctc_weight: float = 0.0,
    temperatures: Sequence[float] | None = None,
    task: str | None = None,
) -> float:
    """Arguments as of `localgp.transcription.transcriber.Transcriber.transcribe_each`.

    Args:
        tokenizer: The model's.
        window_seconds: What it hears at once.

    Returns:
        The longest piece where a recording is cut at pauses, in seconds.

    Raises:
        ConfigError: All that cannot be.
    """
    problems = []
    if batch < 1:
        problems.append(f"batch is {batch}; valid: 1 or more")
    if windows is not None and windows not in windows_of(tokenizer):
        problems.append(f"windows is {windows!r}; valid: {', '.join(windows_of(tokenizer))}")
    longest = window_seconds if max_window is None else float(max_window)
    if not 1.0 <= longest <= window_seconds:
        problems.append(f"max_window is {max_window}; valid: 1 to this model's {window_seconds:g} s")
    if ctc_weight > 0 and tokenizer.blank < 0:
        problems.append(f"ctc_weight is {ctc_weight}, but the model has no CTC; set it to 0")
    if temperatures is not None and (
        not temperatures or not all(0 <= temperature < math.inf for temperature in temperatures)
    ):
        problems.append(
            f"temperatures are {list(temperatures)}; valid: one or more of 0 (the best tokens) or above (drawn)"
        )
    try:
        tgt = target_of(tokenizer, tgt, task)
    except ConfigError as error:
        problems.append(str(error))
    for spoken, written in ((src, src), (src or tokenizer.languages[0], tgt)):
        if spoken is not None and written is not None:
            try:
                tokenizer.prompt(spoken, written)
            except ConfigError as error:
                problems.append(str(error))
    refuse(dict.fromkeys(problems))
    return longest


def target_of(tokenizer: Tokens, tgt: str | None, task: str | None) -> str | None:
    """What is to be written, as `Tokens.prompt` takes it; None for the language that is spoken.

    Args:
        tgt: A language.
        task: One of `TASKS`, or of the model's own.

    Raises:
        ConfigError: A task that the model does not have, or one beside a language.
    """
    if task is None:
        return tgt
    if tgt is not None:
        raise ConfigError(f"task {task} says what is written; leave the target {tgt} out")
    if task in TASKS:
        return TASKS[task]
    if task not in tokenizer.tasks:
        raise ConfigError(f"task is {task!r}; this model has {', '.join([*TASKS, *tokenizer.tasks])}")
    return f"<{task}>"
