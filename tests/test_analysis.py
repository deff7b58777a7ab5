"""Statistics of gates on planted answers, and the analyze command on a tiny corpus."""

from __future__ import annotations

import json

import numpy as np
import pytest

from localgp.errors import CheckpointError, ConfigError, CorpusError
from localgp.evaluation.decoder_gates_file import DecoderGateRecord, read_decoder_gates, write_decoder_gates
from localgp.evaluation.gates_file import GateRecord
from localgp.report.analyze import analyze
from localgp.report.gate_statistics import (
    GateCounts,
    agreement,
    frames_in,
    rank_auc,
    relation,
    speech_frames,
    word_rates,
)
from localgp.report.tokens import compare, token_summary, token_tests, typical_tokens
from localgp.report.utterances import Truth, read_truth
from localgp.spectrogram import band_centres, frame_levels, log_mel
from localgp.timeline import frame_centres
from localgp.training.mask_image import MaskImage, mask_picture
from tests.analysis_helpers import FRAMES, LAYERS, MODULES, SECONDS, shared_place

STEP = 0.04


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return shared_place(tmp_path_factory)


def planted(open_speech: float, open_pause: float, seed: int = 0):
    """40 utterances of 100 frames, 80 with signal, speech in 20 to 60; one layer and module."""
    rng = np.random.default_rng(seed)
    speech = np.zeros((40, 100), dtype=bool)
    speech[:, 20:60] = True
    chance = np.where(speech, open_speech, open_pause)
    opened = rng.random((40, 100)) < chance
    record = GateRecord(
        [f"u{i}" for i in range(40)], ["ffn1"], opened[:, None, None], np.tile([0, 80], (40, 1)), STEP
    )
    return record, speech


def test_counts_by_region():
    record, speech = planted(1.0, 0.0)
    counts = GateCounts.of(record, speech)
    assert counts.frames_UR[0].tolist() == [40, 40, 20]
    assert counts.kept("speech").item() == 1
    assert counts.kept("pause").item() == 0
    assert counts.kept("real").item() == pytest.approx(0.5)
    assert counts.kept("all").item() == pytest.approx(0.4)
    assert counts.kept("all", np.zeros(40, dtype=bool)).shape == (1, 1)
    assert np.isnan(counts.kept("all", np.zeros(40, dtype=bool))).all()
    assert counts.kept_by_utterance("real").shape == (40, 1)
    assert GateCounts.of(record, None).kept("signal").item() == pytest.approx(0.5)


def test_counts_are_those_of_the_gates_file():
    record, _ = planted(0.9, 0.3)
    every, real = record.kept()
    counts = GateCounts.of(record, None)
    np.testing.assert_allclose(counts.kept("all"), every)
    np.testing.assert_allclose(counts.kept("real"), real)


def test_true_speech_needs_every_utterance():
    record, speech = planted(0.9, 0.3)
    truth = {u: Truth(((20 * STEP, 60 * STEP),)) for u in record.utt_ids}
    np.testing.assert_array_equal(speech_frames(record, truth), speech)
    record.real[:, 1] = 50
    assert not speech_frames(record, truth)[:, 50:].any()
    del truth["u3"]
    assert speech_frames(record, truth) is None
    assert frames_in([], np.arange(5.0)).sum() == 0


def test_agreement_of_planted_masks():
    rng = np.random.default_rng(1)
    record, speech = planted(1.0, 0.0)
    loud = np.where(speech, -20.0, -60.0) + rng.normal(size=speech.shape)
    perfect = agreement(record, GateCounts.of(record, speech), speech, loud)
    for name in ("precision", "recall", "auc", "energy_precision", "energy_recall", "energy_auc"):
        assert getattr(perfect, name).item() == 1, name
    assert perfect.energy_curve_auc == 1
    assert perfect.speech_share == pytest.approx(0.5)

    record, speech = planted(0.6, 0.6)
    deaf = agreement(record, GateCounts.of(record, speech), speech, rng.normal(size=speech.shape))
    assert deaf.auc.item() == pytest.approx(0.5, abs=0.04)
    assert deaf.precision.item() == pytest.approx(0.5, abs=0.04)
    assert deaf.recall.item() == pytest.approx(0.6, abs=0.04)
    assert deaf.energy_auc.item() == pytest.approx(0.5, abs=0.04)

    record, speech = planted(0.9, 0.2)
    some = agreement(record, GateCounts.of(record, speech), speech, loud)
    assert some.recall.item() == pytest.approx(0.9, abs=0.03)
    assert some.auc.item() == pytest.approx(0.85, abs=0.03)
    # 44 of 80 frames open on average: the energy VAD finds all 40 of speech and four more
    assert some.energy_recall.item() == pytest.approx(1.0, abs=0.02)
    assert some.energy_precision.item() == pytest.approx(40 / 44, abs=0.03)


def test_rank_auc_is_sklearns_definition():
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 5, 300).astype(float), rng.random(300) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert rank_auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert np.isnan(rank_auc(scores, np.ones(300, dtype=bool)))


def test_relation_finds_a_planted_one_and_leaves_unknowns_out():
    rng = np.random.default_rng(3)
    rate = rng.uniform(1, 5, 200)
    found = relation(0.5 + 0.05 * rate + rng.normal(0, 0.01, 200), rate)
    assert found.rho > 0.95
    assert found.p < 1e-6
    rate[:50] = np.nan
    assert relation(rng.random(200), rate).n == 150
    assert relation(np.ones(200), rate) is None
    assert relation(rng.random(200), np.full(200, np.nan)) is None
    np.testing.assert_allclose(word_rates(["ein satz", "x"], [1.0, 0.0])[0], 2.0)


def test_log_mel_sees_a_tone_where_it_is():
    time = np.arange(16_000) / 16_000
    levels = log_mel(np.sin(2 * np.pi * 1000 * time).astype(np.float32))
    assert levels.shape == (80, 101)
    assert abs(band_centres()[levels[:, 50].argmax()] - 1000) < 60


@pytest.mark.parametrize("frame", [0, 1, 100, 198])
def test_energy_is_measured_around_the_frames_centre(frame):
    """40 ms of sound around a frame's centre are that frame's alone, from the first frame to the last."""
    centre = frame_centres(FRAMES, SECONDS)[frame]
    samples = np.zeros(round(SECONDS * 16_000), dtype=np.float32)
    samples[round((centre - 0.02) * 16_000) : round((centre + 0.02) * 16_000)] = 0.5
    levels = frame_levels(samples, frame_centres(FRAMES, SECONDS))
    expected = np.full(FRAMES, -100.0)
    expected[frame] = 20 * np.log10(0.5)
    np.testing.assert_allclose(levels, expected, atol=0.01)
    short = frame_levels(samples[: round(centre * 16_000)], frame_centres(FRAMES, SECONDS))
    np.testing.assert_allclose(short[frame], expected[frame] - 10 * np.log10(2), atol=0.01)


@pytest.fixture
def tokens():
    """Tokens of two tasks; source attention runs in 3 of 4 layers for word-initial ones, in 1 of 4 for others."""
    pieces = ["▁woll", "en", "▁struk", "tur"] * 50
    rng = np.random.default_rng(4)
    opened = rng.random((200, 4, 3)) < 0.5
    opened[0::2, :, 1] = [True, True, True, False]
    opened[1::2, :, 1] = [False, False, False, True]
    opened[::20, 0, 1] = False  # some variation
    modules = ["self_attention", "source_attention", "ffn"]
    return DecoderGateRecord(modules, opened, pieces, ["a", "b"], ["de", "de-fr"], np.array([120, 80]))


def test_decoder_gates_round_trip(tmp_path, tokens):
    path = tmp_path / "gates/test.decoder.npz"
    write_decoder_gates(path, tokens)
    back = read_decoder_gates(path)
    np.testing.assert_array_equal(back.open, tokens.open)
    assert (back.pieces, back.modules, back.tasks) == (tokens.pieces, tokens.modules, tokens.tasks)
    assert (back.task_of_token() == "de").sum() == 120
    tokens.lengths = np.array([1, 2])
    with pytest.raises(ValueError, match="200 pieces, hypotheses of 3 tokens"):
        write_decoder_gates(path, tokens)


def test_token_tests_are_scipys_with_effect_sizes(tokens):
    from scipy.stats import mannwhitneyu, ttest_ind

    test = token_tests(tokens)["source_attention"]
    used = tokens.open[:, :, 1].mean(1)
    assert test.u == mannwhitneyu(used[::2], used[1::2]).statistic
    assert test.t == pytest.approx(ttest_ind(used[::2], used[1::2], equal_var=False).statistic)
    assert (test.n_initial, test.n_other) == (100, 100)
    assert test.rank_biserial > 0.9
    assert test.cohens_d > 5
    assert max(test.u_p, test.t_p) < 1e-4
    null = token_tests(tokens)["ffn"]
    assert abs(null.cohens_d) < 0.5
    assert token_tests(tokens, "de-fr")["source_attention"].n_other == 40
    assert compare(np.ones(5), np.ones(5)) is None
    assert compare(np.ones(5), np.zeros(5)).cohens_d == np.inf


def test_analyze_writes_figures_and_agreement(place):
    cfg = place.config("conf=row05", "++analyze.format=png")
    text, files = analyze(cfg)
    assert {f.name for f in files} == {
        "analysis.json",
        "figure1.png",
        "kept.png",
        "vad_agreement.png",
        "relations.png",
    }
    for file in files[1:]:
        assert file.read_bytes()[:4] == b"\x89PNG", file
    assert not list(files[0].parent.glob(".*"))
    assert "agreement with true speech" in text
    summary = json.loads(files[0].read_text(encoding="utf-8"))
    assert summary["frames"].keys() == {"speech", "pause", "padding"}
    assert sum(summary["frames"].values()) == 15 * FRAMES
    assert summary["kept"]["speech"]["ffn1"][0] == pytest.approx(0.95, abs=0.02)  # as the fixture planted it
    assert summary["kept"]["pause"]["ffn1"][0] == pytest.approx(0.4, abs=0.06)
    assert summary["agreement"]["mask"]["auc"]["ffn1"][0] == pytest.approx((1 + 0.95 - 0.4) / 2, abs=0.04)
    assert summary["agreement"]["energy_curve_auc"] > 0.8
    assert set(summary["kept_by_language"]["real"]) == {"de", "fr", "it"}
    assert summary["relations"]["word_rate"]["all"]["n"] == 15


def test_analyze_of_a_decoder_run(place, tokens):
    path = place.path / "exp/mini/mini/row05/seed2/gates/test.decoder.npz"
    write_decoder_gates(path, tokens)
    text, files = analyze(place.config("conf=row05", "seed=2", "++analyze.tokens=['▁woll',tur]"))
    assert "rank-biserial" in text
    assert "[Space]woll" in next(f for f in files if f.name == "figure2.svg").read_text(encoding="utf-8")
    decoder = json.loads(files[0].read_text(encoding="utf-8"))["decoder"]
    assert decoder["tests"]["de"]["source_attention"]["n_initial"] == 60
    assert decoder == json.loads(json.dumps(token_summary(tokens)))
    assert typical_tokens(tokens) == ["▁struk", "▁woll", "en", "tur"]
    with pytest.raises(ConfigError, match="analyze.tokens: huch not among"):
        analyze(place.config("conf=row05", "seed=2", "++analyze.tokens=[huch]"))
    path.unlink()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["conf=row01"], CheckpointError, "has no stored gates"),
        (["conf=row02"], CheckpointError, "has not been evaluated"),
        (
            ["conf=row05", "++analyze.utterance=nobody"],
            ConfigError,
            "'nobody', which this run did not decode",
        ),
    ],
)
def test_analyze_says_what_is_wrong(place, overrides, error, message):
    with pytest.raises(error, match=message):
        analyze(place.config(*overrides))


def test_analyze_without_the_corpus_keeps_to_the_masks(place, tmp_path):
    text, files = analyze(place.config("conf=control_random", f"data_dir={tmp_path}"))
    assert {f.name for f in files} == {"analysis.json", "figure1.svg", "kept.svg"}
    assert "the corpus is not prepared here" in text
    assert not list(tmp_path.iterdir()), "nothing may be generated for a picture's sake"


def test_damaged_truth_is_named(tmp_path):
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth/test.de.jsonl").write_text('{"speech": "a", "start": 0.5}\n')
    texts = {"u": {"recording": "a", "start": 0.5}}
    with pytest.raises(CorpusError, match=r"test.de.jsonl:1 is not the truth"):
        read_truth(tmp_path, "test", texts)


def test_mask_picture_shows_what_is_open():
    masks = np.zeros((2, 3, 10), dtype=bool)
    masks[1, 0, 4] = True  # second module, first layer: the bottom row
    picture = mask_picture(log_mel(np.zeros(6400, dtype=np.float32)), masks, 0.8)
    assert picture.shape == (80 + 2 * (4 + 3 * 8), 40, 3)
    orange = (picture == (230, 159, 0)).all(-1)
    rows, columns = np.nonzero(orange)
    assert set(columns) == {16, 17, 18, 19}
    assert set(rows) == set(range(picture.shape[0] - 8, picture.shape[0] - 1))


def test_mask_image_goes_to_the_logger(place):
    import torch

    from localgp.corpora.prepared import load_prepared
    from localgp.encoder.run import EncoderOutput
    from localgp.gates import Gate

    class Model:
        samples = 128_000

        def heard(self, ends):
            return torch.full_like(ends, self.samples)

        def encode(self, speech, lengths, contexts=None):
            value = torch.ones(1, FRAMES)
            gates = [dict.fromkeys(MODULES, Gate(value, value)) for _ in range(LAYERS)]
            return EncoderOutput(torch.zeros(1, FRAMES, 4), lengths, gates)

    class Board:
        def add_image(self, title, picture, step, dataformats):
            self.logged = title, picture.shape, step, dataformats

    class Logger:
        experiment = Board()

    class Trainer:
        sanity_checking, is_global_zero, global_step = False, True, 7
        loggers = [Logger()]  # noqa: RUF012

    class Module:
        model, device = Model(), torch.device("cpu")

    rows = load_prepared(place.config())["dev"]
    MaskImage(rows, Model()).on_validation_epoch_end(Trainer(), Module())
    title, shape, step, dataformats = Trainer.loggers[0].experiment.logged
    assert rows[0]["utt_id"] in title
    assert shape == (80 + len(MODULES) * (4 + 8 * LAYERS), 4 * FRAMES, 3)
    assert (step, dataformats) == (7, "HWC")
