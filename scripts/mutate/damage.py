"""Random damage to a file: to its bytes, or to what is inside."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

CODE_RAN = Path(tempfile.gettempdir()) / f"localgp-code-ran-{os.getpid()}"


class Hostile:
    """Its unpickling creates `CODE_RAN`."""

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(CODE_RAN),))


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


def damage_json(path: Path, generator: Random) -> tuple[str, bool]:
    tree = json.loads(path.read_text(encoding="utf-8"))
    done = damage_tree(tree, generator)
    path.write_text(json.dumps(tree), encoding="utf-8")
    return done, False


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
