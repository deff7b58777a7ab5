"""Table 1 row by row: every experiment builds for every size, trains a step and scores, and is counted."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file

from localgp.backbones import open_backbone
from localgp.bench.__main__ import main as bench
from localgp.build import build_decoder_policy, build_languages, build_model, build_policy
from localgp.errors import ConfigError
from localgp.evaluation.decoder_gates_file import read_decoder_gates
from localgp.evaluation.evaluate_run import evaluate_run
from localgp.evaluation.results import at_budgets
from localgp.flops import DECODER_TOKENS, count
from localgp.model import GatedS2T
from localgp.pruning import DECODER_MODULES
from localgp.report.runs import collect, group
from localgp.report.utterances import read_hypotheses
from localgp.training.fit import fit
from localgp.window import window_of
from tests.test_config import CONFS, composed

ROWS = [f"row{number:02d}" for number in range(1, 11)]
GATES = {  # row: gates of the encoder, of the decoder, contexts
    "row01": (None, None, []),
    "row02": ("global", None, ["front"]),
    "row03": (None, "global", ["front", "task"]),
    "row04": ("global", "global", ["front", "front", "task"]),
    "row05": ("local", None, ["front"]),
    "row06": ("local", None, ["front", "spk"]),
    "row07": ("local", None, ["front", "event"]),
    "row08": ("local", None, ["front", "spk", "event"]),
    "row09": (None, "local", ["lang2vec"]),
    "row10": ("local", "local", ["front", "event", "lang2vec"]),
}


@pytest.mark.parametrize("row", ROWS)
def test_row_is_the_papers(row):
    pruning = composed(f"conf={row}").pruning
    encoder, decoder, contexts = GATES[row]
    assert (pruning.encoder, pruning.decoder) == (encoder, decoder)
    assert [*pruning.context, *pruning.decoder_context] == contexts
    assert pruning.target == 0.3
    assert list(pruning.encoder_modules) == (
        ["ffn1", "attention", "cgmlp", "ffn2"] if encoder == "global" else ["ffn1", "attention", "ffn2"]
    )
    assert list(pruning.decoder_modules) == list(DECODER_MODULES)


@functools.cache
def shape_of(backbone: str):
    """A backbone with random weights that take no memory."""
    with torch.device("meta"):
        return open_backbone(composed(f"backbone={backbone}", "backbone.weights=random").backbone)


@pytest.mark.parametrize("name", ["mini", "owsm_v3.1_medium"])
@pytest.mark.parametrize("conf", CONFS)
def test_every_experiment_builds(conf, name):
    cfg = composed(f"conf={conf}", f"backbone={name}", "backbone.weights=random")
    backbone = shape_of(name)
    with torch.device("meta"):
        policy = build_policy(cfg, backbone)
        decoder_policy = build_decoder_policy(cfg, backbone)
    model = GatedS2T(backbone, policy, decoder_policy, languages=build_languages(cfg), window=window_of(cfg))
    assert (model.policy is None) == (cfg.pruning.encoder is None)
    assert (model.decoder_policy is None) == (cfg.pruning.decoder is None)
    for gates, context in ((policy, cfg.pruning.context), (decoder_policy, cfg.pruning.decoder_context)):
        if gates is not None and cfg.pruning.encoder in (None, "local", "global"):
            assert list(gates.needs) == list(context)


def test_a_base_model_with_gates_on_both_sides_decodes():
    """Real memory, real arithmetic, one short utterance, OWSM-v3.1-base's shape."""
    from localgp.corpora.rows import Task
    from localgp.search.options import DecodeOptions
    from localgp.search.tasks import TaskSearches

    cfg = composed(
        "conf=row09", "backbone=owsm_v3.1_base", "backbone.weights=random", "window.length=utterance"
    )
    model = build_model(cfg).eval()
    speech = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.inference_mode():
        encoded = model.encode(speech, torch.tensor([16000]))
        searches = TaskSearches(model.backbone, DecodeOptions(beam=2, maxlenratio=-3), torch.float32)
        gates = functools.partial(model.step_gates, encoded)
        (written,) = searches(encoded.x, encoded.lengths, [0], [Task(0, "de", "fr")], gates=gates)
    assert written.open_PLM.shape == (3, 6, 3)


@pytest.mark.slow
@pytest.mark.parametrize("conf", ["row01", "row04", "row10"])
def test_medium_builds_with_weights(conf):
    cfg = composed(f"conf={conf}", "backbone=owsm_v3.1_medium", "backbone.weights=random")
    backbone = build_model(cfg).backbone
    assert sum(p.numel() for p in backbone.net.parameters()) == pytest.approx(1.02e9, rel=0.01)


def medium(conf):
    return count(composed(f"conf={conf}", "backbone=owsm_v3.1_medium"))


def test_global_encoder_is_the_papers_figure():
    found = medium("row02")
    assert found["gflops"]["encoder"] == pytest.approx(452.5, abs=1.0)
    assert found["paper"]["explanation"] == "the same count"
    assert medium("row01")["gflops"]["encoder"] == pytest.approx(568.47, abs=0.05)


@pytest.mark.parametrize(
    ("row", "paper"), [("row05", 541.6), ("row06", 511.8), ("row07", 510.1), ("row08", 497.0)]
)
def test_local_rows_say_where_the_count_differs(row, paper):
    found = medium(row)
    assert found["paper"]["encoder"] == paper
    terms = found["terms"]
    assert sum(terms.values()) == pytest.approx(found["gflops"]["encoder"], abs=0.01)
    assert found["paper"]["ours_minus_paper"] == pytest.approx(found["gflops"]["encoder"] - paper, abs=0.01)
    assert "'saved by gates'" in found["paper"]["explanation"]
    share = found["paper"]["skipped_share_at_paper"]
    assert 0 < share < 0.3
    again = count(composed(f"conf={row}", "backbone=owsm_v3.1_medium", f"pruning.target={share}"))
    assert again["gflops"]["encoder"] == pytest.approx(paper, abs=0.1)


@pytest.mark.parametrize("row", ["row03", "row04", "row09", "row10"])
def test_decoder_is_counted_apart(row):
    dense, found = medium("row01"), medium(row)
    encoder = {"row03": "row01", "row09": "row01", "row04": "row02", "row10": "row07"}[row]
    assert found["gflops"]["encoder"] == medium(encoder)["gflops"]["encoder"]
    terms = found["decoder_terms"]
    gated = sum(terms[name] for name in DECODER_MODULES)
    if row in ("row03", "row04"):
        assert terms["saved by gates"] == pytest.approx(-0.3 * gated, rel=1e-3)
    else:  # attention among fewer tokens saves a little more than their share
        assert -0.32 * gated < terms["saved by gates"] < -0.3 * gated
    assert terms["gates"] > 0
    assert found["gflops"]["decoder"] == pytest.approx(sum(terms.values()), abs=0.01)
    assert terms["output"] == pytest.approx(DECODER_TOKENS * 1024 * 50_002 / 1e9, rel=1e-3)
    assert dense["gflops"]["decoder"] > found["gflops"]["decoder"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Overrides of a corpus of a few sentences, shared by all experiments of this file."""
    place = tmp_path_factory.mktemp("rows")
    return [
        f"data_dir={place / 'data'}",
        f"exp_dir={place / 'exp'}",
        "corpus.workers=1",
        "corpus.generate.train_segments=3",
        "corpus.generate.dev_segments=1",
        "corpus.generate.test_segments=1",
        "training.batch_size=1",
        "training.max_steps=2",
        "training.val_every=2",
        "training.val_limit=1",
        "training.val_decode=0",
        "training.average=1",
        "training.log_every=1",
        "training.logger=none",
        "training.group_tasks=false",
        "decode.beam=2",
        "decode.ctc_weight=0",
        "decode.maxlenratio=-4",
        "device=cpu",
        "threads=1",
    ]


@pytest.mark.recipe
@pytest.mark.parametrize("conf", [*ROWS, "control_trim", "control_open"])
def test_row_trains_and_evaluates(conf, tiny, capsys):
    cfg = composed(f"conf={conf}", *tiny)
    _, objects = fit(cfg)
    run = objects["run"]
    state = load_file(run.weights)
    has = {name: any(key.startswith(f"{name}.") for key in state) for name in ("policy", "decoder_policy")}
    learns = cfg.pruning.encoder in ("local", "global")
    assert has == {"policy": learns, "decoder_policy": cfg.pruning.decoder is not None}
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert ("loss_sparsity_decoder" in lines[0]) == has["decoder_policy"]
    assert ("kept/decoder.ffn" in lines[0]) == has["decoder_policy"]

    metrics, _ = evaluate_run(cfg)
    kept = {f"encoder.{m}" for m in cfg.pruning.encoder_modules} if cfg.pruning.encoder else set()
    gates = run.path / "gates" / "test.decoder.npz"
    assert gates.exists() == has["decoder_policy"]
    if has["decoder_policy"]:
        kept |= {f"decoder.{m}" for m in DECODER_MODULES}
        record = read_decoder_gates(gates)
        assert record.open.shape[1:] == (3, 3)
        assert len(record.utt_ids) == 9  # three languages, three tasks
        assert metrics["gflops"]["decoder"] > 0
        assert metrics["sparsity"]["decoder_tokens"] == pytest.approx(1 - record.open.mean(), abs=1e-4)
    assert set(metrics["kept"]) == kept
    if cfg.pruning.encoder:
        assert 0 < metrics["sparsity"]["padding"] < 1
        assert 0 <= metrics["sparsity"]["skipped_that_is_padding"] <= 1
    if conf == "control_trim":
        assert metrics["gflops"]["encoder"] < metrics["gflops"]["dense"]
    capsys.readouterr()
    assert fit(cfg)[1]["trainer"] is None
    again, objects = evaluate_run(cfg)
    assert objects["model"] is None
    assert again == metrics
    said = capsys.readouterr().out
    assert "is finished" in said
    assert "is evaluated; evaluate.force=true" in said


@pytest.mark.recipe
def test_other_options_evaluate_again(tiny):
    """After the rows above: a changed decoding option, or force, is not a finished evaluation."""
    fit(composed("conf=row01", *tiny))
    evaluate_run(composed("conf=row01", *tiny))
    for change in ("decode.beam=1", "evaluate.force=true"):
        _, objects = evaluate_run(composed("conf=row01", *tiny, change))
        assert objects["decoded"] is not None
    (groups,) = group(collect(objects["run"].path.parents[3])).values()
    assert "row01" in [g.name for g in groups]
    assert set(read_hypotheses(groups[0].runs[0])) >= {"de", "de-fr", "it-fr"}


@pytest.mark.recipe
def test_learnt_decoder_gates_are_timed(tiny, capsys):
    """After the rows above: a row for each batch size, with what the gates of the run skip; a dense run is refused."""
    run = fit(composed("conf=row09", *tiny))[1]["run"]
    options = ["bench=decoder", "bench.backbones=[]", "bench.utterances=[1,2]", "bench.steps=3"]
    bench(composed(*tiny, *options, "bench.repeats=1", f"bench.run={run.path}"))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["measure"], row["utterances"]) for row in result["rows"]] == [("learnt", 1), ("learnt", 2)]
    for row in result["rows"]:
        assert row["backbone"] == "mini row09"
        assert 0 <= row["skipped"] <= 1
        assert 0 <= row["agree"] <= 1
        assert row["flop_ratio"] > 0
    dense = fit(composed("conf=row01", *tiny))[1]["run"]
    with pytest.raises(ConfigError, match="decoder without gates"):
        bench(composed(*tiny, *options, f"bench.run={dense.path}"))


@pytest.mark.recipe
def test_masks_are_pictures_in_the_training_log(tiny):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = composed("conf=row05", *tiny, "training.logger=tensorboard", "name=row05-pictured")
    _, objects = fit(cfg)
    events = EventAccumulator(str(objects["run"].path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    (tag,) = events.Tags()["images"]
    assert tag.startswith("masks/")
    assert "ffn1, attention, ffn2" in tag
    assert [image.step for image in events.Images(tag)] == [2]


@pytest.mark.recipe
def test_one_model_is_evaluated_at_several_budgets(tiny):
    from localgp.report.pareto import points

    fit(composed("conf=row11", *tiny))
    metrics, objects = evaluate_run(composed("conf=row11", *tiny))
    assert metrics["window"] == {"length": "utterance", "margin": 0.2}
    assert metrics["gflops"]["encoder"] < metrics["gflops"]["dense"]
    assert metrics["hallucination"].keys() == {"over_twice", "silence", "noise"}
    run = objects["run"]
    at_half, _ = evaluate_run(composed("conf=row11", "decode.budget=0.5", *tiny))
    assert at_half["gflops"]["encoder"] < metrics["gflops"]["encoder"]
    assert json.loads((run.path / "metrics.json").read_text())["decode"]["budget"] is None, "which leads"
    assert at_budgets(run.path).keys() == {0.5}
    tables = group(collect(run.path.parents[3])).values()
    groups = [g for table in tables for g in table if g.name == "row11"]
    found = points(groups, "gflops", "wer", {})
    assert [p.name for p in found] == ["row11", "row11-budget0.5"]
    assert {p.line for p in found} == {"row11"}
    assert found[1].x == at_half["gflops"]["encoder"]
    timed = {p.name: {"encoder_seconds": 2.0} for p in found}
    assert [p.x for p in points(groups, "encoder", "wer", timed)] == [2.0, 2.0]


@pytest.mark.recipe
@pytest.mark.parametrize(
    "conf", ["row12", "row13", "rival_eas", "rival_atome", "rival_topk", "rival_layerdrop"]
)
def test_rivals_train_and_evaluate(conf, tiny):
    cfg = composed(f"conf={conf}", *tiny)
    fit(cfg)
    metrics, _ = evaluate_run(cfg)
    assert 0.4 < metrics["gflops"]["encoder"] / metrics["gflops"]["dense"] < 1
