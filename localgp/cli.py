"""What the entry points share: Hydra with the top-level ``conf/``, and errors without a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from localgp.errors import LocalGPError

_REPOSITORY_CONF = Path(__file__).parent.parent / "conf"
CONF_DIR = _REPOSITORY_CONF if _REPOSITORY_CONF.is_dir() else Path(__file__).parent / "conf"


def entry_point(function: Callable[[DictConfig], Any], config_name: str = "config") -> Callable[[], None]:
    """Wraps ``function(cfg)`` as a command line program.

    An error of ours ends the program with status 1 and its message on standard error. ``--debug`` (anywhere on
    the command line) shows the traceback instead, and Hydra's own full trace.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["HYDRA_FULL_ERROR"] = "1"

    # Hydra prints a traceback of its own for whatever escapes, so our errors are caught inside of it.
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        try:
            function(cfg)
        except LocalGPError as error:
            if debug:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            if debug:
                raise
            print("interrupted; the same command goes on from what is saved", file=sys.stderr)
            sys.exit(130)

    return hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(guarded)
