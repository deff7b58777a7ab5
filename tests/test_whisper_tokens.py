"""Whisper's vocabulary, prompts and rules, against `transformers`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from localgp.backbones.whisper.rules import Rules
from localgp.backbones.whisper.tokens import WhisperTokens
from localgp.errors import BackboneError, ConfigError
from tests.whisper_helpers import VOCABULARY, save_tiny_whisper

transformers = pytest.importorskip("transformers")
REAL = pytest.param(
    "real",
    marks=[
        pytest.mark.real,
        pytest.mark.skipif("LOCALGP_WHISPER" not in os.environ, reason="LOCALGP_WHISPER=DIR names no model"),
    ],
)


@pytest.fixture(scope="module", params=["tiny", REAL])
def folder(request, tmp_path_factory):
    if request.param == "real":
        return Path(os.environ["LOCALGP_WHISPER"])
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def tokens(folder):
    return WhisperTokens.read(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.WhisperTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text", ["guten Tag.", " deux  espaces", "è così, ¿no?", "naïve 12,5 % – 日本", "a\tb", ""]
)
def test_text_is_transformers_ids_and_comes_back(tokens, reference, text):
    ids = tokens.encode(text)
    expected = reference(f" {text.strip()}", add_special_tokens=False).input_ids if text else []
    assert ids == expected
    assert tokens.decode(ids) == text.strip()
    written = [*tokens.start, *tokens.prompt("fr", "fr"), *ids, tokens.eos]
    assert tokens.decode(written) == reference.decode(written, skip_special_tokens=True).strip()
    assert tokens.decode(written, skip_special=False).startswith("<|startoftranscript|><|fr|><|transcribe|>")


def test_a_text_that_names_a_symbol_is_a_text(tokens):
    ids = tokens.encode("it says <|endoftext|> here")
    assert max(ids) < tokens.eos
    assert tokens.decode(ids) == "it says <|endoftext|> here"


@pytest.mark.parametrize("source", ["fr", "fra", "FR", "fr-FR", "fre"])
def test_prompts_are_those_of_transformers(tokens, reference, source):
    given = [*tokens.start, *tokens.prompt(source, "fr-CA")]
    reference.set_prefix_tokens(language="fr", task="transcribe", predict_timestamps=False)
    assert given == reference.prefix_tokens
    reference.set_prefix_tokens(language="fr", task="translate", predict_timestamps=True)
    assert [*tokens.start, *tokens.prompt(source, "eng", timestamps=True)] == reference.prefix_tokens


def test_other_targets_are_prompted_by_their_language(tokens):
    named = [tokens.token_list[i] for i in tokens.prompt("de", "fra")]
    assert named == ["<|fr|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokens.prompt("en", "en")[1] == tokens._ids["<|transcribe|>"]
    with pytest.raises(ConfigError, match="unknown language 'xx'.*this model has en, zh, de"):
        tokens.prompt("xx", "en")
    with pytest.raises(ConfigError, match="unknown language 'cre'"):
        tokens.prompt("en", "cre")


def test_text_before_is_cut_to_half_of_the_positions(tokens):
    assert tokens.previous([], 448) == []
    assert tokens.previous([5, 6], 448) == [tokens.prev, 5, 6]
    assert tokens.previous(list(range(400)), 448) == [tokens.prev, *range(400 - 223, 400)]


def test_a_model_of_english_alone(folder, tmp_path):
    for name in ("tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    given = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    (tmp_path / "generation_config.json").write_text(
        json.dumps(given | {"is_multilingual": False}), encoding="utf-8"
    )
    tokens = WhisperTokens.read(tmp_path)
    assert tokens.languages == ["en"]
    assert tokens.prompt("en-US", "eng") == [tokens.notimestamps]
    assert tokens.prompt("en", "en", timestamps=True) == []
    for source, target in (("de", "de"), ("en", "de"), ("de", "en")):
        with pytest.raises(ConfigError, match="unknown language 'de': this model has en"):
            tokens.prompt(source, target)


def test_what_is_no_whisper_tokenizer_is_refused(folder, tmp_path):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace("<|startofprev|>", "<|before|>"), encoding="utf-8")
    with pytest.raises(BackboneError, match=r"not Whisper's: it lacks <\|startofprev\|>"):
        WhisperTokens.read(tmp_path)


def _theirs(tokens, given, begin):
    """`transformers`' processors, in its order."""
    config = SimpleNamespace(
        no_timestamps_token_id=tokens.notimestamps,
        eos_token_id=tokens.eos,
        bos_token_id=tokens.eos,
        max_initial_timestamp_index=given["latest"],
    )
    return [
        transformers.generation.SuppressTokensAtBeginLogitsProcessor(given["first"], begin_index=begin),
        transformers.generation.SuppressTokensLogitsProcessor(given["never"]),
        transformers.generation.WhisperTimeStampLogitsProcessor(config, begin_index=begin),
    ]


@pytest.mark.parametrize("latest", [50, None])
@pytest.mark.parametrize("before", [0, 3])
def test_rules_forbid_what_transformers_does(latest, before):
    """On outputs that grow at random, with and without text before them."""
    tokens = WhisperTokens.placeholder(VOCABULARY)
    given = {"latest": latest, "never": [7, 300], "first": [9, tokens.eos]}
    rules = Rules(tokens.eos, tokens.notimestamps, given["never"], given["first"], latest, timed=True)
    previous = [tokens.prev, *range(40, 40 + before)] if before else []
    primer = [*previous, *tokens.start, *tokens.prompt("de", "de", timestamps=True)]
    processors = _theirs(tokens, given, len(primer))
    generator = torch.Generator().manual_seed(before)
    rows = torch.tensor([primer] * 40)
    times_forced = 0
    for written in range(9):
        scores = torch.randn(len(rows), VOCABULARY, generator=generator) * 3
        scores[::3, tokens.first_time :] += 2.0  # where times are together likelier than any text
        expected = scores
        for processor in processors:
            expected = processor(rows, expected)
        found = scores.clone()
        padded = torch.cat([rows, torch.full((len(rows), 2), 123)], dim=1)
        rules(found, padded, torch.full((len(rows),), rows.shape[1]), written)
        assert torch.equal(found, expected)
        times_forced += int((found[:, : tokens.first_time] == float("-inf")).all(1).sum())
        rows = torch.cat([rows, found.softmax(1).multinomial(1, generator=generator)], dim=1)
    assert times_forced > 100


def test_without_times_only_the_lists_are_suppressed():
    rules = Rules(256, 360, [7], [9], 50, timed=False)
    for written, forbidden in ((0, [7, 9]), (1, [7])):
        scores = torch.zeros(2, 500)
        rules(scores, torch.zeros(2, 4, dtype=torch.long), torch.tensor([4, 3]), written)
        assert [i for i, score in enumerate(scores[1].tolist()) if score < 0] == forbidden


def test_times_are_wanted_by_all_or_by_none(tokens):
    primers = [[*tokens.start, *tokens.prompt("de", "de", timestamps=timed)] for timed in (True, False)]
    with pytest.raises(ValueError, match="with and without times"):
        tokens.rules(primers)
