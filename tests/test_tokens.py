"""OWSM's vocabulary and prompts."""

from __future__ import annotations

import pytest

from localgp.backbones.owsm.shapes import DIMENSIONS, placeholder_token_list
from localgp.backbones.owsm.tokens import (
    OwsmTokenizer,
    bpe_pieces,
    full_token_list,
    is_special,
    read_bpe,
    special_symbols,
    time_symbol,
    train_bpe,
)
from localgp.errors import BackboneError, ConfigError


@pytest.fixture(scope="module")
def tokenizer():
    return OwsmTokenizer.embedded()


def names(tokenizer, ids):
    return [tokenizer.token_list[i] for i in ids]


@pytest.mark.parametrize(
    ("language", "target", "expected"),
    [
        ("de", "de", ["<deu>", "<asr>"]),
        ("deu", "de", ["<deu>", "<asr>"]),
        ("fr", "it", ["<fra>", "<st_ita>"]),
        ("ita", "deu", ["<ita>", "<st_deu>"]),
    ],
)
def test_prompt_is_language_task_and_no_timestamps(tokenizer, language, target, expected):
    assert names(tokenizer, tokenizer.prompt(language, target)) == [*expected, "<notimestamps>"]
    assert names(tokenizer, tokenizer.prompt(language, target, timestamps=True)) == expected


def test_unknown_language_names_the_valid_ones(tokenizer):
    with pytest.raises(ConfigError, match="unknown language 'xx': this model has de, fr, it"):
        tokenizer.prompt("xx", "de")
    with pytest.raises(ConfigError, match=r"'en'.*de, fr, it"):
        tokenizer.prompt("de", "en")


@pytest.mark.parametrize("code", ["fr", "fra", "FR", "fre", "fr-FR", "fr_CA"])
def test_a_language_in_any_form(tokenizer, code):
    assert tokenizer.prompt(code, code) == tokenizer.prompt("fra", "fra")
    with pytest.raises(ConfigError, match=rf"'x{code[1:]}'.*has {'deu' if len(code) == 3 else 'de'}, "):
        tokenizer.prompt(f"x{code[1:]}", "de")


def test_source_that_is_no_target_is_named(tokenizer):
    tokens = [t for t in tokenizer.token_list if t != "<st_ita>"]
    with pytest.raises(ConfigError, match="does not translate into 'it'.*de, fr"):
        OwsmTokenizer(tokens, tokenizer.bpe_model).prompt("de", "it")


@pytest.mark.parametrize(
    "text",
    [
        "die kommission hat 12 vorschläge geprüft, nicht wahr?",
        "l'été où ça naît: œuvre.",
        "perché no? è così!",
    ],
)
def test_text_survives_and_symbols_do_not(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.unk not in ids
    sequence = [*tokenizer.prompt("de", "de", timestamps=True), tokenizer.timestamp(0.4), *ids]
    sequence += [tokenizer.timestamp(3.2), tokenizer.eos]
    assert tokenizer.decode(sequence) == text
    assert tokenizer.decode(sequence, skip_special=False).startswith("<deu><asr><0.40>")


def test_what_the_model_has_no_piece_for_is_unknown(tokenizer):
    assert tokenizer.unk in tokenizer.encode("喂")


def test_timestamps_are_consecutive_and_end_with_the_padded_length(tokenizer):
    assert names(tokenizer, [tokenizer.first_time, tokenizer.last_time]) == ["<0.00>", "<8.00>"]
    assert tokenizer.last_time - tokenizer.first_time == 400
    assert tokenizer.token_list[tokenizer.timestamp(3.207)] == time_symbol(3.207) == "<3.20>"
    assert tokenizer.timestamp(99) == tokenizer.last_time


def test_token_list_has_espnets_order(tokenizer):
    listed = tokenizer.token_list
    assert listed[:4] == ["<blank>", "<unk>", "<na>", "<nospeech>"]
    assert listed[-3:] == ["<sos>", "<eos>", "<sop>"]
    assert (tokenizer.blank, tokenizer.na, tokenizer.sos) == (0, 2, len(tokenizer) - 3)
    symbols = special_symbols(["deu", "fra", "ita"], 8.0)
    assert listed[2 : 2 + len(symbols)] == symbols
    assert len(set(listed)) == len(listed)


def test_ids_are_those_of_espnets_preprocessor(tokenizer):
    """ESPnet's preprocessor tokenizes prompt and text as one string and drops the leading piece."""
    from localgp.backbones.owsm.components import quiet_espnet

    with quiet_espnet():
        from espnet2.train.preprocessor import S2TPreprocessor

    preprocessor = S2TPreprocessor(
        train=False,
        token_type="bpe",
        token_list=tokenizer.token_list,
        bpemodel=str(tokenizer.bpe_model),
        last_time_symbol="<8.00>",
    )
    text = "wir danken der kommission."
    plain = preprocessor("a", {"text": f"<deu><st_fra><notimestamps> {text}"})["text"]
    assert plain.tolist() == tokenizer.prompt("de", "fr") + tokenizer.encode(text)
    timed = preprocessor("a", {"text": f"<deu><asr><0.40> {text}<3.20>"})["text"]
    prompt = tokenizer.prompt("de", "de", timestamps=True)
    times = tokenizer.timestamp(0.4), tokenizer.timestamp(3.2)
    assert timed.tolist() == [*prompt, times[0], *tokenizer.encode(text), times[1]]


@pytest.mark.parametrize("name", ["owsm_v3.1_base", "owsm_v3.1_small", "owsm_v3.1_medium"])
def test_published_vocabularies_have_their_size_and_work(name, tokenizer):
    text_pieces = [t for t in bpe_pieces(tokenizer.bpe_model) if not is_special(t)]
    large = OwsmTokenizer(placeholder_token_list(DIMENSIONS[name], text_pieces), tokenizer.bpe_model)
    assert len(large) == len(set(large.token_list)) == 50_002
    assert names(large, large.prompt("en", "de")) == ["<eng>", "<st_deu>", "<notimestamps>"]
    assert names(large, [large.last_time]) == ["<30.00>"]
    assert large.decode(large.encode("guten tag.")) == "guten tag."


def test_token_list_of_another_kind_of_model_is_refused(tokenizer):
    tokens = [t for t in tokenizer.token_list if t not in ("<sop>", "<na>")]
    with pytest.raises(BackboneError, match=r"not an OWSM model's: it lacks <sop>, <na>"):
        OwsmTokenizer(tokens, tokenizer.bpe_model)


def test_damaged_bpe_model_is_named(tmp_path):
    path = tmp_path / "bpe.model"
    path.write_bytes(b"not a model")
    with pytest.raises(BackboneError, match=r"bpe\.model: not a SentencePiece model"):
        read_bpe(path)


def test_trained_bpe_keeps_symbols_whole(tmp_path):
    symbols = special_symbols(["deu", "fra"], 1.0)
    path = tmp_path / "bpe.model"
    texts = [f"der bericht {i} ist gut und wir stimmen zu." for i in range(50)]
    train_bpe(texts, path, symbols, pieces=40)
    pieces = bpe_pieces(path)
    assert pieces[: len(symbols)] == symbols
    assert len(pieces) == len(symbols) + 40
    small = OwsmTokenizer(full_token_list(pieces), path)
    assert small.decode(small.prompt("de", "fr") + small.encode("wir stimmen zu.")) == "wir stimmen zu."
