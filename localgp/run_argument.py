"""A run's directory on the command line, in place of the options that made the run:
``python -m localgp.evaluate exp/mini/mini/row05/seed1 decode.beam=1``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from localgp.command_line import as_override, composing
from localgp.conf_files import choices
from localgp.config_parts import STORED, flat, with_parts
from localgp.errors import CheckpointError, ConfigError
from localgp.run import Run
from localgp.settings import is_option
from localgp.stored import run_config, runs_below, section

_CHOSEN = ("conf", "corpus", "backbone", "training", "debug")  # groups that are settled by what the run is


def with_run(overrides: Sequence[str], arguments: Namespace, command: str) -> list[str]:
    """The overrides, with a run's directory among them replaced by what makes the run; others stand on top of it.

    Raises:
        CheckpointError: It is no run, or one that lies elsewhere than its configuration says.
        ConfigError: Several, or options that say again what the run is.
    """
    given = [item for item in overrides if _is_directory(item)]
    others = [item for item in overrides if item not in given]
    if not given:
        return others
    if len(given) > 1:
        raise ConfigError(f"give one run, not {', '.join(given)}")
    again = [item for item in others if item.partition("=")[0].lstrip("+~") in _CHOSEN]
    if again:
        raise ConfigError(f"{given[0]} says by itself what it is; leave out {', '.join(again)}")
    path = Path(given[0])
    if command == "report" and not (path / "config.yaml").is_file() and path.is_dir():
        return [f"exp_dir={as_override(str(path))}", *others]
    made = options_of(path, arguments)
    bench = next((item.partition("=")[2] for item in others if item.startswith("bench=")), None)
    if command == "bench":
        made += (
            [f"bench.run={as_override(str(path))}"]
            if bench in ("encoder", "decoder")
            else _among_runs(path, bench)
        )
    return [*made, *others]


def _is_directory(item: str) -> bool:
    if "=" in item:
        return Path(item, "config.yaml").is_file()
    return not item.startswith("~")


def _among_runs(path: Path, bench: str | None) -> list[str]:
    """For ``bench=runs``, which times the first seed of an experiment."""
    if bench not in (None, "runs"):
        raise ConfigError(f"bench={bench} is about no run; give bench=runs, encoder or decoder, or no run")
    first = runs_below(path.parent)[0]
    if first.name != path.name:
        raise ConfigError(f"bench=runs times the first seed of an experiment; give {first}")
    return [*([] if bench else ["bench=runs"]), f"bench.confs=[{as_override(path.parent.name)}]"]


def options_of(path: Path, arguments: Namespace) -> list[str]:
    """Overrides that give a run's configuration.

    Raises:
        CheckpointError: There is no run, or one that lies elsewhere than its configuration says.
    """
    if not (path / "config.yaml").is_file():
        below = ", ".join(map(str, runs_below(path)[:8])) if path.is_dir() else ""
        what = (
            "is no run's directory" if path.is_dir() else "is neither an option (key=value) nor a directory"
        )
        raise CheckpointError(f"{path} {what}; give {below or 'exp/<corpus>/<backbone>/<conf>/seed<k>'}")
    config = run_config(path)
    lacking = [
        key for key in ("name", "seed", "pruning", "backbone", "corpus", "training") if key not in config
    ]
    if lacking:
        raise CheckpointError(
            f"{path / 'config.yaml'}: not a run's configuration, {', '.join(lacking)} missing"
        )
    groups = [f"{group}={choice}" for group, choice in _groups(config).items()]
    place = path if len(path.parts) > 4 else path.absolute()
    places = [f"exp_dir={as_override(str(place.parents[3]))}"]
    if "data_dir" in config:
        places.append(f"data_dir={as_override(config['data_dir'])}")
    with composing(arguments) as composed:
        base: Any = flat(OmegaConf.to_container(composed([*groups, *places]), resolve=True))  # type: ignore[arg-type]
        made = [
            f"{'' if key in base else '++'}{key}={as_override(value)}"
            for key, value in flat(with_parts(config, *STORED)).items()
            if key != "data_dir" and base.get(key) != value
        ]
        strange = [item for item in made if not is_option(item.partition("=")[0].lstrip("+"))]
        if strange:
            raise CheckpointError(
                f"{path / 'config.yaml'} has {', '.join(strange)}, unknown here; it was written by another localgp: "
                "update it"
            )
    belongs = Run(OmegaConf.create({**config, "exp_dir": str(place.parents[3])})).path
    if belongs.absolute() != path.absolute():
        raise CheckpointError(
            f"{path} is the run that belongs at {belongs}; move it there, or give its options"
        )
    return [*groups, *places, *made]


def _groups(config: dict[str, Any]) -> dict[str, str]:
    """The choices that come nearest to a stored configuration, and have the same options."""
    corpus = section(config, "corpus")
    made = "mini" if corpus.get("generate") else "europarl_st"
    nearest = {
        "conf": (config["name"], "row01"),
        "corpus": ("manifest" if corpus.get("reader") == "manifest" else made, "manifest"),
        "backbone": (section(config, "backbone").get("name"), "path"),
        "training": (section(config, "training").get("name"), "mini"),
    }
    known = choices()
    return {group: name if name in known[group] else other for group, (name, other) in nearest.items()}
