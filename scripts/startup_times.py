"""How long commands take before their work: a short recording transcribed, and wrong options refused.

    python scripts/startup_times.py [--rounds 3] [--run exp/mini/mini/row05/seed1]

Every line is a command in a process of its own, the fastest of some rounds: seconds on the clock, and of them the
processor's, which a busy machine changes less. The goals are 5 s for the recording and 2 s for what is refused, on two
cores. With ``--run``, options of its evaluation are refused too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

WORK, REFUSAL = 5.0, 2.0  # s


def commands(audio: str, run: str | None) -> list[tuple[float, str, list[str]]]:
    """Goal, what it is, and the arguments behind ``python -m localgp.``."""
    transcribe = ["transcribe", audio, "--src", "deu", "--quiet"]
    wrong = {
        "beam 0": [*transcribe, "--beam", "0"],
        "a language that the model lacks": [*transcribe, "--tgt", "eng"],
        "no such recording": ["transcribe", f"{audio}.gone", "--src", "deu"],
        "no such model": [*transcribe, "--model", "no/such/model"],
        "a folder that is no model": [*transcribe, "--model", "."],
        "evaluate, no such split": ["evaluate", "evaluate.split=tset"],
        "evaluate, beam 0": ["evaluate", "decode.beam=0"],
        "evaluate, no such run": ["evaluate", "conf=row05", "exp_dir=no/such/exp"],
        "train, no such option": ["train", "no_such=1"],
    }
    if run is not None:
        wrong["evaluate, no such checkpoint"] = ["evaluate", run, "evaluate.checkpoint=gone.safetensors"]
    found = [(WORK, "transcribe 4 s of audio", transcribe)]
    return found + [(REFUSAL, name, arguments) for name, arguments in wrong.items()]


def measure(arguments: list[str]) -> tuple[float, float, int]:
    """Seconds on the clock and of the processor, and the exit status."""
    before, start = os.times(), time.perf_counter()
    status = subprocess.run(
        [sys.executable, "-m", f"localgp.{arguments[0]}", *arguments[1:]], capture_output=True
    )
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, processor, status.returncode


def write_audio(path: Path) -> None:
    """Four seconds of a tone that comes and goes."""
    time_N = np.arange(64_000) / 16_000
    samples_N = (8000 * np.sin(440 * np.pi * time_N) * np.sin(2 * np.pi * time_N)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples_N.tobytes())


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; 1 where a command did not do what it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each command; the fastest counts (3)")
    parser.add_argument("--run", help="an evaluated run directory")
    args = parser.parse_args(arguments)
    failed = False
    print(f"{'command':<36}{'seconds':>9}{'processor':>11}{'goal':>7}")
    with tempfile.TemporaryDirectory() as temporary:
        audio = Path(temporary) / "audio.wav"
        write_audio(audio)
        for goal, name, command in commands(str(audio), args.run):
            rounds = [measure(command) for _ in range(args.rounds)]
            wall, processor = min(r[0] for r in rounds), min(r[1] for r in rounds)
            wrong = any((r[2] == 0) != (goal == WORK) for r in rounds)
            failed |= wrong
            note = "  wrong exit status" if wrong else "" if wall <= goal else "  over"
            print(f"{name:<36}{wall:>9.2f}{processor:>11.2f}{goal:>7g}{note}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
