"""Subtitles in two languages for every recording of a folder, from Python.

python examples/subtitles.py recordings/ --model exp/mini/mini/row05/seed1 --spoken deu --written deu fra
"""

from __future__ import annotations

import argparse
from pathlib import Path

import localgp
from localgp.errors import AudioError
from localgp.run import write_atomically

ENDINGS = (".m4a", ".mp3", ".wav", ".flac", ".ogg", ".mp4", ".webm")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--spoken", help="left out: detected in each recording")
    parser.add_argument("--written", nargs="+", default=["deu"])
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"no directory {args.folder}")

    model = localgp.load(args.model)
    files = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in ENDINGS)
    for target in args.written:
        for index, result in model.transcribe_each(
            files, args.spoken, target, timestamps=True, progress=True
        ):
            if isinstance(result, AudioError):
                print(f"left out: {result}")
                continue
            subtitles = files[index].with_suffix(f".{target}.srt")
            write_atomically(subtitles, result.format("srt"))
            print(f"{subtitles}: {len(result.segments)} subtitles, {result.language} spoken")


if __name__ == "__main__":
    main()
