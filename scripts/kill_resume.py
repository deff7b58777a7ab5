"""Kills a tiny training at random moments, also while it saves, and compares what it ends in with an unbroken run.

    python scripts/kill_resume.py --kills 50
    python scripts/kill_resume.py --kills 20 --signal TERM

A kill is SIGKILL, or the signal given, at which the training has to save and to end with the status that says so.
Half of the moments are drawn from the whole duration of a run, half within the first tenths of a second after a file
in checkpoints/ changed, which is while it is being written or just after. The last line is `equal: true` when all
weights are bit-equal and the log has every step once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TINY = [
    "corpus.generate.train_segments=10",
    "corpus.generate.dev_segments=3",
    "corpus.generate.test_segments=3",
    "training.batch_size=2",
    "training.val_limit=1",
    "training.val_decode=0",
    "training.checkpoint_every=1",
    "training.log_every=1",
    "training.warmup_steps=2",
    "training.logger=none",
    "device=cpu",
    "threads=1",
    "conf=row05",
]


def overrides(work: Path, exp: str, steps: int, data: Path | None = None) -> list[str]:
    places = [f"data_dir={data or work / 'data'}", f"exp_dir={work / exp}"]
    lengths = [f"training.max_steps={steps}", f"training.val_every={max(1, steps // 2)}"]
    return [*places, *TINY, *lengths]


def run_directory(work: Path, exp: str) -> Path:
    return work / exp / "mini" / "mini" / "row05" / "seed1"


def newest_change(checkpoints: Path) -> float:
    """When a file there was last touched; files come and go while this looks."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(checkpoints):
            with contextlib.suppress(FileNotFoundError):
                newest = max(newest, entry.stat().st_mtime)
    return newest


class Training:
    """A training in a process of its own.

    Args:
        arguments: Overrides.
        log: Its output is appended there.
        fork: Not as the command, but as a fork of a process that has imported everything: seconds less a start.
        environment: Added to the child's, where forked.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        fork: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._process: Any
        if fork:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["localgp.training.fit", "espnet2.s2t.espnet_model", "datasets"])
            self._process = context.Process(target=train_here, args=(arguments, log, environment or {}))
            self._process.start()
            self._pid = self._process.pid
            return
        with log.open("ab") as file:
            command = [sys.executable, "-m", "localgp.train", *arguments]
            popen = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        self._process, self._pid = popen, popen.pid

    @property
    def code(self) -> int | None:
        """Its exit status; None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit status, or None where it still runs after that time."""
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        else:
            self._process.join(seconds)
        return self.code

    def kill(self, signum: int = signal.SIGKILL) -> int | None:
        """Its exit status afterwards."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signum)
        return self.wait()


def train_here(arguments: list[str], log: Path, environment: dict[str, str]) -> None:
    """The command in this process, without its command line."""
    os.environ |= environment
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        from localgp.cli import reported
        from localgp.hub.load import base_config
        from localgp.training.fit import fit

        with reported():
            fit(base_config(*arguments))


def kill_while_saving(
    process: Training, checkpoints: Path, generator: random.Random, saves: int, signum: int
) -> bool:
    """Waits for some checkpoint files to change, then kills within moments; False if the run ended before."""
    seen = newest_change(checkpoints)
    while process.code is None:
        changed = newest_change(checkpoints)
        if changed > seen:
            seen, saves = changed, saves - 1
            if saves <= 0:
                time.sleep(generator.choice([0.0, 0.0, 0.002, 0.01, 0.05]))
                process.kill(signum)
                return True
        time.sleep(0.0005)
    return False


def kill_after(process: Training, seconds: float, signum: int) -> bool:
    if process.wait(seconds) is None:
        process.kill(signum)
        return True
    return False


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two finished runs: names of tensors, and lines of the log."""
    from safetensors.torch import load_file

    one, two = (load_file(run / "checkpoints" / "model.safetensors") for run in (first, second))
    found = sorted(one.keys() ^ two.keys())
    found += [name for name in one.keys() & two.keys() if not one[name].equal(two[name])]
    logs = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for run in (first, second)
    ]
    timing = ("audio_per_second", "data_share", "memory_mib")
    plain = [[{k: v for k, v in line.items() if k not in timing} for line in log] for log in logs]
    if plain[0] != plain[1]:
        found.append("metrics.jsonl")
    return found


def torture(
    work: Path,
    kills: int,
    steps: int,
    seed: int,
    *,
    data: Path | None = None,
    fork: bool = False,
    signum: int = signal.SIGKILL,
) -> dict[str, object]:
    """Runs the unbroken training, then the one that is killed, and compares them."""
    generator = random.Random(seed)
    log = work / "training.log"

    def training(exp: str, length: int = steps) -> Training:
        return Training(overrides(work, exp, length, data), log, fork=fork)

    def to_the_end(exp: str, length: int = steps) -> None:
        if training(exp, length).wait():
            raise SystemExit(f"the training in {work / exp} failed; its output: {log}")

    to_the_end("warm-up", 2)  # it also prepares the corpus, so that what is killed later is training
    began = time.monotonic()
    to_the_end("unbroken")
    duration = time.monotonic() - began
    unbroken, broken = run_directory(work, "unbroken"), run_directory(work, "killed")
    done = saving = starts = 0
    finished: list[Path] = []
    while done < kills:
        if (broken / "checkpoints" / "model.safetensors").exists():
            # It came to its end before all kills were spent: keep it for the comparison, and begin another.
            finished.append(broken.rename(work / f"finished{len(finished)}"))
        starts += 1
        process = training("killed")
        if generator.random() < 0.5:
            hit = kill_while_saving(
                process, broken / "checkpoints", generator, generator.randint(1, 3), signum
            )
            saving += hit
        else:
            hit = kill_after(process, generator.uniform(0.2, 1.1) * duration, signum)
        # Before the command takes signals, while Python starts, the system itself ends it.
        expected = (0, 128 + signum, -signum) if hit else (0,)
        if process.code not in expected:
            raise SystemExit(f"a resumed training failed with {process.code}; its output: {log}")
        done += hit
        print(f"kill {done}/{kills} ({saving} while saving), start {starts}", flush=True)
    to_the_end("killed")
    differing = {name for run in [*finished, broken] for name in differences(unbroken, run)}
    return {
        "kills": done,
        "while_saving": saving,
        "starts": starts + 1,
        "runs_finished": len(finished) + 1,
        "different": sorted(differing),
        "equal": not differing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=12, help="of the training")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument(
        "--data", type=Path, help="data_dir with the tiny corpus prepared; made anew otherwise"
    )
    parser.add_argument("--fork", action="store_true", help="fork instead of the whole command: quicker")
    parser.add_argument("--work", type=Path, help="keep the runs there; removed otherwise")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="kill_resume."))
    work.mkdir(parents=True, exist_ok=True)
    signum = signal.Signals[f"SIG{args.signal}"]
    result = torture(work, args.kills, args.steps, args.seed, data=args.data, fork=args.fork, signum=signum)
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")
    if args.work is None:
        shutil.rmtree(work)
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
