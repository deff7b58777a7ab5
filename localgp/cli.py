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
from typing import TYPE_CHECKING, Any

from localgp import __version__
from localgp.command_line import check_line, in_our_words, parsed
from localgp.conf_files import CONF_DIR
from localgp.errors import ConfigError, LocalGPError
from localgp.failures import remedy
from localgp.help_text import help_text
from localgp.run_argument import with_run
from localgp.settings import SCHEMAS, check
from localgp.signals import Signals, Stopped, requeue

if TYPE_CHECKING:
    from omegaconf import DictConfig


def entry_point(
    function: Callable[[DictConfig], Any], *own: str, config_name: str = "config"
) -> Callable[[], None]:
    """Wraps ``function(cfg)`` as a command line program.

    An error of ours ends the program with status 1 and its message on standard error. ``--debug`` (anywhere on
    the command line) shows the traceback instead.

    Args:
        own: The sections and options that ``--help`` shows first; its text is the docstring of the function's module.
    """
    debug = take_debug_flag()
    source = Path(function.__code__.co_filename)
    named = source.parent.name if source.stem == "__main__" else source.stem
    command = config_name if config_name != "config" else named

    # In a sweep's own process, and in those of other launchers, only this is called.
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        with reported(debug):
            check(cfg, SCHEMAS[config_name])
            function(cfg)

    def program() -> None:
        import hydra
        from hydra.errors import HydraException

        with reported(debug):
            if "--version" in sys.argv[1:]:
                print(f"localgp {__version__}")
                return
            arguments, flags = parsed(sys.argv[1:])
            arguments.config_name = arguments.config_name or config_name
            overrides = list(arguments.overrides)
            if config_name == "config":
                overrides = with_run(overrides, arguments, command)
            if arguments.help:
                about = sys.modules[function.__module__].__doc__ or ""
                print(help_text(command, about, own, overrides, arguments))
                return
            if not arguments.hydra_help:
                overrides = check_line(overrides, arguments)
            if arguments.cfg == "job" and not arguments.resolve:
                flags = [*flags, "--resolve"]
            sys.argv[1:] = [*flags, *overrides]
            os.environ["HYDRA_FULL_ERROR"] = (
                "1"  # or Hydra prints a traceback of its own, and ends the process
            )
            try:
                hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(guarded)()
            except HydraException as error:
                raise ConfigError(in_our_words(error)) from error

    return program


def take_debug_flag() -> bool:
    """Whether ``--debug`` was on the command line; it is taken off."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
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
            again = f"; {requeue()}" if stopped.signum == signal.SIGUSR1 else ""
            print(f"{stopped}{again}", file=sys.stderr)
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
