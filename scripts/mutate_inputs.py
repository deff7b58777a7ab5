"""Damages inputs at random and checks how it ends: with an error of ours, or with a listed skip; never otherwise.

    python scripts/mutate_inputs.py --cases 1000

Kinds: audio files, segment lists, manifests, ESPnet model directories, run directories, results (a run as training,
evaluation and report find it), packed archives, configurations. A case goes wrong in one of four ways:

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
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from localgp.errors import LocalGPError
from localgp.failures import remedy

Random = random.Random
CODE_RAN = Path(tempfile.gettempdir()) / f"localgp-code-ran-{os.getpid()}"


@dataclass
class Target:
    """One kind of input.

    Attributes:
        make: Writes a good input into a directory.
        use: Reads it; returns the number of skips it listed.
        files: Those that may be damaged, as patterns; the first level of damage is to bytes.
        fields: Damage to what is inside, by pattern; yields its name and whether it has to be noticed.
        optional: Patterns of files that may be absent or empty.
    """

    make: Callable[[Path], None]
    use: Callable[[Path], int]
    files: tuple[str, ...]
    fields: dict[str, Callable[[Path, Random], tuple[str, bool]]]
    optional: tuple[str, ...] = ()


class Hostile:
    """Its unpickling creates `CODE_RAN`."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(CODE_RAN),))


# --- damage to bytes


def damage_bytes(path: Path, generator: Random, optional: bool) -> tuple[str, bool]:
    """Damages a file; returns what was done, and whether reading it has to fail."""
    content = path.read_bytes()
    ways = ["empty", "half", "garbage", "gone", "directory", "pickle", "flip", "insert", "zeros", "loop"]
    way = generator.choice(ways)
    place = generator.randrange(max(1, len(content)))
    noise = generator.randbytes(generator.randint(1, 64))
    if way == "empty":
        path.write_bytes(b"")
    elif way == "half":
        path.write_bytes(content[: len(content) // 2])
    elif way == "garbage":
        path.write_bytes(generator.randbytes(generator.randint(1, 4096)))
    elif way == "gone":
        path.unlink()
    elif way == "directory":
        path.unlink()
        path.mkdir()
    elif way == "loop":
        path.unlink()
        path.symlink_to(path.name)
    elif way == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    elif way == "flip":
        path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    elif way == "insert":
        path.write_bytes(content[:place] + noise + content[place:])
    else:
        path.write_bytes(content[:place] + bytes(256) + content[place + 256 :])
    # Half of a text file can be a shorter text file, and a few other bytes another text.
    whole = way in ("empty", "garbage", "gone", "directory", "pickle", "loop")
    # … and half of an mp3 a shorter mp3: its header does not say how long it is.
    binary = path.suffix not in (".yaml", ".json", ".jsonl", ".lst", ".txt", ".de", ".fr", ".it", ".mp3")
    return way, (whole or (way == "half" and binary)) and not optional


# --- damage to what is inside

WRONG = [None, [], {}, "", "x", -1, 0, 3.5, 1e308, float("nan"), True, ["a", 1], {"a": 1}, "../../etc", "\0"]


def leaves(tree: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield (*trail, key)
            yield from leaves(value, (*trail, key))


def damage_tree(tree: dict[str, Any], generator: Random) -> str:
    """Changes one entry of nested mappings, in place."""
    trail = generator.choice(list(leaves(tree)))
    parent = tree
    for key in trail[:-1]:
        parent = parent[key]
    shown = ".".join(map(str, trail))
    way = generator.choice(["delete", "wrong", "wrong", "unknown"])
    if way == "delete":
        del parent[trail[-1]]
        return f"{shown} deleted"
    if way == "unknown":
        parent["no_such_key"] = 1
        return f"unknown key beside {shown}"
    value = generator.choice(WRONG)
    parent[trail[-1]] = value
    return f"{shown} = {value!r}"


def damage_yaml(path: Path, generator: Random) -> tuple[str, bool]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    done = damage_tree(tree, generator)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return done, False  # some values are as good as the one before; a traceback never is


def damage_lines(path: Path, generator: Random) -> tuple[str, bool]:
    lines = path.read_bytes().split(b"\n")
    way = generator.choice(["drop", "double", "swap", "field", "number", "utf8", "nul", "crlf"])
    place = generator.randrange(max(1, len(lines) - 1))
    fields = lines[place].split(b" ")
    if way == "drop":
        del lines[place]
    elif way == "double":
        lines.insert(place, lines[place])
    elif way == "swap":
        fields.reverse()
    elif way == "field":
        del fields[generator.randrange(len(fields))]
    elif way == "number":
        fields[-1] = generator.choice([b"nan", b"-1", b"x", b"inf", b""])
    elif way == "utf8":
        fields[0] += b"\xff\xfe"
    elif way == "nul":
        fields[0] += b"\0"
    else:
        lines = [line + b"\r" for line in lines]
    if way in ("swap", "field", "number", "utf8", "nul"):
        lines[place] = b" ".join(fields)
    path.write_bytes(b"\n".join(lines))
    # A file of its own that has a line less or more than its fellows, or a time that is none.
    is_times = path.name == "segments.lst"
    noticed = way in ("drop", "double", "utf8") or (is_times and way in ("swap", "field", "number"))
    return f"{way} in line {place + 1}", noticed


def damage_json_line(path: Path, generator: Random) -> tuple[str, bool]:
    lines = path.read_text(encoding="utf-8").splitlines()
    place = generator.randrange(len(lines))
    row = json.loads(lines[place])
    done = damage_tree(row, generator)
    lines[place] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"line {place + 1}: {done}", False


def damage_zip(path: Path, generator: Random) -> tuple[str, bool]:
    """A member that would leave the directory, is a link, is there twice, or is a hostile pickle."""
    with zipfile.ZipFile(path) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    way = generator.choice(["escape", "absolute", "link", "pickle", "lost"])
    info = zipfile.ZipInfo({"escape": "../escaped.txt", "absolute": "/tmp/escaped.txt"}.get(way, "linked"))
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members.items():
            if way == "pickle" and name.endswith(".pth"):
                content = pickle.dumps(Hostile())
            if not (way == "lost" and name == "config.yaml"):
                zipped.writestr(name, content)
        if way in ("escape", "absolute", "link"):
            if way == "link":
                info.external_attr = 0o120777 << 16
            zipped.writestr(info, "/etc/passwd")
    return way, True


# --- the inputs


def tiny_espnet(directory: Path) -> None:
    """An OWSM-style model of a few thousand parameters."""
    from localgp.backbone.directory import locate, read_config
    from localgp.backbone.owsm import assemble, build_model, write_espnet_directory

    config = read_config(locate("embedded", need_weights=False))
    small = {
        "output_size": 8,
        "attention_heads": 2,
        "cgmlp_linear_units": 8,
        "linear_units": 8,
        "num_blocks": 1,
    }
    config["encoder_conf"] = {**config["encoder_conf"], **small}
    config["decoder_conf"] = {
        **config["decoder_conf"],
        "attention_heads": 2,
        "linear_units": 8,
        "num_blocks": 1,
    }
    write_espnet_directory(assemble(build_model(config), config, "tiny", "made here"), directory)


def read_espnet(directory: Path) -> int:
    from localgp.backbone.owsm import load_backbone

    load_backbone({"name": "path", "path": str(directory), "weights": "pretrained"})
    return 0


def tiny_run(directory: Path) -> None:
    """A finished run of row05 over `tiny_espnet`, without the training."""
    import torch

    from localgp.build import build_model
    from localgp.hub.load import base_config
    from localgp.run import write_atomically
    from localgp.weights import save_weights

    tiny_espnet(directory / "backbone")
    cfg = base_config("conf=row05", "backbone=path", f"backbone.path={directory / 'backbone'}", "device=cpu")
    from omegaconf import OmegaConf

    model, _ = build_model(cfg)
    (directory / "checkpoints").mkdir()
    save_weights(model.state_dict(), directory / "checkpoints" / "model.safetensors")
    write_atomically(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    scores = {"wer": {"de": 1.0, "average": 1.0}, "bleu": {"de-fr": 1.0}, "data": {}, "decode": {}, "seed": 1}
    write_atomically(directory / "metrics.json", json.dumps(scores))
    torch.save({"global_step": 3, "state_dict": {}}, directory / "checkpoints" / "last.ckpt")
    torch.save({"global_step": 2, "state_dict": {}}, directory / "checkpoints" / "previous.ckpt")


def read_run(directory: Path) -> int:
    import localgp
    from localgp.training.fit import newest_checkpoint

    # Its backbone lies in the original, which moves with each copy.
    localgp.load(str(directory), device="cpu")
    found = newest_checkpoint(directory / "checkpoints")
    return 0 if found is not None and found[0].name == "last.ckpt" else 1


SEED1 = Path("mini/mini/row05/seed1")


def _command(directory: Path) -> Any:
    """Row 5's configuration in a place where there is no corpus: what needs one ends with that error."""
    from localgp.hub.load import base_config

    places = [f"exp_dir={directory}", f"data_dir={directory / 'data'}"]
    absent = ["corpus.reader=manifest", "+corpus.manifest=absent.jsonl"]
    launch = ["device=cpu", "trainer.devices=1", "trainer.num_nodes=1"]  # as training writes them down
    return base_config("conf=row05", "corpus=mini", *absent, *launch, "report.utterances=0", *places)


def tiny_results(directory: Path) -> None:
    """What training and evaluation leave of a run, as `localgp.train`, `evaluate` and `report` find it."""
    from omegaconf import OmegaConf

    from localgp.evaluation.gates_file import GateRecord, write_gates
    from localgp.evaluation.measured import kept_ratios
    from localgp.run import Run, write_atomically

    cfg = _command(directory)
    run = Run(cfg)
    run.start()
    run.checkpoints.mkdir()
    run.weights.write_bytes(b"only its presence and its time are read here")
    opened = np.random.default_rng(0).random((2, 2, 3, 20)) < 0.7
    modules = ["ffn1", "attention", "ffn2"]
    gates = GateRecord(["u0", "u1"], modules, opened, np.array([[0, 15], [0, 20]]), 0.04)
    write_gates(run.path / "gates" / "test.npz", gates)
    decode: Any = OmegaConf.to_container(cfg.decode, resolve=True)
    asked = {"decode": decode} | {
        key: cfg.evaluate[key] for key in ("split", "limit", "normalizer", "checkpoint")
    }
    data = {"corpus": "mini", "split": "test", "utterances": 2, "whole_split": True, "audio_seconds": 1.4}
    gflops = {
        "encoder": 0.9,
        "gates": 0.01,
        "dense": 1.0,
        "context": 0.0,
        "total": 0.9,
        "convention": "fvcore, 8 s",
    }
    metrics = {
        "wer": {"de": 20.0, "average": 20.0}, "bleu": {"de-fr": 10.0, "average": 10.0},
        "signature": {"wer": "jiwer", "bleu": "sacrebleu"}, **kept_ratios(gates),
        "gflops": gflops, "seconds": {"encoder": 1.0, "decoder": 2.0, "total": 3.5}, "data": data,
        "decode": decode | {"normalizer": "none"}, "backbone": {"name": "mini", "source": "shipped"},
        "name": "row05", "target": 0.3, "device": "cpu", "threads": 1, "commit": "0" * 40, "seed": 1,
        "asked": asked,
    }  # fmt: skip
    write_atomically(run.path / "metrics.json", json.dumps(metrics) + "\n")


def use_results(directory: Path) -> int:
    """The three commands, one after the other, on a copy: what they write is theirs to write."""
    from localgp import evaluate, report, train

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "exp"
        shutil.copytree(directory, place, symlinks=True)
        for command in (train, evaluate, report):
            command.main(_command(place))
        # A run without its configuration or its gates is reported as far as it goes.
        return sum(not (place / SEED1 / name).exists() for name in ("config.yaml", "gates/test.npz"))


def make_archive(directory: Path) -> None:
    from localgp.hub.archive import write_zip

    tiny_espnet(directory / "model")
    write_zip(directory / "model.zip", directory / "model", first="meta.yaml")
    shutil.rmtree(directory / "model")


def read_archive(directory: Path) -> int:
    import localgp

    with tempfile.TemporaryDirectory() as cache:
        os.environ["LOCALGP_CACHE"] = cache
        localgp.load(str(directory / "model.zip"), device="cpu")
    return 0


AUDIO = ("a.wav", "a.flac", "a.m4a", "a.mp3")


def make_audio(directory: Path) -> None:
    from localgp.corpora.audio import write_audio

    time = np.arange(3 * 16_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    for name in AUDIO:
        write_audio(directory / name, tone, 16_000)


def read_recordings(directory: Path) -> int:
    from localgp.corpora.audio import decode

    for name in AUDIO:
        decode(directory / name).cut()
    return 0


def make_segments(directory: Path) -> None:
    for source in ("de", "fr", "it"):
        (directory / source / "audios").mkdir(parents=True)
        for split in ("train", "dev", "test"):
            speech = f"{source}.{split}"
            (directory / source / "audios" / f"{speech}.m4a").write_bytes(b"only its name is read here")
            for target in {"de", "fr", "it"} - {source}:
                folder = directory / source / target / split
                folder.mkdir(parents=True)
                for name, lines in {
                    "segments.lst": [f"{speech} 0.5 2.0", f"{speech} 2.5 5.0"],
                    f"segments.{source}": ["erster satz", "zweiter satz"],
                    f"segments.{target}": ["premier", "second"],
                    "speeches.lst": [speech],
                    "speakers.lst": ["Somebody"],
                }.items():
                    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_segments(directory: Path) -> int:
    from localgp.corpora.prepared import _audio_files, read_corpus
    from localgp.hub.load import base_config

    union = "corpus.asr_direction=union"
    cfg = base_config("corpus=europarl_st", f"corpus.root={directory}", union, "corpus.on_error=raise")
    reading = read_corpus(cfg.corpus)
    _audio_files(reading)
    return len(reading.dropped) + sum(reading.notes.values())


def make_manifest(directory: Path) -> None:
    rows = [
        {
            "audio": "a.wav",
            "split": split,
            "language": "de",
            "start": 0.5,
            "end": 2.0,
            "text": {"de": "ja", "fr": "oui"},
        }
        for split in ("train", "dev", "test")
    ]
    text = "".join(json.dumps({**row, "id": f"u{i}", "speaker": "s"}) + "\n" for i, row in enumerate(rows))
    (directory / "m.jsonl").write_text(text, encoding="utf-8")
    (directory / "a.wav").write_bytes(b"only its name is read here")


def read_lines(directory: Path) -> int:
    from localgp.corpora.prepared import _audio_files, read_corpus
    from localgp.hub.load import base_config

    cfg = base_config("corpus=manifest", f"corpus.manifest={directory / 'm.jsonl'}", "corpus.name=mine")
    reading = read_corpus(cfg.corpus)
    _audio_files(reading)
    return len(reading.dropped) + sum(reading.notes.values())


def make_config(directory: Path) -> None:
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config

    (directory / "config.yaml").write_text(OmegaConf.to_yaml(base_config("conf=row05"), resolve=True))


def read_values(directory: Path) -> int:
    """What every command does with its configuration before it does anything else."""
    from omegaconf import OmegaConf

    from localgp.corpora.prepared import _check_config
    from localgp.decoding.options import DecodeOptions
    from localgp.hub.load import decode_options
    from localgp.run import Run
    from localgp.stored import read_yaml_mapping
    from localgp.training.world import check_launch
    from localgp.validate import check_config

    read_yaml_mapping(directory / "config.yaml")
    cfg = OmegaConf.create(read_yaml_mapping(directory / "config.yaml"))
    check_config(cfg)
    for section in ("pruning", "decode", "training", "trainer", "corpus", "backbone", "evaluate"):
        if section not in cfg:  # Hydra's composition always has them
            return 1
    expected = _expected_keys()
    if not expected <= set(_keys(OmegaConf.to_container(cfg))):
        return 1
    check_launch(cfg, {}, multirun=False)
    _check_config(cfg.corpus)
    decode_options(cfg, DecodeOptions)
    Run(cfg)
    _policy(cfg)
    return 0


def _keys(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


_CACHE: dict[str, Any] = {}


def _expected_keys() -> set[str]:
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config

    if "keys" not in _CACHE:
        _CACHE["keys"] = set(_keys(OmegaConf.to_container(base_config("conf=row05"))))
    return _CACHE["keys"]


def _policy(cfg: Any) -> None:
    from localgp.backbone.directory import locate, read_config
    from localgp.backbone.owsm import build_encoder
    from localgp.build import build_policy

    if "encoder" not in _CACHE:
        _CACHE["encoder"] = build_encoder(read_config(locate("embedded", need_weights=False)))
    build_policy(cfg, _CACHE["encoder"])


TARGETS = {
    "audio": Target(make_audio, read_recordings, ("a.*",), {}),
    "segments": Target(
        make_segments,
        read_segments,
        ("*/*/*/segments.*",),
        {"*/*/*/segments.*": damage_lines},
    ),
    "manifest": Target(make_manifest, read_lines, ("m.jsonl",), {"m.jsonl": damage_json_line}),
    "espnet": Target(
        tiny_espnet,
        read_espnet,
        ("*",),
        {"config.yaml": damage_yaml, "meta.yaml": damage_yaml},
        optional=("meta.yaml",),
    ),
    "run": Target(
        tiny_run,
        read_run,
        ("config.yaml", "metrics.json", "checkpoints/*"),
        {"config.yaml": damage_yaml},
        optional=("metrics.json", "previous.ckpt"),
    ),
    "results": Target(
        tiny_results,
        use_results,
        tuple(str(SEED1 / name) for name in ("config.yaml", "metrics.json", "gates/test.npz")),
        {str(SEED1 / "config.yaml"): damage_yaml, str(SEED1 / "metrics.json"): damage_json_line},
    ),
    "archive": Target(make_archive, read_archive, ("model.zip",), {"model.zip": damage_zip}),
    "config": Target(make_config, read_values, ("config.yaml",), {"config.yaml": damage_yaml}),
}


# --- one case


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
    import logging

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
