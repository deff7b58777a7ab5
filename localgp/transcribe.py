"""``python -m localgp.transcribe FILE... --model DIR --src deu --tgt fra``: recordings to text or subtitles.

Exit status: 0 all files; 1 an error; 2 a wrong command line; 3 some files failed (``--keep-going``);
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import localgp
from localgp.cli import reported, take_debug_flag
from localgp.corpora.languages import name_of
from localgp.errors import AudioError, ConfigError
from localgp.hub.load import describe
from localgp.signals import Stopped
from localgp.transcription.formats import FORMATS, SUFFIXES, TIMED, Transcript
from localgp.transcription.inputs import Input, find_inputs, readable
from localgp.transcription.outputs import Outputs, model_identity
from localgp.transcription.request import TASKS, check_request

SOME_FAILED = 3


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m localgp.transcribe",
        description="Transcribe or translate recordings of any length and any format that FFmpeg reads.",
        epilog="Exit status: 0 all files, 1 error, 2 wrong command line, 3 some files failed, 130 interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="audio or video files, folders with --recursive, - for standard input",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="take the recordings in folders and below them"
    )
    parser.add_argument(
        "--model",
        default="embedded",
        help="a run directory, a packed model, an ESPnet S2T directory, a Hugging Face id, or embedded (mini backbone)",
    )
    parser.add_argument(
        "--src", help="language that is spoken, such as deu or de; left out: detected per file"
    )
    parser.add_argument("--tgt", help="language to write; left out: the spoken one, a transcript")
    parser.add_argument(
        "--task",
        help="instead of --tgt: transcribe, translate (into English, as --tgt eng), or one that the model has by name, "
        "such as POWSM's pr, g2p and p2g",
    )
    parser.add_argument(
        "--before",
        metavar="TEXT",
        default="",
        help="text to give every window as the one before it, such as what POWSM's g2p is to write the phones of",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the output")
    parser.add_argument("--output-dir", type=Path, help="one file per input there; left out: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that are there already")
    parser.add_argument(
        "--full-names",
        action="store_true",
        help="name outputs a.wav.txt instead of a.txt, where endings differ",
    )
    parser.add_argument(
        "--timestamps", action="store_true", help="predict times in recordings that fit one window too"
    )
    parser.add_argument(
        "--windows",
        choices=("timestamps", "pauses", "overlap"),
        help="how a long recording is walked through: where predicted times say (OWSM's way), cut at pauses, or in "
        "windows that overlap (OWSM-CTC's way); "
        "left out: at pauses for embedded and for what was fine-tuned here, which shows no times; by times for others",
    )
    parser.add_argument(
        "--temperatures",
        type=_numbers,
        metavar="T,T,...",
        help="of windows with predicted times, tried until the text can be trusted: 0 takes the best tokens, above 0 "
        "draws them; left out: 0,0.2,...,1 for Whisper, 0 for others",
    )
    parser.add_argument(
        "--previous", action="store_true", help="give a window with predicted times the text before it"
    )
    parser.add_argument("--max-window", type=float, help="seconds; longest piece with --windows pauses")
    parser.add_argument("--batch", type=int, default=8, help="windows, of all files, decoded together")
    parser.add_argument("--beam", type=int, help="left out: what the model was trained with")
    parser.add_argument("--ctc-weight", type=float, help="of CTC in transcripts; left out: as trained with")
    parser.add_argument("--length-bonus", type=float, help="added per token; left out: as trained with")
    parser.add_argument("--maxlenratio", type=float, help="longest output; left out: as trained with")
    parser.add_argument(
        "--gates", choices=("trained", "open"), default="trained", help="open: the dense model"
    )
    parser.add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="MODULE.CLASS",
        help="gate policy or context extractor that a packed or downloaded model may import",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "int8", "auto"),
        default="fp32",
        help="arithmetic; int8: weights in 8 bits, on CPUs",
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--keep-going", action="store_true", help="go on after a file that cannot be read")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _numbers(given: str) -> list[float]:
    return [float(number) for number in given.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = build_parser()
    args = parser.parse_intermixed_args(arguments)  # files before and behind options
    if args.task and args.tgt:
        parser.error(f"--task {args.task} says what is written; leave --tgt {args.tgt} out")
    if args.task in TASKS:  # outputs are the same, however it was said
        args.task, args.tgt = None, TASKS[args.task]
    inputs = find_inputs(args.files, args.recursive)
    if args.format in TIMED and args.output_dir is None and len(inputs) > 1:
        parser.error(f"--format {args.format} of several files needs --output-dir")
    if args.threads is not None and args.threads < 1:
        raise ConfigError(f"--threads is {args.threads}; valid: 1 or more")
    decoding = {
        name: value
        for name in ("beam", "ctc_weight", "length_bonus", "maxlenratio")
        if (value := getattr(args, name)) is not None
    }
    problems = {index: problem for index, item in enumerate(inputs) if (problem := item.problem())}
    _refuse(problems, args.keep_going)
    _check(args, decoding)
    outputs = _outputs(args, inputs, decoding) if args.output_dir else None
    if outputs is not None:
        problems = outputs.problems | problems
        _refuse(problems, args.keep_going)
    for problem in problems.values():
        print(f"error: {problem}", file=sys.stderr)
    finished = outputs.finished if outputs is not None else set()
    if finished:
        print(
            f"{len(finished)} of {len(inputs)} outputs are there already, made from the same recordings with the same "
            "settings; --overwrite makes them anew",
            file=sys.stderr,
        )
    chosen = [index for index in range(len(inputs)) if index not in problems and index not in finished]
    failed = len(problems)
    if chosen:
        failed += _transcribe(args, inputs, chosen, outputs, decoding)
    if failed == len(inputs):
        return 1
    return SOME_FAILED if failed else 0


def _outputs(args: argparse.Namespace, inputs: Sequence[Input], decoding: dict[str, Any]) -> Outputs:
    named = ("timestamps", "windows", "max_window", "gates", "temperatures", "previous")
    settings = {name: getattr(args, name) for name in named}
    languages = {name: code and name_of(code) for name, code in (("src", args.src), ("tgt", args.tgt))}
    asked = {name: value for name in ("task", "before") if (value := getattr(args, name))}
    return Outputs(
        args.output_dir,
        inputs,
        SUFFIXES[args.format],
        settings | languages | asked | decoding | {"model": model_identity(args.model)},
        overwrite=args.overwrite,
        full_names=args.full_names,
    )


def _refuse(problems: dict[int, str], keep_going: bool) -> None:
    if problems and not keep_going:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        listed = "\n  ".join(list(problems.values())[:5])
        raise AudioError(f"{listed}{more}\n  --keep-going transcribes the others")


def _check(args: argparse.Namespace, decoding: dict[str, Any]) -> None:
    """Refuses what the model cannot do, before its weights are read and before anything is written."""

    model = describe(args.model, args.gates, args.extension)
    options = replace(model.options, **decoding)
    check_request(
        model.tokenizer,
        model.window_seconds,
        src=args.src,
        tgt=args.tgt,
        batch=args.batch,
        windows=args.windows,
        max_window=args.max_window,
        ctc_weight=options.ctc_weight,
        temperatures=args.temperatures,
        task=args.task,
    )


def _transcribe(
    args: argparse.Namespace,
    inputs: Sequence[Input],
    chosen: Sequence[int],
    outputs: Outputs | None,
    decoding: dict[str, Any],
) -> int:
    """Loads the model and writes or prints what it makes of the chosen inputs; how many failed."""

    if args.threads is not None:
        import torch

        torch.set_num_threads(args.threads)
    model = localgp.load(
        args.model,
        device=args.device,
        precision=args.precision,
        gates=args.gates,
        extensions=args.extension,
    )
    results = model.transcribe_each(
        [inputs[index].path for index in chosen],
        args.src,
        args.tgt,
        batch=args.batch,
        timestamps=args.timestamps or args.format in TIMED or None,
        # Who asks for predicted times gets them, whatever the model is best at.
        windows=args.windows or ("timestamps" if args.timestamps else None),
        max_window=args.max_window,
        temperatures=args.temperatures,
        previous=args.previous,
        task=args.task,
        before=args.before,
        progress=not args.quiet,
        **decoding,
    )
    printed = _InOrder(len(inputs), args.format)
    failed = 0
    warned: set[str] = set()
    try:
        for number, result in results:
            index = chosen[number]
            if isinstance(result, Transcript):
                for warning in result.warnings:
                    if warning in warned:
                        continue
                    print(f"warning: {result.source}: {warning}", file=sys.stderr)
                    if warning.startswith("this model "):  # it holds for every file and is said once
                        warned.add(warning)
            if isinstance(result, AudioError):
                if not args.keep_going:
                    raise result
                failed += 1
                print(f"error: {result}", file=sys.stderr)
                printed.put(number, None)
            elif outputs is None:
                printed.put(number, result)
            else:
                place = outputs.write(index, result.format(args.format))
                print(f"{readable(inputs[index].path)} -> {readable(place)}", file=sys.stderr)
    except (Stopped, KeyboardInterrupt) as error:
        said = "what is printed is complete; with --output-dir a stopped command can go on"
        if outputs is not None:
            done = f"{len(outputs.written)} of {len(chosen)} outputs are written"
            said = f"{done}; the same command goes on with the others"
            said += " (without --overwrite)" if args.overwrite else ""
        raise Stopped(getattr(error, "signum", signal.SIGINT), said) from error
    return failed


class _InOrder:
    """Prints transcripts in the order of the files, each as soon as those before it are out."""

    def __init__(self, files: int, form: str) -> None:
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
        if self._files > 1 and self._form == "text":
            print(f"== {transcript.source}")
        if self._files > 1 and self._form == "json":  # JSON lines
            print(json.dumps(transcript.as_dict(), ensure_ascii=False), flush=True)
        else:
            print(transcript.format(self._form), end="", flush=True)


if __name__ == "__main__":
    debug = take_debug_flag()
    with reported(debug):
        sys.exit(main())
