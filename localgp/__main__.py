"""``python -m localgp``: what there is to run."""

from __future__ import annotations

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


def main() -> None:
    """Prints the commands."""
    print(f"localgp {__version__}: python -m localgp.COMMAND --help\n")
    for name, does in COMMANDS.items():
        print(f"  localgp.{name:<12} {does}")


if __name__ == "__main__":
    main()
