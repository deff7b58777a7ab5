"""``python -m localgp COMMAND ...``: the same as ``python -m localgp.COMMAND ...``; alone, what there is to run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from localgp import __version__

COMMANDS = {
    "prepare": "corpus to a validated, cached dataset",
    "train": "fine-tune; resumes by itself",
    "evaluate": "decode all tasks of a trained run and score it",
    "report": "everything under exp/ to one HTML page and tables",
    "analyze": "what the gates of an evaluated run do",
    "flops": "encoder GFLOPs without weights or data",
    "bench": "speed and memory, against ESPnet and our own dense path",
    "transcribe": "recordings to text, JSON or subtitles",
    "pack": "a run as an ESPnet archive and a Hugging Face folder",
    "speechprune": "training-free token pruning of speech LLMs",
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command, or prints what there are."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    command = arguments[0].removeprefix("localgp.")
    if command in ("-V", "--version", "version"):
        print(f"localgp {__version__}")
        return 0
    if command not in COMMANDS:
        from localgp.option_rules import did_you_mean

        near = did_you_mean(command, COMMANDS)
        print(f"error: localgp has no command {arguments[0]}{near}\n\n{overview()}", file=sys.stderr)
        return 2
    import runpy

    module = f"localgp.{command}"
    sys.argv = [module, *arguments[1:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def overview() -> str:
    """The commands, a line each."""
    lines = [f"localgp {__version__}: python -m localgp COMMAND ...; COMMAND --help says more", ""]
    return "\n".join(lines + [f"  {name:<12} {does}" for name, does in COMMANDS.items()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
