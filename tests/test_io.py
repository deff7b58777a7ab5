"""What is written appears whole or not at all, names itself where it could not be, and has one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from localgp import io
from localgp.archive import write_zip
from localgp.contexts.on_disk import ContextStore
from localgp.corpora.audio import write_audio
from localgp.errors import BusyError
from localgp.evaluation.gates_file import GateRecord, write_gates
from localgp.failures import remedy
from localgp.locks import held
from localgp.report.style import pyplot, save_figure
from localgp.training.callbacks import WriteInPlace
from localgp.weights import save_weights


def figure(path):
    drawn = pyplot().figure()
    try:
        save_figure(drawn, path)
    finally:
        pyplot().close(drawn)


def archive(path):
    source = path.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "weights.pth").write_bytes(bytes(100_000))
    write_zip(path, source, "weights.pth")


def checkpoint(path):
    with io.written(path) as temporary:
        WriteInPlace().save_checkpoint({"w": torch.zeros(100_000)}, temporary)


def gates(path):
    noise = np.random.default_rng(0).random((4, 3, 3, 2000)) > 0.5
    write_gates(path, GateRecord(list("abcd"), list("klm"), noise, np.zeros((4, 2), int), 0.04))


WRITERS = {
    "text": lambda path: io.write_atomically(path, "a" * 100_000),
    "weights": lambda path: save_weights({"w": torch.zeros(100_000)}, path),
    "checkpoint": checkpoint,
    "gates.npz": gates,
    "contexts": lambda path: ContextStore(path.parent).write({"k": np.zeros((1000, 8), np.float16)}),
    "model.zip": archive,
    "figure.svg": figure,
    "figure.pdf": figure,
    "speech.wav": lambda path: write_audio(path, np.zeros(100_000, np.float32)),
    "speech.m4a": lambda path: write_audio(path, np.random.default_rng(0).normal(size=80_000) * 0.1),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("weights", "contexts")])
def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path, monkeypatch, name):
    made = []

    def full(path):
        made.append(path)
        place = path.with_name(f".{path.name}.tmp")
        place.symlink_to("/dev/full")
        if path.suffix:
            place.with_name(place.name + path.suffix).symlink_to("/dev/full")
        return place

    target = tmp_path / name
    (tmp_path / "source").mkdir()
    monkeypatch.setattr(io, "_beside", full)
    nothing = SimpleNamespace(free=0)  # for libraries whose errors do not tell the reason
    monkeypatch.setattr("localgp.failures.shutil.disk_usage", lambda directory: nothing)
    with pytest.raises(OSError, match="No space left") as raised:
        WRITERS[name](target)
    assert raised.value.errno == errno.ENOSPC
    assert str(made[0]) in remedy(raised.value)
    assert not made[0].exists()


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_readable_for_others_and_leaves_nothing_beside(tmp_path, name):
    before = os.umask(0o022)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    (written,) = [path for path in tmp_path.iterdir() if path.name != "source"]
    assert stat.S_IMODE(written.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: OSError(errno.ENOSPC, "full"), ValueError])
@pytest.mark.parametrize("context", [io.written, io.filled, io.staging])
def test_whatever_ends_the_writing_keeps_what_was_there(tmp_path, context, error):
    target = tmp_path / ("n" * 250)  # a name with no room for more
    if context is io.written:
        target.write_text("old")
    elif context is io.filled:
        target.mkdir()
        (target / "old").touch()
    before = sorted(tmp_path.rglob("*"))
    raised = error()

    def write():
        with context(target) as temporary:
            (temporary / "part" if temporary.is_dir() else temporary).write_text("new")
            raise raised

    with pytest.raises(type(raised)) as caught:
        write()
    assert sorted(tmp_path.rglob("*")) == before
    if isinstance(raised, OSError):
        assert caught.value.filename == str(target)


@pytest.mark.parametrize("name", ["weights", "contexts"])
def test_safetensors_has_an_error_of_its_own_for_a_full_disk(tmp_path, monkeypatch, name):
    from safetensors import SafetensorError

    def save_file(tensors, path):
        path.write_bytes(b"part")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    monkeypatch.setattr("localgp.contexts.on_disk.save_file", save_file)
    with pytest.raises(OSError, match="No space left") as raised:
        WRITERS[name](tmp_path / name)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename.startswith(str(tmp_path))
    assert ".tmp" not in raised.value.filename
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, io.written(tmp_path / "target"):
        (tmp_path / "source").read_text()
    assert raised.value.filename == str(tmp_path / "source")


def test_a_directory_takes_the_place_of_another(tmp_path):
    for content in ("one", "two"):
        with io.filled(tmp_path / "model") as new:
            (new / content).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "two"]


def test_what_killed_processes_left_is_swept(tmp_path):
    for name in (".model.123-0.tmp", ".model.124-7.tmp.npz", ".last.ckpt.tmp", ".other.1-1.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".model.5-5.tmp").mkdir()
    kept = [".model.lock", "model", "x.tmp"]
    for name in kept:
        (tmp_path / name).touch()
    io.sweep(tmp_path, "model")
    assert sorted(os.listdir(tmp_path)) == sorted([".last.ckpt.tmp", ".other.1-1.tmp", *kept])
    io.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def take(lock):
    with held(lock, "training run"):
        pass


def test_the_second_is_told_who_is_at_it(tmp_path):
    lock = tmp_path / ".train.lock"
    said = rf"training run: process {os.getpid()} on .*, since \d{{4}}-"
    with held(lock, "training run"), pytest.raises(BusyError, match=said):
        take(lock)
    take(lock)


def test_the_second_waits_where_it_may(tmp_path, capsys):
    lock, order = tmp_path / ".lock", []

    def second():
        with held(lock, "preparing corpus mini", wait=True):
            order.append("second")

    with held(lock, "preparing corpus mini"):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting" not in capsys.readouterr().err:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    lock = tmp_path / ".train.lock"
    code = f"""
import time
from pathlib import Path
from localgp.locks import held
with held(Path({str(lock)!r}), "training run"):
    print(flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(BusyError, match=f"process {process.pid} on {socket.gethostname()}"):
        take(lock)
    process.kill()
    process.communicate()
    take(lock)


def test_the_children_of_a_dead_process_are_waited_for(tmp_path):
    """Processes that load data hold what their killed parent held, for the seconds in which they notice."""
    from filelock import FileLock

    lock = tmp_path / ".train.lock"
    child = FileLock(lock, thread_local=False)
    child.acquire()
    gone = subprocess.Popen(["true"])
    gone.wait()
    holder = {"pid": gone.pid, "host": socket.gethostname(), "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / ".train.lock.holder").write_text(json.dumps(holder))
    timer = threading.Timer(0.2, child.release)
    timer.start()
    take(lock)
    timer.join()


def test_a_zip_has_what_the_directory_had(tmp_path):
    archive(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as zipped:
        assert zipped.namelist() == ["weights.pth"]
