"""Scores, the gates file, run directories, tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from localgp.errors import CheckpointError, ConfigError
from localgp.evaluation.gates_file import GateRecord, read_gates, write_gates
from localgp.evaluation.measured import measured_ratios
from localgp.evaluation.score import basic_normalize, bleu, score_tasks, word_error_rate
from localgp.evaluation.summary import scores_table
from localgp.report.markdown import results
from localgp.report.runs import collect, group
from localgp.run import Run
from tests.test_config import composed


def test_word_error_rate_counts_words_of_the_set():
    assert word_error_rate(["a b c d", "e"], ["a b x d", "e f"]) == pytest.approx(100 * 2 / 5)


def test_bleu_is_sacrebleus():
    assert bleu(["le chat dort sur le lit"], ["le chat dort sur le lit"])[0] == pytest.approx(100)
    score, signature = bleu(["le chat dort sur le lit"], ["le chat mange sur le lit"])
    assert 0 < score < 100
    assert "tok:13a" in signature


def test_normalizers():
    assert basic_normalize("Élysée, L'État [rire] (bruit) <na> dit: «non»!") == "élysée l état dit non"
    scores = score_tasks({"de": (["Ja, gut."], ["ja gut"])}, "basic")
    assert scores["wer"] == {"de": 0.0, "average": 0.0}
    assert score_tasks({"de": (["Ja, gut."], ["ja gut"])}, "none")["wer"]["de"] == 100.0
    with pytest.raises(ConfigError, match="'whisper'; valid: none, basic"):
        score_tasks({"de": (["a"], ["a"])}, "whisper")


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    return GateRecord(
        ["a", "b"], ["ffn1", "attention"], rng.random((2, 3, 2, 21)) < 0.6, np.array([[0, 10], [2, 21]]), 0.04
    )


def test_gates_file_round_trip(tmp_path, record):
    write_gates(tmp_path / "gates" / "test.npz", record)
    back = read_gates(tmp_path / "gates" / "test.npz")
    np.testing.assert_array_equal(back.open, record.open)
    np.testing.assert_array_equal(back.real, record.real)
    assert (back.utt_ids, back.modules, back.seconds_per_frame) == (record.utt_ids, record.modules, 0.04)
    assert not list((tmp_path / "gates").glob(".*"))


def test_kept_ratios_over_real_and_all_frames(record):
    record.open[:] = False
    record.open[0, :, 0, :10] = True  # ffn1 runs on the first utterance's signal alone
    kept = measured_ratios(record)
    assert kept["kept"]["encoder.ffn1"] == pytest.approx(10 / 42, abs=1e-4)
    assert kept["kept_real"]["encoder.ffn1"] == pytest.approx(10 / 29, abs=1e-4)
    assert kept["kept"]["encoder.attention"] == 0
    assert kept["sparsity"]["all_frames"] == pytest.approx(1 - 5 / 42, abs=1e-4)
    # 13 of 42 frames are padding, skipped in both modules; 32 + 42 frame-modules are skipped in all
    assert kept["sparsity"]["skipped_that_is_padding"] == pytest.approx(26 / 74, abs=1e-4)


def test_run_directory_and_its_variants(tmp_path):
    place = f"exp_dir={tmp_path}"
    assert Run(composed("conf=row05", place)).path == tmp_path / "mini/mini/row05/seed1"
    assert Run(composed("conf=row11", place)).path.parts[-2] == "row11", (
        "what it sets itself makes no variant"
    )
    assert Run(composed("conf=row11", place, "pruning.attention=dot")).path.parts[-2] == "row11-dot"
    assert Run(composed("conf=row05", place, "pruning.target=0.5", "seed=2")).path.parts[-2:] == (
        "row05-target0.5",
        "seed2",
    )
    assert Run(composed("conf=row01", place, "pruning.target=0.5")).path.parts[-2] == "row01"
    assert Run(composed("conf=row06", place, "pruning.attention=cosine")).path.parts[-2] == "row06-cosine"
    assert Run(composed("conf=row02", place, "pruning.attention=cosine")).path.parts[-2] == "row02"
    assert Run(composed("conf=row05", place, "pruning.fill=pair")).path.parts[-2] == "row05-pair"


def test_run_refuses_another_configuration(tmp_path):
    Run(composed("conf=row05", f"exp_dir={tmp_path}")).start()
    Run(composed("conf=row05", f"exp_dir={tmp_path}", "decode.beam=1", "training.log_every=3")).start()
    with pytest.raises(CheckpointError, match="training.lr: 0.0005 there, 0.1 asked for"):
        Run(composed("conf=row05", f"exp_dir={tmp_path}", "training.lr=0.1")).start()


def test_untrained_run_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match=r"python -m localgp.train conf=row05.*none"):
        Run(composed("conf=row05", f"exp_dir={tmp_path}")).require_weights()
    for seed in range(1, 12):
        weights = Run(composed("conf=row01", f"exp_dir={tmp_path}", f"seed={seed}")).weights
        weights.parent.mkdir(parents=True)
        weights.touch()
    with pytest.raises(CheckpointError, match=r"row01/seed1, .* and 3 more\.$"):
        Run(composed("conf=row05", f"exp_dir={tmp_path}")).require_weights()


def _metrics(name, wer, whole=True):
    return {
        "name": name,
        "wer": {"de": wer, "average": wer},
        "bleu": {"de-fr": 40.0, "average": 40.0},
        "signature": {"wer": "w", "bleu": "b"},
        "kept": {},
        "sparsity": None,
        "gflops": {"encoder": 1.0, "convention": "c"},
        "decode": {"beam": 5},
        "data": {"corpus": "mini", "split": "test", "utterances": 9, "whole_split": whole},
        "commit": "abc",
        "backbone": {"name": "mini"},
    }


def test_results_group_seeds_and_keep_parts_apart(tmp_path):
    for seed, wer in ((1, 10.0), (2, 14.0)):
        path = tmp_path / f"mini/mini/row01/seed{seed}"
        path.mkdir(parents=True)
        (path / "metrics.json").write_text(json.dumps(_metrics("row01", wer)))
    path = tmp_path / "mini/mini/row05/seed1"
    path.mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(_metrics("row05", 9.0, whole=False)))
    runs = collect(tmp_path)
    assert len(group(runs)) == 2
    text = results(runs)
    assert "12.0 ± 2.8" in text
    assert "568.5" in text.split("The paper's")[1]


def test_a_score_that_there_is_not_is_a_dash():
    without_translations = _metrics("row01", 9.0) | {"bleu": {}}
    head, line = scores_table([without_translations]).splitlines()
    assert line.split()[:4] == ["row01", "9.0", "9.0", "-"]
    assert head.split()[:5] == ["run", "WER", "de", "WER", "BLEU"]


def test_nothing_evaluated_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no evaluated run"):
        collect(tmp_path)
