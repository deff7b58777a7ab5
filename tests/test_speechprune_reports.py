"""`python -m localgp.speechprune`: every report's table and its last line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from localgp.cli import CONF_DIR
from localgp.errors import ConfigError

transformers = pytest.importorskip("transformers")

from localgp.speechprune.checkpoint import load_config  # noqa: E402
from localgp.speechprune.dimensions import PAPER_TFLOPS, QWEN2_AUDIO_7B, Dimensions, flops_row  # noqa: E402
from localgp.speechprune.reports import report  # noqa: E402


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Shared, so that the embedded samples are spoken once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def run(capsys, data_dir):
    """Runs a report in this process; gives the result and what was printed."""

    def call(*overrides):
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("speechprune", [f"data_dir={data_dir}", *overrides])
        result = report(cfg)
        printed = capsys.readouterr().out.rstrip("\n").split("\n")
        assert json.loads(printed[-1]) == json.loads(json.dumps(result))
        return result, printed

    return call


def test_the_papers_tflops_column_from_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "localgp.speechprune", "model=qwen2_audio_7b", "report=flops"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout.rstrip("\n").split("\n")[-1])["rows"]
    assert [row["rate"] for row in rows] == list(PAPER_TFLOPS)
    for row, published in zip(rows, (12.20, 10.06, 7.93, 5.79, 3.66), strict=True):
        assert row["tflops"] == pytest.approx(published, rel=0.01)
        assert row["tflops_with_quadratic"] > row["tflops"]


def test_flops_agree_with_the_operations_that_run():
    """The formulas against PyTorch's counter on a real prefill, audio tower included."""
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from localgp.speechprune.checkpoint import build
    from localgp.speechprune.methods import Pruner
    from localgp.speechprune.qwen2_audio import Request, SpeechPrune

    model, processor = build("tiny", window=2)
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused attention
    speech = SpeechPrune(model, processor)
    dims = Dimensions.of(model.config)
    audio = np.random.default_rng(0).standard_normal(6 * 16_000).astype(np.float32)
    with FlopCounterMode(display=False) as tower:
        encoded = speech.encode([Request(audio, "When?", "When?")])
    mel = 2 * 3 * 40 * 201 * 200  # of the feature extractor's filter bank, which is no part of the model
    pruned = speech.prune(encoded, Pruner("rap", 0.4, budget=50))
    with FlopCounterMode(display=False) as language:
        speech.prefill(pruned)
    tokens = pruned.embeds_BTD.shape[1]
    row = flops_row(dims, 150, 30, other=tokens - 30)
    assert tower.get_total_flops() - mel == pytest.approx(row["tflops_audio_tower"] * 1e12)
    assert language.get_total_flops() == pytest.approx(row["tflops_with_quadratic"] * 1e12, rel=1e-3)


def test_seven_billion_dimensions_are_those_of_transformers_defaults():
    tower = transformers.Qwen2AudioEncoderConfig()
    ours = QWEN2_AUDIO_7B.audio
    assert (ours.mels, ours.size, ours.layers) == (tower.num_mel_bins, tower.d_model, tower.encoder_layers)
    assert (ours.feed_forward, ours.positions) == (tower.encoder_ffn_dim, tower.max_source_positions)
    assert ours.tokens == 750
    assert Dimensions.of(load_config("mid")).language.hidden == 1024


def test_accuracy_on_the_embedded_samples(run):
    result, printed = run("rate=0.2", "method=both", "model=tiny", "limit=2", "batch=2")
    original, both = result["rows"]
    assert (original["method"], original["kept_tokens"]) == ("original", 750)
    assert (both["method"], both["kept_tokens"]) == ("both", 600)
    assert original["key_recall"] == 0.5  # one of the two answers lies after the first 30 s
    assert result["hard"] == 1
    assert both["tflops"] < original["tflops"]
    assert both["tflops_end_to_end"] > original["tflops_end_to_end"]  # the whole audio goes through the tower
    assert any(line.lstrip().startswith("always") for line in printed)


def test_accuracy_by_generation_with_lists_and_shuffling(run):
    result, _ = run(
        "rate=[0,0.5]", "method=[rap,rac]", "limit=1", "answer=generate", "shuffle=true", "query=prompt"
    )
    assert [(row["method"], row["rate"]) for row in result["rows"]] == [
        ("original", 0),
        ("rap", 0.5),
        ("rac", 0.5),
    ]
    assert result["shuffled"] is True
    assert result["rows"][1]["kept_tokens"] == result["rows"][2]["kept_tokens"] == 375


def test_transcripts_of_a_corpus_without_audio_are_spoken(run, data_dir):
    result, _ = run("spiral=tests/fixtures/spiral", "speak=true", "rate=0.2", "positions=original")
    assert (result["questions"], result["hard"]) == (3, 1)
    assert (data_dir / "spiral" / "spiral-spoken" / "wavs" / "lecture_3.wav").is_file()
    assert result["rows"][1]["kept_tokens"] < result["rows"][0]["kept_tokens"]


def test_prefill_measures_time_beside_flops(run):
    result, _ = run("report=prefill", "rate=0.8", "prefill.rounds=2", "prefill.seconds=31")
    original, pruned = result["rows"]
    assert (original["audio_tokens"], original["kept_tokens"]) == (750, 750)
    assert (pruned["audio_tokens"], pruned["kept_tokens"]) == (775, 150)
    assert original["time_ratio"] == original["flop_ratio"] == 1
    assert pruned["flop_ratio"] < 0.5
    assert 0 < pruned["time_ratio"] < 1


def test_planted_report_has_a_row_per_choice(run):
    result, _ = run("report=planted", "planted.steps=2", "planted.trials=3", "method=[both,rap]", "rate=0.8")
    found = {(row["method"], row["positions"], row["remainder"], row["scale"]) for row in result["rows"]}
    assert found == {
        ("original", "compact", "fill", "literal"),
        ("both", "compact", "fill", "literal"),
        ("both", "original", "fill", "literal"),
        ("both", "compact", "drop", "literal"),
        ("both", "compact", "fill", "magnitude"),
        ("rap", "compact", "fill", "literal"),
        ("rap", "original", "fill", "literal"),
    }
    assert all(row["kept_tokens"] <= 150 for row in result["rows"])


@pytest.mark.slow
def test_a_trained_model_answers_from_the_whole_audio_after_phase_one(run):
    result, _ = run("report=planted", "planted.trials=100", "method=[first,rap]", "rate=0.8")
    rows = {(row["method"], row["positions"]): row for row in result["rows"]}
    assert rows["first", "compact"]["accuracy"] > 0.9
    assert rows["first", "compact"]["key_recall"] > 0.9
    assert rows["original", "compact"]["accuracy"] < 0.7  # two thirds of the answers lie beyond what it hears
    assert rows["rap", "compact"]["key_recall"] < 0.15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("report=speed", "report is 'speed'; valid: accuracy, flops, prefill, planted"),
        ("rate=1.5", "rate is 1.5; valid: from 0"),
        ("rate=much", "rate is 'much'; valid: a number"),
        ("method=third", "method is 'third'; valid: both, first, second, rap, rac"),
        ("limit=0", "limit is 0; valid: null"),
        ("query=answer", "query is 'answer'; valid: question, prompt"),
        ("answer=shout", "answer is 'shout'; valid: likelihood, generate"),
    ],
)
def test_wrong_settings_are_named(run, override, message):
    with pytest.raises(ConfigError, match=message):
        run("limit=1", override) if not override.startswith("limit") else run(override)
