"""``python -m localgp.pack RUN``: a trained model as a Hugging Face folder, OWSM also as an ESPnet archive.

python -m localgp.pack exp/mini/mini/row05/seed1
python -m localgp.pack conf=row05                     the run that these overrides name
python -m localgp.pack push exp/packed/NAME OWNER/NAME
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from localgp.cli import reported, take_debug_flag
from localgp.errors import ConfigError
from localgp.hub.load import base_config
from localgp.hub.pack import pack, push
from localgp.run import Run

FORMATS = ("espnet", "huggingface")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localgp.pack",
        description="Pack a trained run. `python -m localgp.pack push FOLDER OWNER/NAME` uploads a packed folder.",
    )
    parser.add_argument(
        "run",
        nargs="+",
        metavar="RUN",
        help="a run directory, or the overrides it was trained with: conf=row05 seed=2",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("exp/packed"),
        help="directory for the packed model (default: exp/packed)",
    )
    parser.add_argument(
        "--format", choices=(*FORMATS, "both"), default="both", help="both: as far as there are two"
    )
    parser.add_argument("--name", help="of the packed model (default: localgp-BACKBONE-CONF-CORPUS-SEED)")
    parser.add_argument(
        "--licence", "--license", help="identifier of the hub's (default: by backbone and corpus)"
    )
    parser.add_argument("--without-scores", action="store_true", help="pack a run that was not evaluated")
    parser.add_argument("--overwrite", action="store_true", help="replace what is packed under this name")
    return parser


def build_push_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localgp.pack push", description="Upload a packed folder to the Hugging Face hub."
    )
    parser.add_argument("folder", type=Path, help="made by python -m localgp.pack")
    parser.add_argument("repository", help="OWNER/NAME")
    parser.add_argument("--private", action="store_true")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] == "push":
        args = build_push_parser().parse_args(given[1:])
        print(push(args.folder, args.repository, private=args.private))
        return 0
    args = build_parser().parse_args(given)
    run = run_directory(args.run)

    packed = pack(
        run,
        args.output,
        formats=None if args.format == "both" else (args.format,),
        name=args.name,
        licence=args.licence,
        without_scores=args.without_scores,
        overwrite=args.overwrite,
    )
    for name, path in packed.items():
        print(f"{name:12} {path}")
    return 0


def run_directory(given: Sequence[str]) -> Path:
    """The run that a path, or overrides, name.

    Raises:
        ConfigError: Neither, or both.
    """
    if len(given) == 1 and "=" not in given[0]:
        return Path(given[0])
    wrong = [item for item in given if "=" not in item]
    if wrong:
        raise ConfigError(
            f"give one run directory, or overrides such as conf=row05 seed=2; not {', '.join(wrong)}"
        )
    from hydra.errors import HydraException

    try:
        return Run(base_config(*given)).path
    except HydraException as error:
        raise ConfigError(f"{' '.join(given)}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    debug = take_debug_flag()
    with reported(debug):
        sys.exit(main())
