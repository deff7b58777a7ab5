"""Searches with a tiny random Whisper against `transformers`' generate, token for token."""

from __future__ import annotations

import copy

import pytest
import torch

from localgp.backbones import open_backbone
from localgp.errors import ConfigError
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from tests.whisper_helpers import save_tiny_whisper

transformers = pytest.importorskip("transformers")
LENGTHS = torch.tensor([1500] * 6)
LONGEST = 28  # positions, so that some outputs end by themselves and some do not


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Its outputs end here and there: the last norm's bias points to <|endoftext|>."""
    folder = save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny", max_target_positions=LONGEST)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        end_D = model.proj_out.weight[model.config.eos_token_id]  # zeros, as it pads too
        end_D.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
        model.model.decoder.layer_norm.bias += 3.0 * end_D / end_D.norm() ** 2
        model.model.decoder.embed_positions.weight *= 8
        for layer in model.model.decoder.layers:  # attention has a say against the token just written
            layer.encoder_attn.out_proj.weight *= 8
            layer.self_attn.out_proj.weight *= 4
    given = {
        "begin_suppress_tokens": [7, 256],
        "suppress_tokens": [3, 9, 257],
        "max_initial_timestamp_index": 50,
        "no_timestamps_token_id": 362,
        "is_multilingual": True,
        "_from_model_config": False,  # else they are dropped on loading
    }
    for name, value in given.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    made = open_backbone({"name": "tiny", "path": str(folder), "weights": "pretrained"})
    made.net.eval()
    return made


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def memory():
    return torch.randn(len(LENGTHS), 1500, 32, generator=torch.Generator().manual_seed(3)) * 3


def theirs(backbone, reference, memory, primer, timed, **search):
    """What `transformers` writes, without primer and what follows the end."""
    tokens = backbone.tokenizer
    config = copy.deepcopy(reference.generation_config)
    config.return_timestamps, config.no_speech_threshold = timed, None
    processors = reference._retrieve_logit_processors(
        generation_config=config,
        logits_processor=None,
        begin_index=len(primer),
        num_beams=search.get("num_beams", 1),
        device="cpu",
    )
    with torch.no_grad():
        written = transformers.GenerationMixin.generate(
            reference,
            encoder_outputs=transformers.modeling_outputs.BaseModelOutput(memory),
            decoder_input_ids=torch.tensor([primer] * len(memory)),
            logits_processor=transformers.LogitsProcessorList(processors),
            do_sample=False,
            max_length=LONGEST,
            **search,
        )
    return [ended(row[len(primer) :], tokens.eos) for row in written.tolist()]


def ended(ids, eos):
    return ids[: ids.index(eos)] if eos in ids else ids


def ours(backbone, memory, primer, **options):
    search = BeamSearch(backbone, DecodeOptions(**options))
    found = search(memory, LENGTHS[: len(memory)], [primer] * len(memory))
    return [ended(nbest[0].tokens[len(primer) :], backbone.tokenizer.eos) for nbest in found]


@pytest.mark.parametrize("timed", [False, True], ids=["text", "times"])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_what_transformers_writes(backbone, reference, memory, beam, timed):
    tokens = backbone.tokenizer
    for previous in ([], [70, 71, 72]):
        primer = [
            *tokens.previous(previous, LONGEST),
            *tokens.start,
            *tokens.prompt("de", "en", timestamps=timed),
        ]
        expected = theirs(backbone, reference, memory, primer, timed, num_beams=beam)
        found = ours(backbone, memory, primer, beam=beam, ranking="transformers")
        assert found == expected
        assert len({tuple(ids) for ids in expected}) > 2
        assert min(map(len, expected)) < LONGEST - len(primer)


def test_one_alone_is_as_in_the_batch(backbone, memory):
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt("fr", "fr")]
    for options in ({"beam": 1}, {"beam": 5}, {"beam": 5, "ranking": "transformers"}):
        together = ours(backbone, memory, primer, **options)
        assert [ours(backbone, memory[u : u + 1], primer, **options)[0] for u in range(6)] == together


def test_greedy_is_the_beam_of_one(backbone, memory):
    """The loop without a beam's bookkeeping against the search with it; a length bonus is the same for all."""
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt("fr", "fr")]
    plain = BeamSearch(backbone, DecodeOptions(beam=1))
    search = BeamSearch(backbone, DecodeOptions(beam=1))
    search._greedy = False
    for greedy, beam in zip(*(s(memory, LENGTHS, [primer] * 6) for s in (plain, search)), strict=True):
        assert greedy[0].tokens == beam[0].tokens
        assert greedy[0].score == pytest.approx(beam[0].score, abs=1e-4)
        assert greedy[0].scores == pytest.approx(beam[0].scores, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_confidence_is_that_of_the_rules_tokens(backbone, memory, beam):
    from localgp.decoder.train import decode_tokens

    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt("fr", "fr", timestamps=True)]
    search = BeamSearch(backbone, DecodeOptions(beam=beam))
    best = search(memory, LENGTHS, [primer] * 6, confidence=True)[0][0]
    given = torch.tensor([best.tokens])
    length = torch.tensor([given.shape[1]])
    scores = decode_tokens(backbone, memory[:1], LENGTHS[:1], given, length).logits[0]
    forbid = tokens.rules([primer])
    total = 0.0
    written = min(len(best.tokens), LONGEST) - len(primer)
    for step in range(written):
        at = len(primer) + step
        row = scores[at - 1 : at].clone()
        forbid(row, given, torch.tensor([at]), step)
        total += float(row.log_softmax(1)[0, given[0, at]])
    assert best.scores["allowed"] == pytest.approx(total, abs=1e-3)
    assert best.scores["allowed"] > best.scores["decoder"]


def test_draws_depend_on_the_utterance_and_the_temperature_alone(backbone, memory):
    tokens = backbone.tokenizer
    primer = [*tokens.start, *tokens.prompt("fr", "fr")]
    search = BeamSearch(backbone, DecodeOptions(beam=5))
    drawn = {
        t: [found[0].tokens for found in search(memory, LENGTHS, [primer] * 6, temperature=t)]
        for t in (1e-4, 0.5, 1.0)
    }
    assert drawn[1e-4] == [
        found[0].tokens
        for found in BeamSearch(backbone, DecodeOptions(beam=1))(memory, LENGTHS, [primer] * 6)
    ]
    assert drawn[0.5] != drawn[1.0]
    alone = search(memory[3:4], LENGTHS[:1], [primer], temperature=1.0)[0][0].tokens
    assert alone == drawn[1.0][3]


def test_rankings_are_named():
    with pytest.raises(ConfigError, match="ranking is 'best'; valid: espnet, transformers"):
        DecodeOptions(ranking="best")
