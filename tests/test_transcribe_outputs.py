"""What `transcribe` reads and where it writes: checked before any work, nothing replaced unasked, gone on with."""

from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path

import pytest

import localgp
from localgp.cli import reported
from localgp.errors import AudioError, ConfigError
from localgp.hub.load import describe
from localgp.transcribe import main
from localgp.transcription.formats import TimedText, Transcript
from localgp.transcription.inputs import find_inputs, on_disk, readable


class Model:
    """Writes the bytes of a file; ``stop_at`` interrupts before that file, as Ctrl-C would."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.stop_at = ""

    def transcribe_each(self, files, src=None, tgt=None, **settings):
        for index, file in enumerate(files):
            if self.stop_at and file.endswith(self.stop_at):
                raise KeyboardInterrupt
            self.heard.append(file)
            with on_disk(file) as path:
                text = Path(path).read_text()
            if text == "broken":
                yield index, AudioError(f"{file}: broken")
            else:
                yield index, Transcript(readable(file), 1.0, "deu", "deu", None, [TimedText(0.0, 1.0, text)])


@pytest.fixture
def model(monkeypatch):
    made = Model()
    monkeypatch.setattr(localgp, "load", lambda *_, **__: made)
    described = describe("embedded")
    monkeypatch.setattr("localgp.transcribe.describe", lambda *_: described)
    return made


@pytest.fixture
def place(tmp_path, monkeypatch):
    """x/a.wav, x/b.wav, y/a.wav and y/deep/c.mp3, each holding its own path; and a text beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("x/a.wav", "x/b.wav", "y/a.wav", "y/deep/c.mp3", "y/notes.txt", "y/.hidden.wav"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def written(folder: str = "out") -> dict[str, str]:
    root = Path(folder)
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".transcribed")]
    return {str(p.relative_to(root)): p.read_text().strip() for p in files}


def run(*arguments) -> int:
    return main([*arguments, "--output-dir", "out", "--quiet"])


# --- places


def test_folders_below_the_common_root_are_kept_where_names_are_equal(place, model):
    assert run("x/a.wav", "y/a.wav", "y/deep/c.mp3") == 0
    assert written() == {"x/a.txt": "x/a.wav", "y/a.txt": "y/a.wav", "y/deep/c.txt": "y/deep/c.mp3"}


def test_files_of_anywhere_lie_side_by_side(place, model, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "d.wav"
    elsewhere.write_text("elsewhere")
    assert run("x/b.wav", str(elsewhere), "y/deep/c.mp3") == 0
    assert written() == {"b.txt": "x/b.wav", "d.txt": "elsewhere", "c.txt": "y/deep/c.mp3"}


def test_a_folder_is_a_root_itself(place, model):
    assert run("y", "--recursive") == 0
    assert written() == {"a.txt": "y/a.wav", "deep/c.txt": "y/deep/c.mp3"}
    assert run("x", "y", "--recursive") == 0
    assert set(written()) == {
        "a.txt",
        "deep/c.txt",
        "x/a.txt",
        "x/b.txt",
    }  # those that were there keep their places
    with pytest.raises(AudioError, match=r"y is a directory; --recursive"):
        run("y")
    (place / "empty").mkdir()
    with pytest.raises(AudioError, match=r"empty: no recording in this folder; one ends in .*\.wav"):
        run("empty", "--recursive")


def test_a_recording_keeps_its_output_whatever_is_beside_it(place, model):
    run("x/a.wav")
    assert run("x/a.wav", "x/b.wav", "y/a.wav") == 0
    assert model.heard == ["x/a.wav", "x/b.wav", "y/a.wav"]
    assert written() == {"a.txt": "x/a.wav", "x/b.txt": "x/b.wav", "y/a.txt": "y/a.wav"}
    assert run("--recursive", "x") == 0
    assert model.heard == ["x/a.wav", "x/b.wav", "y/a.wav"]


@pytest.mark.parametrize("other", ["x/a.mp3", "x/a.m4a"])
def test_two_recordings_never_share_an_output(place, model, other):
    (place / other).write_text("other")
    with pytest.raises(ConfigError, match=rf"x/a.wav and {other} to out/a.txt.*--full-names"):
        run("x/a.wav", other)
    assert not model.heard
    assert run("x/a.wav", other, "--full-names") == 0
    assert written() == {"a.wav.txt": "x/a.wav", f"{Path(other).name}.txt": "other"}


def test_a_recording_that_is_named_twice_is_one(place, model):
    assert run("x/a.wav", "./x/a.wav", "--recursive", "x") == 0
    assert model.heard == ["x/a.wav", "x/b.wav"]


# --- before any work


@pytest.mark.parametrize("where", ["file", "file/below", "link"])
def test_an_output_directory_that_cannot_be_one(place, model, where):
    (place / "file").write_text("mine")
    (place / "link").symlink_to(place / "nowhere")
    with pytest.raises(ConfigError, match=rf"--output-dir {where}"):
        main(["x/a.wav", "--output-dir", where])
    assert not model.heard
    assert (place / "file").read_text() == "mine"


def test_a_folder_or_a_file_where_the_other_belongs(place, model):
    (place / "out/x/a.txt").mkdir(parents=True)
    (place / "out/y").write_text("mine")
    with pytest.raises(AudioError) as raised:
        run("x/a.wav", "x/b.wav", "y/a.wav")
    assert "out/x/a.txt is a folder" in str(raised.value)
    assert "out/y is a file" in str(raised.value)
    assert not model.heard


# --- what is there already


def test_a_foreign_file_is_kept_unless_asked(place, model, capsys):
    (place / "out").mkdir()
    (place / "out/a.txt").write_text("mine")
    with pytest.raises(AudioError, match=r"out/a.txt is there already.*--overwrite"):
        run("x/a.wav", "x/b.wav")
    assert written() == {"a.txt": "mine"}
    assert run("x/a.wav", "x/b.wav", "--keep-going") == 3
    assert written() == {"a.txt": "mine", "b.txt": "x/b.wav"}
    assert "error: out/a.txt is there already" in capsys.readouterr().err
    assert run("x/a.wav", "x/b.wav", "--overwrite") == 0
    assert written() == {"a.txt": "x/a.wav", "b.txt": "x/b.wav"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: Path("x/a.wav").write_text("changed"), "made from another recording"),
        (lambda: ["--tgt", "fra"], r"other settings \(tgt None\)"),
        (lambda: ["--beam", "1"], r"other settings \(beam None\)"),
        (lambda: ["--model", "other/model"], r"other settings \(model embedded"),
        (
            lambda: Path("x/a.wav").rename("x/z.wav") and Path("y/a.wav").rename("x/a.wav"),
            "another recording",
        ),
    ],
)
def test_an_output_of_something_else_is_not_taken_for_done(place, model, change, message):
    run("x/a.wav")
    changed = change()
    with pytest.raises(AudioError, match=message):
        run("x/a.wav", *(changed if isinstance(changed, list) else []))
    assert written() == {"a.txt": "x/a.wav"}


def test_equal_names_of_two_commands_do_not_replace_each_other(place, model):
    run("x/a.wav")
    with pytest.raises(AudioError, match="made from .*x/a.wav; --overwrite"):
        run("y/a.wav")
    assert written() == {"a.txt": "x/a.wav"}


def test_a_language_is_one_however_it_is_written(place, model):
    run("x/a.wav", "--src", "de")
    assert [run("x/a.wav", "--src", code) for code in ("deu", "DE", "de-AT", "ger")] == [0] * 4
    assert model.heard == ["x/a.wav"]


def test_other_formats_lie_side_by_side(place, model):
    run("x/a.wav")
    assert run("x/a.wav", "--format", "json") == 0
    assert sorted(written()) == ["a.json", "a.txt"]


def test_an_interrupted_command_goes_on(place, model, capsys):
    model.stop_at = "y/a.wav"
    with pytest.raises(SystemExit) as stopped, reported():
        run("x/a.wav", "x/b.wav", "y/a.wav")
    assert stopped.value.code == 130
    assert (
        "stopped by SIGINT; 2 of 3 outputs are written; the same command goes on" in capsys.readouterr().err
    )
    model.stop_at, model.heard = "", []
    assert run("x/a.wav", "x/b.wav", "y/a.wav") == 0
    assert model.heard == ["y/a.wav"]
    assert "2 of 3 outputs are there already" in capsys.readouterr().err
    assert len(written()) == 3
    assert run("x/a.wav", "x/b.wav", "y/a.wav") == 0
    assert model.heard == ["y/a.wav"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["os.replace", "localgp.transcription.outputs._digest"])
def test_an_output_that_is_written_is_noted(place, model, monkeypatch, capsys, signum, moment):
    """Whenever the signal comes, what lies there is known to the next command."""
    module, _, name = moment.rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def signalled(*arguments):
        os.kill(os.getpid(), signum)
        return real(*arguments)

    monkeypatch.setattr(moment, signalled)
    with pytest.raises(SystemExit) as stopped, reported():
        run("x/a.wav", "x/b.wav")
    assert stopped.value.code == 128 + signum
    assert f"{len(written())} of 2 outputs are written" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(localgp, "load", lambda *_, **__: model)
    assert run("x/a.wav", "x/b.wav") == 0
    assert len(written()) == 2


@pytest.mark.parametrize("damage", ["", '{"output": "a.txt"', "null\n[1]\n", "\udcff"])
def test_a_damaged_record_loses_no_output(place, model, damage):
    run("x/a.wav")
    record = place / "out/.transcribed.jsonl"
    record.write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(AudioError, match="is there already, and nothing says from what"):
        run("x/a.wav")
    assert run("x/a.wav", "--overwrite") == 0
    assert run("x/a.wav") == 0
    assert len(model.heard) == 2


# --- going on behind what fails


def _long(place):
    name = "x" * 246 + ".wav"  # its output's name fits, a longer temporary one would not
    (place / name).write_text("long")
    return name, {"x" * 246 + ".txt": "long"}, 0


def _too_long(place):
    name = "x" * 251 + ".wav"  # fits, and with .json for its ending would not
    (place / name).write_text("long")
    return name, {}, 3


def _not_utf8(place):
    name = os.fsdecode(b"caf\xe9.wav")
    (place / name).write_text("e")
    return name, {os.fsdecode(b"caf\xe9.json"): "e"}, 0


def _missing(place):
    return "no/such.wav", {}, 3


def _broken(place):
    (place / "broken.wav").write_text("broken")
    return "broken.wav", {}, 3


def _forbidden(place):
    (place / "closed.wav").write_text("closed")
    return "closed.wav", {}, 3


@pytest.mark.parametrize("make", [_long, _too_long, _not_utf8, _missing, _broken, _forbidden])
def test_keep_going_does_the_others(place, model, make, monkeypatch, capsys):
    name, outputs, status = make(place)
    access = os.access  # the tests may run as a user who may read everything
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path) and access(path, mode))
    form = "text" if make is _long else "json"
    assert run(name, "x/b.wav", "--keep-going", "--format", form) == status
    found = {Path(path).name for path in written()}
    assert found == {*outputs, "b.txt" if form == "text" else "b.json"}
    assert ("error: " in capsys.readouterr().err) == (status == 3)
    assert not list((place / "out").rglob("*.tmp"))


def test_names_that_are_no_utf8_are_printed(place, model, capsys):
    name, *_ = _not_utf8(place)
    assert main([name, "x/a.wav", "--quiet"]) == 0
    assert "== caf\\xe9.wav" in capsys.readouterr().out
    assert main([name, "x/a.wav", "--quiet", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["source"] == "caf\\xe9.wav"


def test_all_that_failed_is_an_error(place, model):
    assert run("no.wav", "such.wav", "--keep-going") == 1
    with pytest.raises(
        AudioError, match=r"no.wav: no such audio file\n.*such.wav: no such.*\n.*--keep-going"
    ):
        run("no.wav", "such.wav")


# --- pipes


def test_a_pipe_is_read_once_and_written_under_its_name(place, model, capsys):
    read_end, write_end = os.pipe()
    os.write(write_end, b"from a pipe")
    os.close(write_end)
    assert main([f"/dev/fd/{read_end}", "--quiet"]) == 0
    os.close(read_end)
    assert capsys.readouterr().out == "from a pipe\n"


def test_standard_input(place, model, monkeypatch, capsys):
    import subprocess
    import sys

    assert [item.path for item in find_inputs(["-"], False)] == ["/dev/stdin"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    with pytest.raises(AudioError, match="standard input is a terminal"):
        run("-")
    check = (
        "from localgp.transcription.inputs import find_inputs, on_disk\n"
        "item, = find_inputs(['-'], False)\n"
        "assert item.problem() is None and item.base is None\n"
        "with on_disk(item.path) as path: print(open(path).read())"
    )
    for given in (subprocess.PIPE, (place / "x/a.wav").open()):
        text = "x/a.wav" if given is subprocess.PIPE else None
        handed = {"input": text} if text else {"stdin": given}
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, **handed)
        assert done.stdout == "x/a.wav\n", done.stderr
