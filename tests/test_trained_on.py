"""Training goes on with the data it was begun with, and takes no more contexts than it needs."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from localgp.corpora.integrity import rows_digest
from localgp.corpora.prepared import load_prepared
from localgp.errors import CheckpointError
from localgp.report.runs import Evaluated
from localgp.report.utterances import find_utterances, read_hypotheses
from localgp.run import Run
from localgp.training.data import StepBatches, TrainingExamples, rows_in
from localgp.training.trained_on import FILE, changed, check_data, digests_of, write_data
from tests.test_integrity import TEXTS, config, correct_a_text, lose_a_line, replace_by_twin, write_manifest


@pytest.fixture
def place(tmp_path):
    write_manifest(tmp_path / "corpus", TEXTS)
    return tmp_path


@pytest.fixture
def run(place):
    """A run with a checkpoint."""
    cfg = config(place, None, f"exp_dir={place / 'exp'}")
    found = Run(cfg)
    found.start()
    found.checkpoints.mkdir()
    (found.checkpoints / "last.ckpt").touch()
    write_data(found, digests_of(cfg, load_prepared(cfg)))
    return found


def now(run):
    return digests_of(run.cfg, load_prepared(run.cfg))


def correct_training(place):
    path = place / "corpus" / "my.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("zwei", "zwo"), encoding="utf-8")


def add_a_recording(place):
    texts = {**TEXTS, "train_c": "sechs"}
    write_manifest(place / "corpus", texts)


@pytest.mark.parametrize("change", [correct_training, add_a_recording])
def test_other_data_are_refused(run, place, change):
    change(place)
    with pytest.raises(
        CheckpointError, match=r"begun with other data: .* of train have changed since\. To go on"
    ):
        check_data(run, now(run))
    (run.checkpoints / "last.ckpt").unlink()
    check_data(run, now(run))  # nothing is there to go on from


@pytest.mark.parametrize("change", [correct_a_text, lose_a_line, replace_by_twin])
def test_of_the_test_set_training_sees_nothing(run, place, change):
    change(place)
    check_data(run, now(run))


def test_the_same_data_elsewhere_go_on(run, place):
    shutil.copytree(place / "corpus", place / "moved")
    moved = Run(config(place, place / "moved" / "my.jsonl", f"exp_dir={place / 'exp'}"))
    moved.check()
    check_data(moved, now(moved))


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_a_run_that_wrote_down_nothing_goes_on(run, content):
    (run.path / FILE).unlink()
    if content is not None:
        (run.path / FILE).write_text(content)
    assert changed(run, now(run)) == []


@pytest.mark.parametrize(("steps", "rows"), [(1, 2), (2, 4), (50, 7)])
def test_a_short_training_sees_few_rows(steps, rows):
    import datasets

    table = {"language": ["de"] * 7, "asr": [True] * 7, "targets": [["fr"]] * 7}
    examples = TrainingExamples(
        datasets.Dataset.from_dict(table),
        SimpleNamespace(samples=10, tokenizer=None, timeline=None),
        group_tasks=True,
    )
    batches = StepBatches(len(examples), 2, steps, seed=1)
    seen = rows_in(examples, batches)
    assert len(seen) == rows
    assert seen == sorted({index for batch in batches for _, index in batch})


# --- what a report takes of a corpus


def evaluated(place, digest):
    metrics = {"data": {"split": "test"}, "evaluation": {"data": digest}}
    return Evaluated(place / "exp", "manifest", "mini", "row05", 1, metrics)


def test_a_report_takes_the_data_that_were_scored(place):
    cfg = config(place)
    scored = rows_digest(load_prepared(cfg)["test"])
    correct_a_text(place)
    newer = rows_digest(load_prepared(cfg)["test"])
    texts = {}
    for digest in (scored, newer, None, "0" * 16):
        found = find_utterances(evaluated(place, digest), place / "data", ["test_a"])
        texts[digest] = found and found.references("test_a")["de"]
    assert texts == {scored: "vier", newer: "viel", None: "viel", "0" * 16: None}


def test_a_report_leaves_out_what_is_damaged(place, capsys):
    load_prepared(config(place))
    for path in (place / "data").glob("prepared/*/test/*.arrow"):
        path.write_bytes(path.read_bytes()[:3000])
    assert find_utterances(evaluated(place, None), place / "data", ["test_a"]) is None
    assert "which is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"u \xff\n", "u é\n".encode("latin-1"), "u x\n".encode("utf-16")])
def test_hypotheses_that_are_not_utf8_are_named(tmp_path, content):
    (tmp_path / "exp" / "hyp").mkdir(parents=True)
    (tmp_path / "exp" / "hyp" / "test.de-de.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"test\.de-de\.txt: not UTF-8 .*evaluate that run again"):
        read_hypotheses(evaluated(tmp_path, None))
