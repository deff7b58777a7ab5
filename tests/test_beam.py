"""The batched beam search against ESPnet's, on the same random weights."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
import torch

from localgp.decoder import source
from localgp.errors import ConfigError
from localgp.precision import cpu_multiplies_bf16
from localgp.search.beam import BeamSearch, Hypothesis
from localgp.search.options import DecodeOptions
from tests.decoding_helpers import (
    EOS,
    NOTIMESTAMPS,
    PRIMER,
    SOS,
    TOKENS,
    Model,
    espnet_search,
    make_memory,
    make_model,
)

LENGTHS = [23, 11, 17]


def decode(
    model: Model, options: DecodeOptions, lengths: list[int], primers: list[list[int]], seed: int = 0
) -> list[list[Hypothesis]]:
    search = BeamSearch(model.backbone, options)
    return search(*make_memory(seed, lengths), primers)


def assert_same_as_espnet(
    model: Model,
    options: DecodeOptions,
    primers: list[list[int]],
    lengths: list[int] = LENGTHS,
    seed: int = 0,
) -> int:
    """Compares the n-best lists; returns how many hypotheses were compared."""
    compared = 0
    memory, _ = make_memory(seed, lengths)
    for u, found in enumerate(decode(model, options, lengths, primers, seed)):
        expected = espnet_search(model, memory[u, : lengths[u]], primers[u], options)[: options.nbest]
        assert [h.tokens for h in found] == [h.yseq.tolist() for h in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.score == pytest.approx(float(theirs.score), abs=1e-3)
            for name, value in ours.scores.items():
                assert value == pytest.approx(float(theirs.scores[name]), abs=1e-3), name
            compared += 1
    return compared


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beam", [1, 3, 5])
def test_same_nbest_as_espnet(seed: int, ctc_weight: float, beam: int) -> None:
    options = DecodeOptions(beam=beam, ctc_weight=ctc_weight, nbest=4, maxlenratio=0.7)
    assert assert_same_as_espnet(make_model(seed), options, [PRIMER] * 3, seed=seed) > 0


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_end_detection_as_espnet(ctc_weight: float) -> None:
    """The n-best list shows when the search stopped: later hypotheses would be in it."""
    options = DecodeOptions(beam=3, ctc_weight=ctc_weight, nbest=100)
    lengths = [90, 75, 60]
    model = make_model(1, eos_bias=5.0, blank_bias=10.0)
    assert assert_same_as_espnet(model, options, [PRIMER] * 3, lengths) > 3
    for hypotheses, frames in zip(decode(model, options, lengths, [PRIMER] * 3), lengths, strict=True):
        assert max(len(h.tokens) for h in hypotheses) < frames, "the search should end before its bound"


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize(
    "changes",
    [
        {"length_bonus": 1.5},
        {"length_bonus": -0.5},
        {"maxlenratio": 0.4},
        {"maxlenratio": -6},
        {"minlenratio": 0.3},
        {"minlenratio": -4},
        {"minlenratio": 0.2, "length_bonus": 0.5},
    ],
    ids=str,
)
def test_length_options_as_espnet(changes: dict, ctc_weight: float) -> None:
    # ESPnet's CTC scorer fails on hypotheses with more tokens than frames, so all have a bound here.
    options = DecodeOptions(
        **{"beam": 4, "ctc_weight": ctc_weight, "nbest": 3, "maxlenratio": 0.7, **changes}
    )
    assert assert_same_as_espnet(make_model(3, eos_bias=1.0), options, [PRIMER] * 3) > 0


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_primers_of_different_length(ctc_weight: float) -> None:
    """Previous text in some utterances, bare <sos> in another."""
    primers = [PRIMER, [6, 9, 12, 30, 31, *PRIMER], [SOS, NOTIMESTAMPS]]
    options = DecodeOptions(beam=3, ctc_weight=ctc_weight, nbest=2, maxlenratio=0.5)
    assert assert_same_as_espnet(make_model(4), options, primers, [40, 36, 28]) > 0


def test_minimum_that_cannot_be_met_is_lowered_as_espnet() -> None:
    """ESPnet decodes again with minlenratio - 0.1 where nothing was long enough."""
    options = DecodeOptions(beam=3, maxlenratio=0.5, minlenratio=0.65, nbest=2)
    assert assert_same_as_espnet(make_model(5), options, [PRIMER] * 3) > 0
    impossible = DecodeOptions(beam=3, maxlenratio=-3, minlenratio=-5)
    assert decode(make_model(5), impossible, LENGTHS, [PRIMER] * 3) == [[], [], []]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_timestamps_as_espnet(seed: int) -> None:
    primers = [PRIMER[:3], [6, 9, *PRIMER[:3]], PRIMER]
    options = DecodeOptions(beam=5, nbest=2, maxlenratio=0.8)
    model = make_model(seed)
    assert assert_same_as_espnet(model, options, primers, seed=seed) > 0
    timed, _, untimed = decode(model, options, LENGTHS, primers, seed)
    times = [t for t in timed[0].tokens if TOKENS["first_time"] <= t <= TOKENS["last_time"]]
    assert times
    assert times == sorted(times)
    assert not [t for t in untimed[0].tokens if TOKENS["first_time"] <= t <= TOKENS["last_time"]]


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_result_does_not_depend_on_batch_mates(ctc_weight: float) -> None:
    model = make_model(6, eos_bias=1.5)
    options = DecodeOptions(beam=4, ctc_weight=ctc_weight, nbest=3)
    lengths = [30, 7, 19, 25, 12, 30, 9]
    together = decode(model, options, lengths, [PRIMER] * len(lengths))
    memory, _ = make_memory(0, lengths)
    search = BeamSearch(model.backbone, options)
    steps = set()
    for u, length in enumerate(lengths):
        alone = search(memory[u : u + 1, :length], torch.tensor([length]), [PRIMER])[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[u]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[u]], abs=1e-4)
        steps.add(len(alone[0].tokens))
    assert len(steps) > 1, "utterances should finish at different steps for this test to mean anything"


@pytest.mark.parametrize("worth", [0, 1 << 60])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3, 1.0])
def test_tasks_of_one_recording_share_its_encoder_output(
    ctc_weight: float, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if each had its own; one encoder output is nobody's."""
    monkeypatch.setitem(source.WORTH, torch.float32, worth)
    model = make_model(6, eos_bias=1.5)
    options = DecodeOptions(beam=4, ctc_weight=ctc_weight, nbest=3)
    search = BeamSearch(model.backbone, options)
    memory, lengths = make_memory(0, [30, 7, 19, 12])
    owners = [0, 0, 3, 1, 3]
    primers = [PRIMER, [1, 5, 4, 3], PRIMER, PRIMER, [1, 6, 5, 3]]
    found = search(memory, lengths, primers, owners=owners)
    expected = search(memory[owners], lengths[owners], primers)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
    assert len({len(hypotheses[0].tokens) for hypotheses in found}) > 1, (
        "they should finish at different steps"
    )


def test_every_hypothesis_ends_with_eos_and_begins_with_its_primer() -> None:
    for hypotheses in decode(make_model(7), DecodeOptions(beam=3, nbest=3), LENGTHS, [PRIMER] * 3):
        for hypothesis in hypotheses:
            assert hypothesis.tokens[: len(PRIMER)] == PRIMER
            assert hypothesis.tokens[-1] == EOS


@torch.no_grad()
def test_bf16_scores_are_those_of_fp32_within_rounding() -> None:
    """What bf16 weights find is scored again, in fp32 and without caches."""
    model = make_model(8)
    rounded = copy.deepcopy(model)
    rounded.decoder.bfloat16()
    memory, _ = make_memory(0, LENGTHS)
    options = DecodeOptions(beam=3, maxlenratio=-8)
    for u, hypotheses in enumerate(decode(rounded, options, LENGTHS, [PRIMER] * 3)):
        tokens = torch.tensor([hypotheses[0].tokens])
        logits, _ = model.decoder(
            memory[u : u + 1, : LENGTHS[u]],
            torch.tensor([LENGTHS[u]]),
            tokens[:, :-1],
            torch.tensor([tokens.shape[1] - 1]),
        )
        logp = logits.log_softmax(-1)[0].gather(1, tokens[0, 1:, None]).squeeze(1)
        forced = tokens[0, -1] == EOS and tokens.shape[1] == len(PRIMER) + 9  # eos at the bound is not scored
        scored = logp[len(PRIMER) - 1 : -1 if forced else None].sum()
        assert hypotheses[0].score == pytest.approx(float(scored), rel=0.03)


def test_longer_than_the_encoder_output_with_ctc() -> None:
    """Where ESPnet's CTC scorer stops with an IndexError: more tokens, the primer included, than frames."""
    options = DecodeOptions(beam=3, ctc_weight=0.3, maxlenratio=-12)
    hypotheses = decode(make_model(1), options, [9, 5], [PRIMER] * 2)
    assert [bool(h) for h in hypotheses] == [True, True]


def test_autocast_around_the_search_changes_nothing() -> None:
    """The type is the search's ``dtype``; casting by autocast, weights at every step, is off inside."""
    model = make_model(8)
    options = DecodeOptions(beam=3, ctc_weight=0.3, maxlenratio=-6)
    plain = decode(model, options, LENGTHS, [PRIMER] * 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decode(model, options, LENGTHS, [PRIMER] * 3) == plain


def test_dtype_of_the_search_is_that_of_cast_weights() -> None:
    model = make_model(8)
    cast = Model(copy.deepcopy(model.decoder).bfloat16(), copy.deepcopy(model.ctc).bfloat16())
    options = DecodeOptions(beam=3, ctc_weight=0.3, maxlenratio=-6)
    memory, lengths = make_memory(0, LENGTHS)
    search = BeamSearch(model.backbone, options, dtype=torch.bfloat16)
    found = search(memory, lengths, [PRIMER] * 3)
    expected = decode(cast, options, LENGTHS, [PRIMER] * 3)
    assert [n[0].tokens for n in found] == [n[0].tokens for n in expected]
    # Casting the model rounds its norms and embeddings too, which the search keeps in fp32: a bf16 digit apart.
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].score == pytest.approx(theirs[0].score, abs=0.05)
    assert model.decoder.output_layer.weight.dtype == torch.float32


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
@pytest.mark.parametrize("utterances", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_generated_speech_as_speech2text(utterances: int, ctc_weight: float) -> None:
    """The embedded backbone from samples to tokens, through the packed encoder and through ESPnet's own class."""
    script = Path(__file__).parents[1] / "scripts" / "compare_with_espnet.py"
    tool = runpy.run_path(str(script))
    (report,) = tool["compare"](tool["generate"](utterances), ctc_weight)
    assert report["identical"] == report["utterances"] == utterances
    assert report["max_score_difference"] < 1e-3
    assert report["max_encoder_difference"] < 1e-4
    assert report["tokens"] > 6 * utterances, "outputs should be more than primer and eos"


@pytest.mark.skipif(not cpu_multiplies_bf16(), reason="bf16 is emulated on this CPU")
def test_generated_speech_in_bf16() -> None:
    """Rounding changes ours no more often than ESPnet's own bf16."""
    tool = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "compare_with_espnet.py"))
    (report,) = tool["compare"](tool["generate"](12), 0.0, precisions=["bf16"])
    assert report["identical"] >= report["espnet_identical"] - 1
    assert report["max_encoder_difference"] < 1.5 * report["espnet_max_encoder_difference"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"ctc_weight": 1.2}, "ctc_weight is 1.2"),
        ({"maxlenratio": -0.5}, "maxlenratio is -0.5"),
        *(
            ({name: float(value)}, f"{name} is {value}")
            for name in ("ctc_weight", "length_bonus", "maxlenratio", "minlenratio")
            for value in ("nan", "inf", "-inf")
        ),
    ],
)
def test_bad_options_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodeOptions(**changes)


def test_ctc_weight_without_ctc_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CTC"):
        BeamSearch(Model(make_model(0).decoder, None).backbone, DecodeOptions(ctc_weight=0.3))
