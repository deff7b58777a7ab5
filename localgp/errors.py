"""Errors that a user can act on.

Every message says what was wrong (with the value), what is valid, and what to do next. The command
line prints them without a traceback (`localgp.cli`); anything else that escapes is a bug.
"""

from collections.abc import Iterable


class LocalGPError(Exception):
    """Base class of every error this library raises on purpose."""


class ConfigError(LocalGPError):
    """A configuration value, or a combination of values, that cannot work."""


class CorpusError(LocalGPError):
    """A corpus on disk that is missing, damaged or inconsistent."""


class AudioError(CorpusError):
    """An audio file or a stretch of it that cannot be read."""


class BackboneError(LocalGPError):
    """A backbone model directory that is missing, incomplete, unsafe or unsupported."""


class CheckpointError(LocalGPError):
    """A run directory or a checkpoint that cannot be used."""


class BusyError(LocalGPError):
    """Another process is at work on the same."""


class NonFiniteError(LocalGPError):
    """A loss or a gradient that is not finite, caught before the optimizer used it."""


class HubError(LocalGPError):
    """A model hub that cannot be reached, or refuses."""


def refuse(problems: Iterable[str]) -> None:
    """Raises one error for all problems, if there are any.

    Raises:
        ConfigError: There are problems; the message has all of them.
    """
    found = list(problems)
    if found:
        raise ConfigError("\n  ".join(found))
