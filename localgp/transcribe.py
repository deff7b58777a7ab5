"""``python -m localgp.transcribe FILE... --model DIR --src deu --tgt fra``: recordings to text or subtitles.

Exit status: 0 all files; 1 an error; 2 a wrong command line; 3 some files failed (``--keep-going``);
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localgp.cli import reported, take_debug_flag
from localgp.errors import AudioError, ConfigError
from localgp.transcription.formats import FORMATS, SUFFIXES, TIMED

SOME_FAILED = 3


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localgp.transcribe",
        description="Transcribe or translate recordings of any length and any format that FFmpeg reads.",
        epilog="Exit status: 0 all files, 1 error, 2 wrong command line, 3 some files failed, 130 interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio or video files")
    parser.add_argument(
        "--model",
        default="embedded",
        help="a run directory, a packed model, an ESPnet S2T directory, a Hugging Face id, or embedded (mini backbone)",
    )
    parser.add_argument(
        "--src", help="language that is spoken, such as deu or de; left out: detected per file"
    )
    parser.add_argument("--tgt", help="language to write; left out: the spoken one, a transcript")
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the output")
    parser.add_argument("--output-dir", type=Path, help="one file per input there; left out: standard output")
    parser.add_argument(
        "--timestamps", action="store_true", help="predict times in recordings that fit one window too"
    )
    parser.add_argument(
        "--windows",
        choices=("timestamps", "pauses"),
        help="how a long recording is walked through: where predicted times say (OWSM's way), or cut at pauses; "
        "left out: at pauses for embedded and for what was fine-tuned here, which shows no times; by times for others",
    )
    parser.add_argument("--max-window", type=float, help="seconds; longest piece with --windows pauses")
    parser.add_argument("--batch", type=int, default=8, help="windows, of all files, decoded together")
    parser.add_argument("--beam", type=int, help="left out: as the model was evaluated")
    parser.add_argument("--ctc-weight", type=float, help="of CTC in transcripts; left out: as evaluated")
    parser.add_argument("--length-bonus", type=float, help="added per token; left out: as evaluated")
    parser.add_argument("--maxlenratio", type=float, help="longest output; left out: as evaluated")
    parser.add_argument(
        "--gates", choices=("trained", "open"), default="trained", help="open: the dense model"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--keep-going", action="store_true", help="go on after a file that cannot be read")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.format in TIMED and args.output_dir is None and len(args.files) > 1:
        parser.error(f"--format {args.format} of several files needs --output-dir")
    missing = [name for name in args.files if not Path(name).is_file()]
    folders = [name for name in missing if Path(name).is_dir()]
    if folders and not args.keep_going:
        raise AudioError(f"{folders[0]} is a directory; give the files in it: {Path(folders[0]) / '*.wav'}")
    if missing and not args.keep_going:
        raise AudioError(f"no such audio file: {', '.join(missing[:5])}; --keep-going transcribes the others")
    places = output_places(args.files, args.output_dir, args.format) if args.output_dir else None
    decoding = {
        name: value
        for name in ("beam", "ctc_weight", "length_bonus", "maxlenratio")
        if (value := getattr(args, name)) is not None
    }
    import localgp
    from localgp.run import write_atomically

    if args.threads is not None:
        import torch

        if args.threads < 1:
            raise ConfigError(f"--threads is {args.threads}; valid: 1 or more")
        torch.set_num_threads(args.threads)
    model = localgp.load(args.model, device=args.device, precision=args.precision, gates=args.gates)
    results = model.transcribe_each(
        args.files,
        args.src,
        args.tgt,
        batch=args.batch,
        timestamps=args.timestamps or args.format in TIMED or None,
        # Who asks for predicted times gets them, whatever the model is best at.
        windows=args.windows or ("timestamps" if args.timestamps else None),
        max_window=args.max_window,
        progress=not args.quiet,
        **decoding,
    )
    printed = _InOrder(args.files, args.format)
    failed = 0
    for index, result in results:
        if isinstance(result, AudioError):
            if not args.keep_going:
                raise result
            failed += 1
            print(f"error: {result}", file=sys.stderr)
            printed.put(index, None)
        elif places is None:
            printed.put(index, result)
        else:
            write_atomically(places[index], result.format(args.format))
            print(f"{args.files[index]} -> {places[index]}", file=sys.stderr)
    if failed == len(args.files):
        return 1
    return SOME_FAILED if failed else 0


def output_places(files: Sequence[str], directory: Path, form: str) -> list[Path]:
    """One path per file: ``<stem>.<suffix>``, or the whole name where two files share a stem.

    Raises:
        ConfigError: Two files of the same name.
    """
    suffix = SUFFIXES[form]
    stems = [Path(name).stem for name in files]
    places = [
        directory / ((Path(name).name if stems.count(stem) > 1 else stem) + suffix)
        for name, stem in zip(files, stems, strict=True)
    ]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise ConfigError(
            f"several files would be written to {', '.join(twice[:3])}; transcribe them in separate commands"
        )
    return places


class _InOrder:
    """Prints transcripts in the order of the files, each as soon as those before it are out."""

    def __init__(self, files: Sequence[str], form: str) -> None:
        self._files, self._form, self._next = files, form, 0
        self._done: dict[int, Any] = {}

    def put(self, index: int, transcript: Any) -> None:
        self._done[index] = transcript
        while self._next in self._done:
            transcript = self._done.pop(self._next)
            if transcript is not None:
                self._print(transcript)
            self._next += 1

    def _print(self, transcript: Any) -> None:
        if len(self._files) > 1 and self._form == "text":
            print(f"== {transcript.source}")
        if len(self._files) > 1 and self._form == "json":  # JSON lines
            import json

            print(json.dumps(transcript.as_dict(), ensure_ascii=False), flush=True)
        else:
            print(transcript.format(self._form), end="", flush=True)


if __name__ == "__main__":
    debug = take_debug_flag()
    with reported(debug):
        sys.exit(main())
