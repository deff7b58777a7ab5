"""Golden files: what the commands computed before a refactoring, to the last bit.

    python -m tests.golden short            # rewrites tests/assets/golden/short.json, about a minute
    python -m tests.golden trained          # trained.json: 80 steps of row05 and row09, 60 utterances; minutes

Everything goes through the commands and the files that they write, so that no change inside can bend the measure. On
the kind of machine that wrote a file the comparison is exact; on another, whose products round otherwise, it is close.
"""

from __future__ import annotations

import hashlib
import io
import json
import runpy
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "assets" / "golden"
ROWS = (
    "row01",
    "row02",
    "row05",
    "row06",
    "row09",
    "row10",
)  # a dense one, and each kind of gate and context
ALL_ROWS = [f"row{k:02d}" for k in range(1, 11)]
OF_THE_CLOCK = ("audio_per_second", "data_share", "memory_mib")
SETTINGS = {
    "short": {
        "steps": dict.fromkeys(ROWS, 3),
        "decoded": ("row05", "row09"),
        "overrides": ["training.batch_size=2", "decode.beam=2", "training.warmup_steps=1"],
        "segments": {"train": 8, "dev": 1, "test": 2},
    },
    "trained": {
        "steps": {"row05": 80, "row09": 80},
        "decoded": ("row05", "row09"),
        "overrides": ["training.batch_size=8"],
        "segments": {"train": 250, "dev": 4, "test": 20},
    },
}


def run(command: str, *overrides: str) -> str:
    """A command in this process; what it printed."""
    argv = [command, *overrides]
    out = io.StringIO()
    with patch.object(sys, "argv", argv), redirect_stdout(out):
        runpy.run_module(f"localgp.{command}", run_name="__main__", alter_sys=True)
    return out.getvalue()


def machine() -> dict[str, str]:
    """What decides how products round: the libraries choose their kernels by it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    said = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    model = "/".join(said.get(key, "?").strip() for key in ("vendor_id", "cpu family", "model"))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"cpu": f"{model} {capability}", "torch": torch.__version__.split("+")[0]}


def record(which: str, where: Path) -> dict[str, Any]:
    """Trains, decodes and counts in ``where``.

    Returns:
        ``losses`` by row and step, ``weights`` (a digest) by row, ``hypotheses`` by row and file, ``gates`` (digests)
        and ``scores`` by row; with ``short`` also ``gflops`` by row and what a small ``bench`` counts.
    """
    settings = SETTINGS[which]
    threads = torch.get_num_threads()
    common = [
        f"data_dir={where / 'data'}",
        f"exp_dir={where / 'exp'}",
        "device=cpu",
        "threads=1",
        *(f"corpus.generate.{split}_segments={n}" for split, n in settings["segments"].items()),
        "training.logger=none",
        "training.val_limit=1",
        "training.val_decode=0",
        *settings["overrides"],
    ]
    found: dict[str, Any] = {name: {} for name in ("losses", "weights", "hypotheses", "gates", "scores")}
    found["machine"] = machine()
    try:
        run("prepare", *common)
        for row, steps in settings["steps"].items():
            length = [f"training.max_steps={steps}", f"training.val_every={steps}"]
            log = [f"training.log_every={max(1, steps // 8)}", f"conf={row}"]
            run("train", *common, *length, *log)
            place = where / "exp" / "mini" / "mini" / row / "seed1"
            lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
            found["losses"][row] = [
                {term: value for term, value in line.items() if term not in OF_THE_CLOCK} for line in lines
            ]
            found["weights"][row] = weights_digest(place / "checkpoints" / "model.safetensors")
            if row in settings["decoded"]:
                run("evaluate", *common, *length, *log)
                metrics = json.loads((place / "metrics.json").read_text())
                found["scores"][row] = {k: metrics[k] for k in ("wer", "bleu", "kept", "gflops")}
                found["hypotheses"][row] = {
                    p.name: p.read_text(encoding="utf-8").splitlines()
                    for p in sorted((place / "hyp").iterdir())
                }
                found["gates"][row] = {p.name: digest(p) for p in sorted((place / "gates").glob("*.npz"))}
        if which == "short":
            found["gflops"] = {row: json.loads(last(run("flops", f"conf={row}"))) for row in ALL_ROWS}
            found["bench"] = counted(json.loads(last(run("bench", *common, *SMALL_BENCH))))
    finally:
        torch.set_num_threads(threads)
    return found


SMALL_BENCH = (
    "bench=encoder",
    "bench.backbones=[mini]",
    "bench.measures=[pruned,ragged]",
    "bench.dtypes=[fp32]",
    "bench.batches=[1]",
    "bench.seconds=8.0",
    "bench.ragged=[4.0,2.0]",
    "bench.repeats=1",
    "bench.espnet_repeats=1",
)


def last(printed: str) -> str:
    return printed.strip().splitlines()[-1]


def counted(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Its rows without what a clock or a memory gauge said."""
    names = ("backbone", "dtype", "seconds_of_audio", "padded_to", "skipped", "flop_ratio")
    return [{name: row[name] for name in names} for row in bench["rows"]]


def digest(path: Path) -> str:
    """Of the arrays of an ``.npz``, whose own bytes hold the time of day."""
    found = hashlib.sha256()
    with np.load(path, allow_pickle=False) as arrays:
        for name in sorted(arrays.files):
            found.update(name.encode())
            found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()[:16]


def weights_digest(path: Path) -> str:
    """Of the tensors in whatever order and under whatever names."""
    tensors = load_file(path).values()
    each = sorted(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors)
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def main() -> None:
    which = sys.argv[1]
    with tempfile.TemporaryDirectory() as temporary:
        found = record(which, Path(temporary))
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True)
    (FOLDER / f"{which}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
