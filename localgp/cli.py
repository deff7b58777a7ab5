"""What the entry points share: Hydra with the top-level ``conf/``, and errors without a traceback."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from localgp.errors import LocalGPError
from localgp.failures import remedy
from localgp.signals import Signals, Stopped
from localgp.validate import check_config

_REPOSITORY_CONF = Path(__file__).parent.parent / "conf"
CONF_DIR = _REPOSITORY_CONF if _REPOSITORY_CONF.is_dir() else Path(__file__).parent / "conf"


def entry_point(function: Callable[[DictConfig], Any], config_name: str = "config") -> Callable[[], None]:
    """Wraps ``function(cfg)`` as a command line program.

    An error of ours ends the program with status 1 and its message on standard error. ``--debug`` (anywhere on
    the command line) shows the traceback instead, and Hydra's own full trace.
    """
    debug = take_debug_flag()

    # Hydra prints a traceback of its own for whatever escapes, so our errors are caught inside of it.
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        with reported(debug):
            if config_name == "config":
                check_config(cfg)
            function(cfg)

    return hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(guarded)


def take_debug_flag() -> bool:
    """Whether ``--debug`` was on the command line; it is taken off."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["HYDRA_FULL_ERROR"] = "1"
    return debug


@contextmanager
def reported(debug: bool = False) -> Iterator[None]:
    """Ends the program with a message where a traceback would say less: our errors and those of the
    surroundings (`localgp.failures`) with status 1, a signal (`localgp.signals`) with 128 and its number."""
    try:
        with Signals():
            yield
    except (Stopped, KeyboardInterrupt) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        if debug:
            traceback.print_exc()
        if str(stopped):
            print(stopped, file=sys.stderr)
        sys.exit(stopped.status)
    except LocalGPError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        message = remedy(error)
        if debug or message is None:
            raise
        print(f"error: {message}\n  (--debug shows where)", file=sys.stderr)
        sys.exit(1)
