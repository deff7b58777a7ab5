"""Every evaluation of a run is kept, the right one leads, and none is taken for another."""

from __future__ import annotations

import functools
import json
import shutil

import pytest

from localgp.evaluation.results import (
    Identity,
    asked_of,
    comparable,
    find_evaluation,
    save,
    scores_of,
    stored_evaluations,
    tag_of,
)
from localgp.evaluation.summary import describe_evaluation, scores_table
from localgp.io import file_digest
from localgp.report.markdown import results
from localgp.report.runs import Evaluated, group, read_run
from localgp.report.scores import evaluations_table
from localgp.run import Run
from tests.test_config import composed as compose

composed = functools.cache(compose)  # nothing here changes a configuration
OWN = Identity("w1", "w1", "d1")


@pytest.fixture
def run(tmp_path):
    """A run that was trained with beam 4; its evaluations need no model here."""
    found = Run(composed("conf=row05", f"exp_dir={tmp_path}", "decode.beam=4"))
    found.start()
    return found


def evaluate(run, *overrides, identity=OWN, whole=True, wer=10.0):
    """Stores what `localgp.evaluate` would; the hypotheses say whose they are."""
    cfg = composed("conf=row05", "decode.beam=4", *overrides)
    asked = asked_of(cfg)
    tag = tag_of(asked, run.path, identity)
    split = cfg.evaluate.split
    metrics = {
        "name": "row05", "wer": {"de": wer, "average": wer}, "bleu": {"de-fr": 1.0, "average": 1.0},
        "signature": {"wer": "w", "bleu": "b"}, "kept": {}, "sparsity": {"all_frames": 0.25, "real_frames": 0.1},
        "gflops": {"encoder": 1.0, "convention": "c"}, "decode": {**asked["decode"], "normalizer": "none"},
        "data": {"corpus": "mini", "split": split, "utterances": 9 if whole else 3, "whole_split": whole},
        "backbone": {"name": "mini"}, "asked": asked, "commit": "abc",
        "evaluation": {"tag": tag, **vars(identity)},
    }  # fmt: skip
    save(run.path, metrics, {f"{split}.de-de.txt": f"u {tag}\n"}, None, None)
    return tag


def leading(run):
    metrics = json.loads((run.path / "metrics.json").read_text())
    split = metrics["data"]["split"]
    tag = metrics["evaluation"]["tag"]
    assert (run.path / "hyp" / f"{split}.de-de.txt").read_text() == f"u {tag}\n"
    return tag


@pytest.mark.parametrize(
    ("overrides", "identity", "tag"),
    [
        ([], OWN, "test"),
        (["decode.batch=3", "threads=1"], OWN, "test"),
        (["evaluate.split=dev"], OWN, "dev"),
        (["evaluate.limit=3"], OWN, "test-first3"),
        (["decode.beam=1", "decode.length_bonus=-0.5"], OWN, "test-beam1-length_bonus_0.5"),
        (["evaluate.normalizer=basic"], OWN, "test-normalizer_basic"),
        (["evaluate.checkpoint=a/step 2.safetensors"], Identity("w234567890", "w1"), "test-step_2_w2345678"),
        (["evaluate.checkpoint=a/model.safetensors"], OWN, "test"),
    ],
)
def test_an_evaluation_is_named_after_what_it_is(run, overrides, identity, tag):
    assert tag_of(asked_of(composed("conf=row05", "decode.beam=4", *overrides)), run.path, identity) == tag


def test_no_evaluation_replaces_another(run):
    made = [
        evaluate(run, *more, whole=not any("limit" in m for m in more))
        for more in ([], ["evaluate.split=dev"], ["evaluate.limit=3"], ["decode.beam=1"], ["decode.beam=2"])
    ]
    assert {m["evaluation"]["tag"] for m in stored_evaluations(run.path)} == set(made)
    assert len(made) == 5
    for tag in made:
        (hypotheses,) = (run.path / "evaluations" / tag / "hyp").iterdir()
        assert hypotheses.read_text() == f"u {tag}\n"
    assert leading(run) == "test"
    assert (run.path / "hyp" / "dev.de-de.txt").read_text() == "u dev\n"


PART, WHOLE_DEV, BEAM_1, PLAIN = (
    (["evaluate.limit=3"], False),
    (["evaluate.split=dev"], True),
    (["decode.beam=1"], True),
    ([], True),
)


@pytest.mark.parametrize(
    ("first", "second", "leads"),
    [
        (PART, WHOLE_DEV, "dev"),
        (WHOLE_DEV, PART, "dev"),
        (PART, BEAM_1, "test-beam1"),
        (BEAM_1, WHOLE_DEV, "test-beam1"),
        (BEAM_1, PLAIN, "test"),
        (PLAIN, BEAM_1, "test"),
        (BEAM_1, (["decode.beam=2"], True), "test-beam2"),
        ((["decode.beam=2"], True), BEAM_1, "test-beam1"),
        (PART, (["evaluate.limit=3", "evaluate.split=dev"], False), "test-first3"),
    ],
)
def test_the_whole_test_set_as_the_run_decodes_leads(run, first, second, leads):
    for overrides, whole in (first, second):
        evaluate(run, *overrides, whole=whole)
    assert leading(run) == leads


@pytest.mark.parametrize(
    "now",
    [
        Identity("w2", "w2", "d1"),
        Identity("w1", "w1", "d2"),
        Identity("w2", "w1", "d1"),
        Identity(None, None, None),
    ],
    ids=["other weights", "other data", "a checkpoint", "unknown"],
)
def test_what_was_made_of_other_weights_or_data_is_not_found(run, now):
    tag = evaluate(run)
    asked = asked_of(composed("conf=row05", "decode.beam=4", "decode.batch=1"))
    assert find_evaluation(run.path, tag, asked, OWN)["wer"]["de"] == 10.0
    assert find_evaluation(run.path, tag, asked, now) is None
    assert find_evaluation(run.path, tag, asked_of(composed("conf=row05", "decode.beam=3")), OWN) is None


def test_what_the_weights_were_before_leads_no_more(run):
    evaluate(run)
    evaluate(run, "evaluate.limit=3", whole=False, identity=Identity("w2", "w2", "d1"))
    assert leading(run) == "test-first3"


def test_a_part_of_new_data_does_not_lead_before_the_whole_of_old(run):
    evaluate(run)
    evaluate(run, "evaluate.limit=3", whole=False, identity=Identity("w1", "w1", "d2"))
    assert leading(run) == "test"
    evaluate(run, "decode.beam=1", identity=Identity("w1", "w1", "d2"))
    assert leading(run) == "test-beam1"


def test_a_checkpoint_does_not_lead_before_the_run(run):
    evaluate(run)
    evaluate(run, "evaluate.checkpoint=a/step2.safetensors", identity=Identity("w9", "w1", "d1"))
    assert leading(run) == "test"


def test_an_evaluation_of_before_is_kept(run):
    """metrics.json, hyp/ and gates/ alone, as they were when a run had one evaluation."""
    tag = evaluate(run, wer=33.0)
    old = json.loads((run.path / "metrics.json").read_text())
    del old["evaluation"]
    (run.path / "metrics.json").write_text(json.dumps(old))
    shutil.rmtree(run.path / "evaluations")
    evaluate(run, "decode.beam=1")
    assert leading(run) == tag == "test"
    assert json.loads((run.path / "metrics.json").read_text())["wer"]["de"] == 33.0
    evaluate(run, wer=5.0)
    assert json.loads((run.path / "metrics.json").read_text())["wer"]["de"] == 5.0


@pytest.mark.parametrize("lost", ["metrics.json", "hyp", "both"])
def test_what_lay_in_the_run_comes_back(run, lost):
    """As after a kill between storing an evaluation and letting it lead."""
    evaluate(run)
    if lost != "hyp":
        (run.path / "metrics.json").unlink()
    if lost != "metrics.json":
        shutil.rmtree(run.path / "hyp")
    evaluate(run, "decode.beam=1")
    assert leading(run) == "test"


def test_a_broken_evaluation_leaves_the_one_before(run, monkeypatch):
    evaluate(run, wer=7.0)
    monkeypatch.setattr("localgp.evaluation.results._write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(run, wer=8.0)
    assert stored_evaluations(run.path)[0]["wer"]["de"] == 7.0
    assert [p.name for p in (run.path / "evaluations").iterdir() if p.is_dir()] == ["test"]


def test_a_sweep_over_an_option_is_a_table_with_a_column_for_it(run):
    for beam in (1, 2, 8):
        evaluate(run, f"decode.beam={beam}", wer=10.0 + beam)
    evaluate(run, "evaluate.split=dev")
    evaluate(run, "decode.beam=3", identity=Identity("w1", "w1", "d2"))
    runs = comparable(run.path, stored_evaluations(run.path)[1])
    head, *lines = scores_table(runs).splitlines()
    assert head.split()[:4] == ["run", "beam", "WER", "de"]
    assert [line.split()[1:3] for line in lines] == [["1", "11.0"], ["2", "12.0"], ["8", "18.0"]]
    assert "frames skipped, %" in head
    assert "of frames with signal, %" in head
    assert "tokens" not in head, "nothing is skipped there"


def test_an_evaluation_says_what_it_is(run):
    evaluate(run, "decode.beam=1", "decode.maxlenratio=0.5")
    (metrics,) = stored_evaluations(run.path)
    said = describe_evaluation(metrics)
    assert (
        said
        == "mini: test set, whole, 9 utterances; beam 1, ctc_weight 0.3, maxlenratio 0.5, fp32, normalizer none"
    )


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"wer": 3}'])
def test_a_damaged_evaluation_is_made_again(run, damage):
    tag = evaluate(run)
    (run.path / "evaluations" / tag / "metrics.json").write_text(damage)
    assert find_evaluation(run.path, tag, asked_of(composed("conf=row05", "decode.beam=4")), OWN) is None
    assert evaluate(run) == leading(run)


def test_a_packed_model_has_the_scores_of_its_own_weights(run):
    weights = run.path / "model.safetensors"
    weights.write_bytes(b"now")
    own = file_digest(weights)
    evaluate(run, "evaluate.checkpoint=a/step2.safetensors", identity=Identity("w9", own, "d1"))
    lead = json.loads((run.path / "metrics.json").read_text())
    assert scores_of(run.path, weights, lead) == {}, "of a checkpoint alone"
    evaluate(run, "evaluate.limit=3", whole=False, identity=Identity(own, own, "d1"))
    lead = json.loads((run.path / "metrics.json").read_text())
    assert lead["evaluation"]["weights"] == "w9"
    assert scores_of(run.path, weights, lead)["evaluation"]["tag"] == "test-first3"
    evaluate(run, identity=Identity(own, own, "d1"))
    lead = json.loads((run.path / "metrics.json").read_text())
    assert scores_of(run.path, weights, lead) == lead
    weights.write_bytes(b"trained again")
    assert scores_of(run.path, weights, lead) == {}
    assert scores_of(run.path, weights, {"wer": {}}) == {"wer": {}}, "an evaluation that stored no digest"


# --- in a report


def at(place, name, seed, metrics):
    return Evaluated(place / "mini" / "mini" / name / f"seed{seed}", "mini", "mini", name, seed, metrics)


def scored(split="test", whole=True, beam=5, data="d1", utterances=9):
    return {
        "wer": {"average": 10.0}, "bleu": {}, "kept": {}, "decode": {"beam": beam, "batch": beam},
        "data": {"corpus": "mini", "split": split, "utterances": utterances, "whole_split": whole},
        "evaluation": {"data": data},
    }  # fmt: skip


def test_a_report_leads_with_the_whole_test_set(tmp_path):
    made = [scored("dev"), scored("dev", whole=False), scored(whole=False), scored()]
    labels = [label for label, _ in group([at(tmp_path, "row01", n, m) for n, m in enumerate(made)])]
    assert [label.partition(", 9")[0] for label in labels] == [
        "mini, whole test set",
        "mini, whole dev set",
        "mini, part of the test set",
        "mini, part of the dev set",
    ]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (scored(beam=1), "row05 (beam 1)"),
        (scored(data="d234567890"), "row05 (data d2345678)"),
        (scored(data=None), "row05"),
    ],
)
def test_seeds_that_were_scored_otherwise_are_not_averaged(tmp_path, other, name):
    runs = [at(tmp_path, "row05", n, scored()) for n in (1, 2)] + [at(tmp_path, "row05", 3, other)]
    (groups,) = group(runs).values()
    assert {g.name: [run.seed for run in g.runs] for g in groups} == (
        {"row05": [1, 2], name: [3]} if name != "row05" else {"row05": [1, 2, 3]}
    )


def test_a_report_has_every_evaluation(run):
    for beam in (1, 2, 8):
        evaluate(run, f"decode.beam={beam}", wer=10.0 + beam)
    evaluate(run, "evaluate.limit=3", whole=False)
    evaluate(run)
    evaluate(run, "evaluate.split=dev", identity=Identity("w0", "w0", "d1"))  # of weights that have gone
    evaluate(run, "decode.beam=1", wer=11.0)
    found = read_run(run.path)
    table = evaluations_table([found])
    assert table.header == ["run", "scored", "beam", "WER", "BLEU", "skipped", "leads"]
    assert [row[1:4] for row in table.rows] == [
        ["test set, whole, 9 utterances", "4", "10.0"],
        ["test set, whole, 9 utterances", "1", "11.0"],
        ["test set, whole, 9 utterances", "2", "12.0"],
        ["test set, whole, 9 utterances", "8", "18.0"],
        ["test set, first 3 per language, 3 utterances", "4", "10.0"],
    ]
    assert [row[-1] for row in table.rows] == ["yes", "", "", "", ""]
    text = results([found])
    assert text.index("whole test set") < text.index("## All evaluations") < text.index("## The paper's")
