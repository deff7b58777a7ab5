"""Prepared data by content: what is another corpus, what is the same one, and what is damaged."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from localgp.contexts.on_disk import ContextStore
from localgp.corpora import shards
from localgp.corpora.audio import write_audio
from localgp.corpora.integrity import read_row, rows_digest
from localgp.corpora.manifest import read_manifest
from localgp.corpora.prepared import load_prepared, prepare
from localgp.errors import CorpusError
from localgp.failures import remedy
from tests.corpus_helpers import corpus_config, tone

RATE = 16_000


def write_manifest(folder: Path, texts: dict[str, str], name: str = "my.jsonl") -> Path:
    """Two training lines and a test line for each text, of recordings that lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"audio": f"{audio}.wav", "language": "de", "text": {"de": text}, "split": split}
        for audio, text in texts.items()
        for split in [audio.split("_")[0]]
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for number, audio in enumerate(texts):
        write_audio(folder / f"{audio}.wav", tone(1.0, 200 + 20 * number, RATE), RATE)
    return folder / name


TEXTS = {"train_a": "eins", "train_b": "zwei", "dev_a": "drei", "test_a": "vier", "test_b": "fünf"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A prepared manifest that tests copy."""
    place = tmp_path_factory.mktemp("original")
    manifest = write_manifest(place / "corpus", TEXTS)
    prepare(config(place, manifest))
    return place


@pytest.fixture
def place(original, tmp_path):
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def config(place: Path, manifest: Path | None = None, *more: str):
    manifest = manifest or place / "corpus" / "my.jsonl"
    return corpus_config(place, f"corpus.manifest={manifest}", *more, corpus="manifest")


def retouch(path: Path, samples: np.ndarray) -> None:
    """Other content in the same file, of the same size and modification time."""
    stat = path.stat()
    write_audio(path, samples, RATE)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def replace_by_twin(place):
    """A file of the same name, size and time from another folder, copied over with its time."""
    retouch(place / "corpus" / "test_a.wav", tone(1.0, 999, RATE))


def correct_a_text(place):
    write = (place / "corpus" / "my.jsonl").read_text(encoding="utf-8").replace("vier", "viel")
    (place / "corpus" / "my.jsonl").write_text(write, encoding="utf-8")


def lose_a_line(place):
    lines = (place / "corpus" / "my.jsonl").read_text(encoding="utf-8").splitlines()
    (place / "corpus" / "my.jsonl").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("change", [replace_by_twin, correct_a_text, lose_a_line])
def test_other_content_is_another_corpus(place, change):
    before = prepare(config(place))
    digest = rows_digest(before.load()["test"])
    change(place)
    after = prepare(config(place))
    assert after.fresh
    assert after.path != before.path
    assert rows_digest(after.load()["test"]) != digest
    assert rows_digest(after.load()["train"]) == rows_digest(before.load()["train"])


def test_twins_in_two_folders_are_two(place):
    """Equal names, sizes and times; one manifest each."""
    shutil.copytree(place / "corpus", place / "twin")
    retouch(place / "twin" / "train_a.wav", tone(1.0, 777, RATE))
    found = [prepare(config(place, place / folder / "my.jsonl")).path for folder in ("corpus", "twin")]
    assert len(set(found)) == 2


def touch_all(place):
    for path in (place / "corpus").iterdir():
        os.utime(path, (1, 1))


def rename_the_manifest(place):
    (place / "corpus" / "my.jsonl").rename(place / "corpus" / "other.jsonl")
    (place / "corpus" / "my.jsonl").symlink_to("other.jsonl")


def lose_what_was_hashed(place):
    for path in (place / "data" / "prepared").glob(".*.audio.json"):
        path.write_text('{"x": 3}')


@pytest.mark.parametrize("change", [touch_all, rename_the_manifest, lose_what_was_hashed])
def test_the_same_content_is_the_same_corpus(place, change, monkeypatch):
    before = prepare(config(place))
    change(place)
    monkeypatch.setattr(shards, "decode", None)
    after = prepare(config(place))
    assert (after.fresh, after.path) == (False, before.path)


# --- damage


def arrow(folder):
    (path,) = (folder / "test").glob("*.arrow")
    return path


def flip_text(folder):
    path = arrow(folder)
    content = path.read_bytes()
    assert content.count("fünf".encode()) == 1
    path.write_bytes(content.replace("fünf".encode(), b"funff"))


def garble_columns(folder):
    path = arrow(folder)
    content = bytearray(path.read_bytes())
    place = content.index(b"test_a") - 300  # offsets and lengths before the first column's text
    content[place : place + 200] = b"\xff" * 200
    path.write_bytes(bytes(content))


DAMAGE = {
    "cut": lambda f: arrow(f).write_bytes(arrow(f).read_bytes()[:5000]),
    "empty": lambda f: arrow(f).write_bytes(b""),
    "header": lambda f: arrow(f).write_bytes(b"\xff" * 64 + arrow(f).read_bytes()[64:]),
    "columns": garble_columns,
    "text": flip_text,
    "no file": lambda f: arrow(f).unlink(),
    "state cut": lambda f: (f / "test" / "state.json").write_text("{"),
    "state of another kind": lambda f: (f / "test" / "state.json").write_text("[3]"),
    "no state": lambda f: (f / "test" / "state.json").unlink(),
    "info cut": lambda f: (f / "test" / "dataset_info.json").write_text('{"features": '),
    "no split": lambda f: shutil.rmtree(f / "test"),
    "no sums": lambda f: (f / "report.json").write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_prepared_again(place, name, capsys):
    before = prepare(config(place))
    digest = rows_digest(before.load()["test"])
    DAMAGE[name](before.path)
    after = prepare(config(place))
    assert (after.fresh, after.path) == (True, before.path)
    assert f"{before.path} is damaged (" in capsys.readouterr().err
    assert rows_digest(after.load()["test"]) == digest
    assert not prepare(config(place)).fresh


@pytest.mark.parametrize("index", [0, 1])
def test_damaged_samples_are_not_used(place, index):
    prepared = prepare(config(place))
    path = arrow(prepared.path)
    rows = prepared.load()["test"]
    content = path.read_bytes()
    samples = rows[index]["samples"][5000:5100].tobytes()
    assert content.count(samples) == 1
    path.write_bytes(content.replace(samples, bytes(len(samples))))
    rows = load_prepared(config(place))["test"]
    with pytest.raises(CorpusError, match=rf"{prepared.path} is damaged: .*test_[ab].*Remove that"):
        read_row(rows, index)
    assert read_row(rows, 1 - index)["language"] == "de"


def test_a_part_that_was_cut_is_made_again(tmp_path):
    manifest = write_manifest(tmp_path / "corpus", TEXTS)
    (job,) = shards.split_jobs(read_manifest(manifest).segments, tmp_path / "parts", 30.0, "raise")
    assert not job.is_done()
    shards.run_job(job, shards.features().arrow_schema)
    assert job.is_done()
    part = job.part / "test.arrow"
    part.write_bytes(part.read_bytes()[:-100])
    assert not job.is_done()


# --- other users


@pytest.fixture
def shared(original):
    """A prepared corpus in a folder that all may read; what becomes this process another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copytree(original, Path(temporary) / "copy")
        for folder in (Path(temporary), Path(temporary) / "copy"):
            folder.chmod(0o755)
        yield Path(temporary) / "copy", lambda: os.seteuid(65534)
        os.seteuid(0)


def test_a_colleague_uses_what_is_prepared(shared):
    place, become_a_colleague = shared
    path = prepare(config(place)).path
    become_a_colleague()
    found = prepare(config(place))
    assert (found.fresh, found.path) == (False, path)


def test_what_a_colleague_may_not_read_is_named_and_kept(shared):
    place, become_a_colleague = shared
    path = arrow(prepare(config(place)).path)
    path.chmod(0o600)
    become_a_colleague()
    with pytest.raises(PermissionError) as caught:
        prepare(config(place))
    assert caught.value.filename == str(path)
    assert "may not read" in str(remedy(caught.value))


def test_extracted_contexts_have_the_mode_of_their_folder(tmp_path):
    folder = tmp_path / "contexts"
    folder.mkdir(mode=0o755)
    store = ContextStore(folder)
    store.write({"a": np.zeros((1, 2), dtype=np.float16)})
    (shard,) = folder.glob("*.safetensors")
    assert shard.stat().st_mode & 0o777 == 0o644
