"""SpeechPrune around a tiny random Qwen2-Audio that transformers builds itself, with a window of 2 s."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localgp.errors import AudioError, BackboneError, ConfigError

transformers = pytest.importorskip("transformers")

from localgp.speechprune.checkpoint import build, load, load_config  # noqa: E402
from localgp.speechprune.methods import METHODS, Pruner  # noqa: E402
from localgp.speechprune.qwen2_audio import Request, SpeechPrune  # noqa: E402

SECOND = 16_000
BUDGET = 50  # tokens of a window


@pytest.fixture(scope="module")
def parts():
    return build("tiny", seed=5, window=2)


@pytest.fixture
def speech(parts):
    return SpeechPrune(*parts)


def noise(seconds: float, seed: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SECOND)).astype(np.float32)


@pytest.fixture(scope="module")
def requests():
    """One audio of three windows and one shorter than a window."""
    return [
        Request(
            noise(5.1, 1),
            "Which pump is bought?\nA. The red one\nB. The blue one",
            "Which pump is bought?",
            "a",
        ),
        Request(noise(1.3, 2), "When?", "When?", "b"),
    ]


def processed(speech, requests):
    """What a user of transformers would pass to the model; the processor cuts long audio off."""
    return speech.processor(
        text=[speech.text(request.prompt, windows=1) for request in requests],
        audio=[request.audio for request in requests],
        sampling_rate=SECOND,
        return_tensors="pt",
        padding=True,
    )


@pytest.mark.parametrize("method", METHODS)
def test_rate_zero_is_the_untouched_model_bit_for_bit(speech, requests, method):
    inputs = processed(speech, requests)
    with torch.no_grad():
        untouched_BTV = speech.model(**inputs).logits
    pruned = speech.prune(speech.encode(requests, whole=False), Pruner(method, 0.0))
    assert torch.equal(speech.prefill(pruned), untouched_BTV)
    assert torch.equal(pruned.mask_BT, inputs["attention_mask"])


def test_rate_zero_generates_what_the_untouched_model_does(speech, requests):
    inputs = processed(speech, requests)
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    untouched = speech.model.generate(**inputs, **options)
    pruned = speech.prune(speech.encode(requests, whole=False), Pruner(rate=0.0))
    ours = speech.generate(pruned, **options)
    assert torch.equal(ours.sequences, untouched.sequences[:, inputs["input_ids"].shape[1] :])
    assert torch.equal(torch.stack(ours.scores), torch.stack(untouched.scores))


def test_whole_audio_has_the_tokens_of_all_its_windows_in_order(speech, requests):
    whole = speech.encode(requests[:1])
    assert whole.audio_tokens() == [50 + 50 + 27]
    first = speech.encode([Request(requests[0].audio[: 2 * SECOND], "x", "x")])
    third = speech.encode([Request(requests[0].audio[4 * SECOND :], "x", "x")])
    tokens_ND = whole.embeds_BTD[whole.audio_BT]
    torch.testing.assert_close(tokens_ND[:50], first.embeds_BTD[first.audio_BT], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens_ND[100:], third.embeds_BTD[third.audio_BT], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_only_audio_is_removed_and_order_is_kept(speech, requests, method):
    encoded = speech.encode(requests)
    pruned = speech.prune(encoded, Pruner(method, 0.4, budget=BUDGET))
    assert [len(kept) for kept in pruned.kept] == [30, round(0.6 * encoded.audio_tokens()[1])]
    for index, kept in enumerate(pruned.kept):
        audio_T = encoded.audio_BT[index]
        before_TD = encoded.embeds_BTD[index]
        positions = audio_T.nonzero()[:, 0]
        text_T = encoded.mask_BT[index].bool() & ~audio_T
        expected_TD = torch.cat(
            [
                before_TD[: positions[0]][text_T[: positions[0]]],
                before_TD[positions[kept]],
                before_TD[positions[-1] + 1 :],
            ]
        )
        real_T = pruned.mask_BT[index].bool()
        assert torch.equal(pruned.embeds_BTD[index][real_T], expected_TD)
        assert (real_T.int().diff() >= 0).all()  # all padding on the left


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_a_batch_gives_what_each_sample_gives_alone(parts, requests, positions):
    speech = SpeechPrune(*parts, positions=positions)
    pruner = Pruner("both", 0.4, budget=BUDGET)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    together = speech.generate(speech.prune(speech.encode(requests), pruner), **options)
    for index, request in enumerate(requests):
        alone = speech.generate(speech.prune(speech.encode([request]), pruner), **options)
        assert torch.equal(together.sequences[index, : alone.sequences.shape[1]], alone.sequences[0])
        first, second = together.scores[0][index], alone.scores[0][0]
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_generation_with_the_cache_equals_a_forward_pass_over_everything(parts, requests, positions):
    """The positions of generated tokens continue from the prompt's last one, with gaps or without."""
    speech = SpeechPrune(*parts, positions=positions)
    pruned = speech.prune(speech.encode(requests[:1]), Pruner("both", 0.6, budget=BUDGET))
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    made = speech.generate(pruned, **options)
    embeds_BTD, mask_BT = pruned.embeds_BTD, pruned.mask_BT
    position_BT = pruned.positions_BT if positions == "original" else torch.arange(embeds_BTD.shape[1])[None]
    for step, token in enumerate(made.sequences[0]):
        with torch.no_grad():
            logits_V = speech.model(
                inputs_embeds=embeds_BTD, attention_mask=mask_BT, position_ids=position_BT
            ).logits[0, -1]
        torch.testing.assert_close(made.scores[step][0], logits_V, atol=1e-4, rtol=1e-3)
        embeds_BTD = torch.cat([embeds_BTD, speech.model.get_input_embeddings()(token[None, None])], dim=1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(1, 1)], dim=1)
        position_BT = torch.cat([position_BT, position_BT[:, -1:] + 1], dim=1)


def test_original_positions_leave_gaps(parts, requests):
    speech = SpeechPrune(*parts, positions="original")
    encoded = speech.encode(requests)
    pruned = speech.prune(encoded, Pruner("rac", 0.4, budget=BUDGET))
    for index, kept in enumerate(pruned.kept):
        real = pruned.positions_BT[index][pruned.mask_BT[index].bool()]
        before = int(encoded.mask_BT[index].sum())
        assert real[-1] == before - 1  # the text after the audio stands where it stood
        start = int((encoded.audio_BT[index].int().argmax()) - (encoded.mask_BT[index] == 0).sum())
        assert real[start : start + len(kept)].tolist() == (start + kept).tolist()


def test_planted_answer_tokens_survive_in_the_model(speech):
    """Tokens of known times say what the question says: phase 1 keeps them, chance keeps one in five."""
    found = {"first": [], "rap": []}
    for trial in range(8):
        request = Request(noise(9.9, trial), "Which pump is bought?", "Which pump is bought?", str(trial))
        encoded = speech.encode([request])
        positions = encoded.audio_BT[0].nonzero()[:, 0]
        generator = torch.Generator().manual_seed(trial)
        audio_ND = torch.randn(len(positions), 64, generator=generator) * encoded.queries[0].std()
        start = 20 + 20 * trial
        words = torch.randint(len(encoded.queries[0]), (30,), generator=generator)
        audio_ND[start : start + 30] += encoded.queries[0][words] + encoded.queries[0].mean(0)
        encoded.embeds_BTD[0, positions] = audio_ND
        for method, recall in found.items():
            kept = speech.prune(encoded, Pruner(method, 0.8, budget=None)).kept[0]
            recall.append(((kept >= start) & (kept < start + 30)).sum().item() / 30)
    assert sum(found["first"]) / 8 > 0.9
    assert sum(found["rap"]) / 8 == pytest.approx(0.2, abs=0.08)


def test_the_model_is_left_as_it_was(speech, requests):
    speech.prune(speech.encode(requests), Pruner())
    assert not speech.language_model._forward_pre_hooks


def test_a_saved_directory_loads_and_answers_the_same(parts, requests, tmp_path):
    model, processor = parts
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = load(str(tmp_path))
    pruner = Pruner("both", 0.4, budget=BUDGET)
    logits = [
        speech.prefill(speech.prune(speech.encode(requests), pruner))
        for speech in (SpeechPrune(model, processor), SpeechPrune(loaded, again))
    ]
    torch.testing.assert_close(*logits)
    assert load_config(str(tmp_path)).text_config.hidden_size == 64


def test_what_is_wrong_with_a_model_is_said(tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match=r"'huge'; valid: tiny, mid, qwen2_audio_7b"):
        load("huge")
    with pytest.raises(
        BackboneError, match=r"no config\.json; a model directory is what save_pretrained writes"
    ):
        load(str(tmp_path))
    transformers.Qwen2Config(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="type 'qwen2'; SpeechPrune runs on 'qwen2_audio'"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="cannot be loaded.*write it again with save_pretrained"):
        load(str(tmp_path))


def test_a_hub_id_without_a_network_says_how_to_get_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"hf download someone/qwen2-audio --local-dir DIR.*model=DIR"):
        load("someone/qwen2-audio")


def test_what_is_wrong_with_a_request_is_said(parts, speech):
    with pytest.raises(ConfigError, match="positions is 'gaps'; valid: compact, original"):
        SpeechPrune(*parts, positions="gaps")
    with pytest.raises(AudioError, match="audio of 100 samples is under one token"):
        speech.encode([Request(noise(100 / SECOND, 1), "When?", "When?")])
    with pytest.raises(ConfigError, match="c: the query is empty"):
        speech.encode([Request(noise(1, 1), "When?", "", "c")])
