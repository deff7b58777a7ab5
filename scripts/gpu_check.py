"""Checks on a GPU what the tests check on a CPU, and times it.

    python scripts/gpu_check.py                      # all parts: some minutes on one card
    python scripts/gpu_check.py --only kernels paths
    python scripts/gpu_check.py --out check.json

Every part has a process and a time limit of its own, and all together have eight minutes: what they do not reach counts
as failed. The exit status is 0 if all parts passed; on a machine without a card the parts that need none are run. The
JSON file has, per part, every comparison with its limit and every figure;
`python -m localgp.report report.gpu=gpu_check.json` makes tables of it.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks for devices without touching one
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# What is imported on the way, by distribution, beyond what comes with PyTorch.
NEEDED = {
    "espnet2": "espnet",
    "omegaconf": "omegaconf",
    "hydra": "hydra-core",
    "lightning": "lightning",
    "torchaudio": "torchaudio",
    "sentencepiece": "sentencepiece",
    "scipy": "scipy",
    "yaml": "pyyaml",
    "pytest": "pytest",
    "transformers": "transformers",
}
MODELS = ("owsm_v3.1_medium", "owsm_v3.1_small", "whisper_base")
MINUTES = 8.0


def parts() -> list[Any]:
    """In the order in which they are run."""
    from gpu import compiled, graphs, right, timings, whole
    from gpu.boxed import Part

    checks = [
        Part("interpreter", right.interpreted, 90, needs_card=False),
        Part("compiled", compiled.compiled, 120, needs_card=False),
        Part("counts", right.counts, 90, needs_card=False),
        Part("environment", right.environment, 60),
        Part("kernels", right.kernels, 60),
        Part("against-cpu", right.against_cpu, 60),
        Part("paths", right.paths, 90),
        Part("ragged", right.ragged, 60),
        Part("decoding", whole.decoding, 90),
        Part("training", whole.training, 90),
    ]
    short = {name: name.rsplit("_", 1)[1] for name in MODELS}
    checks += [Part(f"time-encode-{short[name]}", timings.encoders(name), 90) for name in MODELS]
    checks += [Part(f"graphs-{short[name]}", graphs.graphs(name), 60) for name in (MODELS[0], MODELS[2])]
    checks.append(Part("graphs-decode-medium", graphs.searches(MODELS[0]), 60))
    checks.append(Part("time-decode-medium", timings.decoder(MODELS[0]), 90))
    checks += [Part(f"time-train-{short[name]}", timings.training(name), 60) for name in MODELS]
    return checks


def missing() -> list[str]:
    """Distributions that are not installed."""
    return [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"), help="the report")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together")
    parser.add_argument("--list", action="store_true", help="print the parts' names")
    given = parser.parse_args(arguments)
    if absent := missing():
        print(
            f"error: not installed: {', '.join(absent)}; pip install them, or carry their wheels",
            file=sys.stderr,
        )
        return 2
    try:
        chosen = parts()
    except ModuleNotFoundError as error:
        print(
            f"error: the module {error.name} is not installed; pip install it, or carry its wheel",
            file=sys.stderr,
        )
        return 2
    names = [part.name for part in chosen]
    if given.list:
        print("\n".join(names))
        return 0
    if unknown := sorted(set(given.only or []) - set(names)):
        parser.error(f"--only has {', '.join(unknown)}; valid: {', '.join(names)}")
    wanted = [part for part in chosen if given.only is None or part.name in given.only]
    return run(wanted, given.out, given.minutes)


def run(chosen: list[Any], out: Path, minutes: float = MINUTES) -> int:
    """Runs parts, keeping the report up to date, and says how they ended."""
    import time

    import torch
    from gpu.boxed import run_part

    from localgp.run import commit, write_atomically

    say = functools.partial(print, flush=True)
    card = torch.cuda.is_available()
    report: dict[str, Any] = {
        "card": None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "parts": [],
    }
    if not card:
        say("PyTorch sees no CUDA device here: only the parts that need none are run")
    end = time.monotonic() + 60 * minutes
    for part in chosen:
        left = end - time.monotonic()
        if part.needs_card and not card:
            result = {"part": part.name, "status": "skipped", "rows": [], "seconds": 0.0}
        elif left < 1:
            result = {"part": part.name, "status": "not reached", "rows": [], "seconds": 0.0}
        else:
            say(f"== {part.name}")
            result = run_part(part, say, left)
            say(f"   {result['status']} after {result['seconds']} s\n{result.get('error', '')}")
        report["parts"].append(result)
        named = [row["card"] for row in result["rows"] if row.get("figure") == "machine"]
        report["card"] = named[0] if named else report["card"]
        write_atomically(out, json.dumps(report, indent=1) + "\n")
    for result in report["parts"]:
        failed = [row["check"] for row in result["rows"] if row.get("ok") is False]
        say(f"{result['status']:12}{result['part']:24}{result['seconds']:6.1f} s  {'; '.join(failed[:4])}")
    say(f"written: {out}")
    return int(any(result["status"] not in ("passed", "skipped") for result in report["parts"]))


if __name__ == "__main__":
    sys.exit(main())
