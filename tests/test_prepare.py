"""Preparation: what comes out is what was put in; damage is named; a stopped run goes on; it is made once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from localgp.corpora import shards, stream
from localgp.corpora.audio import read_audio, to_int16, write_audio
from localgp.corpora.prepared import load_prepared, prepare
from localgp.errors import AudioError, CorpusError
from localgp.prepare import run
from tests.corpus_helpers import corpus_config, tone, write_corpus
from tests.test_audio import damage

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with an undamaged corpus; tests that change nothing in it share it."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "corpus")
    return folder


def test_rows_hold_the_segments(corpus):
    splits = load_prepared(corpus_config(corpus))
    assert list(splits) == ["train", "dev", "test"]
    row = splits["dev"][1]
    audio = corpus / "corpus" / "de" / "audios" / "de.dev.m4a"
    assert isinstance(row["samples"], np.ndarray)
    assert row["samples"].dtype == np.int16
    assert np.array_equal(row["samples"], to_int16(read_audio(audio, 2.5, 5.0)))
    assert re.fullmatch("[0-9a-f]{16}", row["audio_sha1"])
    assert {k: v for k, v in row.items() if k not in ("samples", "audio_sha1")} == {
        "utt_id": "de.dev_0002500_0005000",
        "recording": "de.dev",
        "start": 2.5,
        "end": 5.0,
        "speaker": "Speaker de.dev",
        "language": "de",
        "seconds": 2.5,
        "transcript": "zweiter satz, de!",
        "asr": True,
        "targets": ["fr", "it"],
        "translations": ["second fr.", "second it."],
    }


def test_it_is_a_hugging_face_dataset_on_disk(corpus):
    prepared = prepare(corpus_config(corpus))
    plain = datasets.load_from_disk(str(prepared.path / "train"))
    assert plain.features == shards.features()
    assert len(plain) == prepared.report["languages"]["train"]["de"]["segments"] * 3
    assert plain[:2]["targets"] == [["fr", "it"], ["fr", "it"]]


def test_the_second_time_nothing_is_decoded(corpus, monkeypatch):
    first = prepare(corpus_config(corpus))
    monkeypatch.setattr(shards, "decode", None)
    again = prepare(corpus_config(corpus))
    assert (again.path, again.fresh, again.report) == (first.path, False, first.report)


@pytest.mark.parametrize("damage_report", [Path.unlink, lambda path: path.write_text('{"hours": ')])
def test_one_that_is_not_whole_is_made_again(tmp_path, damage_report):
    """A folder without a report (removed by hand, or by a copy that broke off), and one whose report is cut off."""
    write_corpus(tmp_path / "corpus")
    first = prepare(corpus_config(tmp_path))
    damage_report(first.path / "report.json")
    again = prepare(corpus_config(tmp_path))
    assert again.fresh
    assert again.path == first.path
    assert again.load()["dev"][0]["utt_id"] == first.load()["dev"][0]["utt_id"]
    assert not prepare(corpus_config(tmp_path)).fresh


def test_options_and_files_that_matter_make_another_one(tmp_path):
    write_corpus(tmp_path / "corpus")
    paths = {
        prepare(corpus_config(tmp_path, *o)).path
        for o in ([], ["corpus.case=keep"], ["corpus.max_seconds=2"])
    }
    write_audio(tmp_path / "corpus" / "de" / "audios" / "de.test.m4a", tone(6.1), 22_050)
    paths.add(prepare(corpus_config(tmp_path)).path)
    assert len(paths) == 4
    same = [
        prepare(corpus_config(tmp_path, o)).fresh
        for o in ("corpus.workers=2", "corpus.languages=[deu,FR,it-CH]")
    ]
    (tmp_path / "corpus").rename(tmp_path / "moved")
    same.append(prepare(corpus_config(tmp_path, f"corpus.root={tmp_path / 'moved'}")).fresh)
    assert same == [False, False, False]


def test_report_counts(corpus, capsys):
    report = run(corpus_config(corpus, "corpus.max_seconds=2")).report
    assert report["tasks"]["train"] == {
        task: {"segments": 1, "hours": 0.0004}
        for task in ("de", "de-fr", "de-it", "fr", "fr-de", "fr-it", "it", "it-de", "it-fr")
    }
    assert report["languages"]["test"]["it"] == {
        "segments": 1,
        "hours": 0.0004,
        "speakers": 1,
        "recordings": 1,
    }
    assert report["dropped"] == {"over 2 s": {"train": 3, "dev": 3, "test": 3}}
    folder = Path(report["path"])
    assert json.loads((folder / "report.json").read_text()) == report
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == 9
    assert dropped[0]["detail"].endswith("segments.lst:2: 2.50 s; corpus.max_seconds is 2")
    table = capsys.readouterr().out
    assert re.search(r"spoken +train +dev +test\nde +1 +0\.00 h +1", table)
    assert re.search(r"\nit-fr +1 +0\.00 h", table)
    assert re.search(r"\nover 2 s +3 +3 +3\n", table)
    assert "dropped.jsonl" in table


def test_a_manifest_with_every_fault_is_prepared_and_reported(tmp_path, monkeypatch, capsys):
    """Lines and files that cannot be used are listed, what could be mended is said, and what is missing too."""
    speech = tone(2.0, rate=16_000)
    for name in ("good.wav", "turned.wav", "locked.wav", "eight.wav", "text.wav"):
        channels = {"turned.wav": [speech, -speech], "eight.wav": [speech] * 8}.get(name, [speech])
        write_audio(tmp_path / name, np.stack(channels, axis=1), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    names = (
        "good.wav",
        "turned.wav",
        "locked.wav",
        "eight.wav",
        "text.wav",
        "none.wav",
        ".",
        "caf\udce9.wav",
    )
    rows = [{"audio": name, "language": "deu", "split": "test", "text": {"de": "ja"}} for name in names]
    wrong = [
        '{"audio": "good.wav", "language": ["de"], "text": {"de": "a"}}',
        "[" * 50_000,
        '{"start": 1' + "0" * 9000,
    ]
    lines = [*(json.dumps(row) for row in rows), *wrong]
    (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
    open_file = stream._File

    def refuse_one(path):
        if Path(path).name == "locked.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path)

    monkeypatch.setattr(stream, "_File", refuse_one)
    options = [f"corpus.manifest={tmp_path / 'm.jsonl'}", "corpus.name=odd"]
    report = run(corpus_config(tmp_path, *options, "corpus.on_error=skip", corpus="manifest")).report
    assert report["languages"]["test"]["de"]["segments"] == 3
    assert {reason: sum(counts.values()) for reason, counts in report["dropped"].items()} == {
        "invalid line": 4,
        "unknown language": 1,
        "missing audio": 1,
        "unreadable audio": 2,
    }
    assert report["remarks"]["channels of opposed phases"]["recordings"] == 1
    (remark,) = (Path(report["path"]) / "remarks.jsonl").read_text().splitlines()
    assert "turned.wav: channel 2 of 2 is left out" in json.loads(remark)["detail"]
    table = capsys.readouterr().out
    assert re.search(r"\nchannels of opposed phases +1\n  .*turned\.wav: channel 2", table)
    assert "\nno train split: training needs it; " in table
    assert "\nno dev split: training needs it " in table
    with pytest.raises(CorpusError) as caught:
        run(corpus_config(tmp_path, *options, corpus="manifest"))
    assert [line.split(":")[1] for line in str(caught.value).splitlines()[:5]] == ["7", "8", "9", "10", "11"]


def test_europarl_audio_damage(tmp_path):
    write_corpus(tmp_path / "corpus", ("de", "fr"))
    audios = tmp_path / "corpus" / "de" / "audios"
    (audios / "de.train.m4a").unlink()
    write_audio(audios / "de.dev.m4a", tone(2.2), 22_050)  # the second segment starts beyond its end
    write_audio(audios / "de.test.m4a", tone(4.7), 22_050)  # it ends 0.3 s beyond it
    with pytest.raises(
        AudioError, match=r"segments\.lst:1: no audio file .*de\.train\.m4a\n  Correct or replace it, .*=skip"
    ):
        prepare(corpus_config(tmp_path, "corpus.languages=[de,fr]"))
    prepared = prepare(corpus_config(tmp_path, "corpus.languages=[de,fr]", "corpus.on_error=skip"))
    assert prepared.report["dropped"] == {"missing audio": {"train": 2}, "segment beyond the end": {"dev": 1}}
    assert prepared.report["notes"] == {"ends moved back to the end of the recording": 1}
    ids = {row["utt_id"]: row for row in prepared.load()["test"]}
    assert ids["de.test_0002500_0005000"]["end"] == pytest.approx(4.7, abs=0.01)
    details = [json.loads(line)["detail"] for line in (prepared.path / "dropped.jsonl").open()]
    assert any(re.search(r"segments\.lst:2: .*de\.dev\.m4a: segment starts at 2\.500 s", d) for d in details)


def nan(path):
    samples = tone(5.0, rate=16_000)
    samples[16_000] = np.nan
    write_audio(path, samples, 16_000, subtype="FLOAT")


@pytest.mark.parametrize(
    ("make", "times", "reason", "message", "workers"),
    [
        (lambda p: damage(p, "cut off"), (0.5, 1.5), "unreadable audio", "cut off; its header says", 1),
        (lambda p: damage(p, "cut off"), (0.5, 1.5), "unreadable audio", "cut off; its header says", 2),
        (
            lambda p: damage(p, "text"),
            (0.5, 1.5),
            "unreadable audio",
            "not an audio file, damaged or cut off",
            1,
        ),
        (nan, (0.5, 1.5), "NaN or infinite samples", r"NaN or infinite samples at 1\.000 s", 1),
        (
            lambda p: write_audio(p, tone(1.0)),
            (2.0, 3.0),
            "segment beyond the end",
            "starts at 2.000 s, the rec",
            1,
        ),
        (
            lambda p: write_audio(p, tone(1.0)),
            (0.5, 3.0),
            "segment beyond the end",
            "ends at 3.000 s, the recording",
            1,
        ),
        (lambda p: write_audio(p, tone(1.0)), (0.5, 0.50001), "invalid times", "has no length", 1),
    ],
)
def test_damaged_audio_raises_or_is_listed(tmp_path, monkeypatch, make, times, reason, message, workers):
    monkeypatch.setattr(shards, "JOB_SECONDS", 0.1)
    make(tmp_path / "bad.wav")
    write_audio(tmp_path / "good.wav", tone(1.0, rate=16_000), 16_000)
    rows = [
        {"audio": "good.wav", "language": "de", "text": {"de": "Gut."}},
        {
            "audio": "bad.wav",
            "start": times[0],
            "end": times[1],
            "language": "de",
            "text": {"de": "Schlecht."},
        },
    ]
    manifest = tmp_path / "my.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"corpus.manifest={manifest}", f"corpus.workers={workers}"]
    with pytest.raises(CorpusError, match=message) as caught:
        prepare(corpus_config(tmp_path, *options, corpus="manifest"))
    assert str(caught.value).startswith(f"{manifest}:2: {tmp_path / 'bad.wav'}: ")
    assert "Correct or replace it, or set corpus.on_error=skip" in str(caught.value)

    prepared = prepare(corpus_config(tmp_path, *options, "corpus.on_error=skip", corpus="manifest"))
    assert [row["utt_id"] for row in prepared.load()["train"]] == ["good"]
    assert prepared.report["dropped"] == {reason: {"train": 1}}


def test_an_empty_manifest_is_named(tmp_path):
    (tmp_path / "my.jsonl").touch()
    with pytest.raises(CorpusError, match=r"my\.jsonl is empty: it has no segment"):
        prepare(corpus_config(tmp_path, f"corpus.manifest={tmp_path / 'my.jsonl'}", corpus="manifest"))


def test_a_prepared_corpus_says_where_it_is_now(tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0), 22_050)
    (tmp_path / "my.jsonl").write_text('{"audio": "a.wav", "language": "de", "text": {"de": "Ja."}}\n')
    options = [f"corpus.manifest={tmp_path / 'my.jsonl'}"]
    first = prepare(corpus_config(tmp_path, *options, corpus="manifest"))
    elsewhere = tmp_path / "elsewhere"
    first.path.parent.parent.rename(elsewhere)
    again = prepare(corpus_config(tmp_path, *options, f"data_dir={elsewhere}", corpus="manifest"))
    assert not again.fresh
    assert again.report["path"] == str(again.path)
    assert again.path.is_relative_to(elsewhere)


def test_nothing_usable_says_why(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"audio": "a.wav", "language": "de", "text": {"de": "Ja."}}\n')
    options = [f"corpus.manifest={tmp_path / 'my.jsonl'}", "corpus.on_error=skip"]
    with pytest.raises(
        CorpusError, match=r"no usable segment in this corpus\n  missing audio: 1, first .*my\.jsonl:1"
    ):
        prepare(corpus_config(tmp_path, *options, corpus="manifest"))
    write_audio(tmp_path / "a.wav", tone(1.0), 22_050)
    with pytest.raises(CorpusError, match=r"no usable segment in this corpus\n  over 0\.5 s: 1"):
        prepare(corpus_config(tmp_path, *options, "corpus.max_seconds=0.5", corpus="manifest"))


SCRIPT = """
    import os, signal, sys
    from localgp.corpora import parallel, shards
    from localgp.corpora.prepared import prepare
    from tests.corpus_helpers import corpus_config
    from pathlib import Path
    shards.JOB_SECONDS = 0.1
    done, run_job = [], parallel.run_job
    def run(job, schema):
        if len(done) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(job)
        return run_job(job, schema)
    parallel.run_job = run
    prepared = prepare(corpus_config(Path(sys.argv[1])))
    print(len(done), prepared.fresh)
"""


def start(folder, kill_after):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(kill_after)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_killed_and_run_again_it_goes_on(tmp_path, monkeypatch, capfd):
    write_corpus(tmp_path / "corpus")
    assert start(tmp_path, kill_after=4).wait() == -9
    (work,) = (tmp_path / "data" / "prepared").glob("*.partial")
    assert len(list(work.glob("parts/*/part.json"))) == 4
    (work / "parts" / ".00004.1").mkdir()  # what a process leaves that dies while it writes

    monkeypatch.setattr(shards, "JOB_SECONDS", 0.1)
    prepared = prepare(corpus_config(tmp_path))
    assert "going on, 4 of 9 parts were done before" in capfd.readouterr().err
    assert not work.exists()
    rows = prepared.load()["train"]
    assert len(rows) == 6

    straight = prepare(corpus_config(tmp_path, f"data_dir={tmp_path / 'other'}")).load()["train"]
    assert rows["utt_id"][:] == straight["utt_id"][:]
    assert rows["audio_sha1"][:] == straight["audio_sha1"][:]


def test_two_at_once_prepare_once(tmp_path):
    write_corpus(tmp_path / "corpus")
    processes = [start(tmp_path, kill_after=99) for _ in range(2)]
    answers = sorted(process.communicate()[0].strip() for process in processes)
    assert answers == ["0 False", "9 True"]


def test_from_a_script_without_a_main_guard(tmp_path):
    """Its processes must not run the script again: from standard input they could not even find it."""
    write_corpus(tmp_path / "corpus", ("de", "fr"))
    script = f"""
        from pathlib import Path
        from localgp.corpora import shards
        from localgp.corpora.prepared import load_prepared
        from tests.corpus_helpers import corpus_config
        shards.JOB_SECONDS = 0.1
        cfg = corpus_config(Path({str(tmp_path)!r}), "corpus.languages=[de,fr]", "corpus.workers=2")
        print(len(load_prepared(cfg)["train"]))
    """
    result = subprocess.run(
        [sys.executable, "-"], input=textwrap.dedent(script), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.stdout.endswith("\n4\n"), result.stderr


def test_rows_are_read_without_a_python_object_per_sample(tmp_path):
    write_audio(tmp_path / "a.wav", tone(5.0, rate=16_000), 16_000)
    row = {"audio": "a.wav", "language": "de", "text": {"de": "Ja."}}
    lines = [json.dumps(row | {"id": f"u{i}"}) + "\n" for i in range(100)]
    (tmp_path / "my.jsonl").write_text("".join(lines))
    rows = load_prepared(
        corpus_config(tmp_path, f"corpus.manifest={tmp_path / 'my.jsonl'}", corpus="manifest")
    )["train"]
    started = time.perf_counter()
    for index in range(0, 96, 6):
        assert rows[index]["samples"].shape == (80_000,)
    # some ms; as Python integers these 1.3 million samples take seconds
    assert time.perf_counter() - started < 0.5


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "localgp.prepare", "corpus=europarl_st", f"data_dir={tmp_path}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"error: no Europarl-ST corpus at {tmp_path}/europarl-st/v1.1: it does not exist"
    )
    assert "https://www.mllp.upv.es/europarl-st/v1.1.tar.gz (licence CC BY-NC 4.0" in result.stderr

    write_corpus(tmp_path / "europarl-st" / "v1.1", ("de", "fr"))
    options = ["corpus.languages=[de,fr]", "corpus.asr_direction=union"]
    result = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"\nde-fr +2 +0\.00 h +2 +0\.00 h +2 +0\.00 h\n", result.stdout)
    assert "100%" in result.stderr


def test_a_generated_corpus_is_generated_first(tmp_path, monkeypatch):

    calls = []

    def generate_corpus(root, **options):
        calls.append(options)
        if not root.exists():
            write_corpus(root)

    monkeypatch.setattr("localgp.corpora.prepared.generate_corpus", generate_corpus)
    cfg = corpus_config(tmp_path, corpus="mini")
    assert [prepare(cfg).fresh, prepare(cfg).fresh] == [True, False]
    expected = {"seed": 2008, "train_segments": 1100, "dev_segments": 300, "test_segments": 300}
    assert calls == [expected | {"workers": 1, "languages": ("de", "fr", "it")}] * 2
    assert (tmp_path / "data" / "mini" / "de" / "audios").is_dir()


@pytest.mark.parametrize(("limit", "warned"), [("0.5", True), ("30", False)])
def test_what_the_backbone_at_hand_cannot_hear_is_said_at_once(tmp_path, capsys, monkeypatch, limit, warned):
    """And not by the training that comes after it."""
    from localgp.backbones import owsm
    from localgp.hub.load import base_config

    vocabulary = owsm.read_vocabulary({"name": "mini", "path": "embedded", "weights": "pretrained"})[0]
    monkeypatch.setattr(owsm, "read_vocabulary", lambda cfg: (vocabulary, float(limit)))
    write_corpus(tmp_path / "corpus", ("de", "fr"))
    options = [
        "corpus=europarl_st",
        "corpus.languages=[de,fr]",
        "corpus.asr_direction=union",
        f"corpus.root={tmp_path}/corpus",
    ]
    run(base_config(*options, "corpus.workers=1", f"data_dir={tmp_path}/data"))
    said = capsys.readouterr().out
    assert ("segments are longer than the 0.5 s that backbone mini hears" in said) is warned
    assert ("warning:" in said) is warned
