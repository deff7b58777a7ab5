"""Damages inputs at random and checks how it ends: with an error of ours, or with a listed skip; never otherwise.

    python scripts/mutate_inputs.py --cases 1000

Kinds: audio files, segment lists, manifests, ESPnet and Whisper model directories, run directories, results (a run as
training, evaluation and report find it), packed archives, configurations. A case goes wrong in one of four ways:

    traceback   an exception that is neither ours nor one that `localgp.failures` explains
    silent      damage that leaves nothing meaningful (a file emptied, cut in half, replaced, a value of the
                wrong type) was taken for good
    code        something in the input was executed (hostile pickles are among the cases)
    written     the call left files in the input's directory

Small damage that leaves valid content, such as one changed letter in a sentence, may pass: nobody can tell.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random

from mutate import configs, corpora, models, runs
from mutate.damage import CODE_RAN, damage_bytes
from mutate.target import Target

from localgp.errors import LocalGPError
from localgp.failures import remedy

# In the order in which a seed's cases go through them.
KINDS = ("audio", "segments", "manifest", "espnet", "run", "results", "archive", "config", "whisper")
_FOUND = corpora.TARGETS | models.TARGETS | runs.TARGETS | configs.TARGETS
TARGETS = {kind: _FOUND[kind] for kind in KINDS}


def try_case(kind: str, good: Path, work: Path, generator: Random) -> tuple[str, str, str]:
    """Damages a copy of a good input and reads it.

    Returns:
        How it ended (``error``, ``skip``, ``valid``, or one of the wrong ways), what was done, and what came of it.
    """
    target = TARGETS[kind]
    place = work / "case"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place, symlinks=True)
    if target.fields and generator.random() < 0.5:
        pattern = generator.choice(list(target.fields))
        path = generator.choice(sorted(p for p in place.glob(pattern) if p.is_file()))
        done, noticed = target.fields[pattern](path, generator)
    else:
        pattern = generator.choice(target.files)
        path = generator.choice(sorted(p for p in place.glob(pattern) if p.is_file()))
        done, noticed = damage_bytes(path, generator, path.name in target.optional)
    done = f"{path.relative_to(place)}: {done}"
    before = sorted(place.rglob("*"))
    ended, detail = _use(target, place, noticed)
    if CODE_RAN.exists():
        CODE_RAN.rmdir()
        return "code", done, "the input's code was executed"
    aside = [p for p in sorted(place.rglob("*")) if p not in before and p.suffix != ".damaged"]
    if aside:
        return "written", done, f"left {aside}"
    return ended, done, detail


def _use(target: Target, place: Path, noticed: bool) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            skips = target.use(place)
    except LocalGPError as error:
        return ("error", str(error)) if len(str(error)) > 20 else ("traceback", f"says too little: {error}")
    except Exception as error:
        if remedy(error):
            return "error", str(remedy(error))
        return "traceback", traceback.format_exc()
    if skips:
        return "skip", f"{skips} listed"
    return ("silent", "taken for good") if noticed else ("valid", "still valid")


def mutate(cases: int, seed: int, kinds: list[str] | None = None) -> tuple[Counter[str], list[str]]:
    """Tries cases in turn over the kinds.

    Returns:
        How many ended how, and a description of each that went wrong.
    """
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    generator = Random(seed)
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mutate.") as temporary:
        work = Path(temporary)
        good: dict[str, Path] = {}
        for kind in kinds or list(TARGETS):
            good[kind] = work / f"good-{kind}"
            good[kind].mkdir()
            TARGETS[kind].make(good[kind])
            if TARGETS[kind].use(good[kind]) and kind != "run":
                raise SystemExit(f"the undamaged {kind} input is not read")
        for number in range(cases):
            kind = list(good)[number % len(good)]
            case = Random(generator.random())
            how, done, detail = try_case(kind, good[kind], work, case)
            ended[how] += 1
            if how in ("traceback", "silent", "code", "written"):
                wrong.append(f"{how}: case {number}, {kind}: {done}\n    {detail.strip()[-1500:]}")
    logging.disable(logging.NOTSET)
    return ended, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS))
    args = parser.parse_args()
    ended, wrong = mutate(args.cases, args.seed, args.kinds)
    for description in wrong[:40]:
        print(description)
    counted = {name: ended[name] for name in ("error", "skip", "valid")}
    print(f"{args.cases} cases: {', '.join(f'{count} {name}' for name, count in counted.items())}")
    print(", ".join(f"{ended[name]} {name}" for name in ("traceback", "silent", "code", "written")))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
