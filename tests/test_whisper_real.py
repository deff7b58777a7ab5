"""The real Whisper base on human speech, against `transformers`.

    LOCALGP_WHISPER=DIR LOCALGP_PROMPTS=DIR pytest -m real tests/test_whisper_real.py

LOCALGP_WHISPER is a directory that has the model as `transformers` saves it, LOCALGP_PROMPTS one with recordings and
``manifest.jsonl`` as ``corpus=manifest`` reads it.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import localgp
from localgp.backbones.cost import EncoderCost
from localgp.corpora.audio import decode
from localgp.corpora.rows import Task
from localgp.encoder.run import encode
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches

pytest.importorskip("transformers")
from transformers import WhisperFeatureExtractor
from transformers.modeling_outputs import BaseModelOutput

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LOCALGP_WHISPER" not in os.environ, reason="LOCALGP_WHISPER=DIR names no model"),
]
RECORDINGS = 60
TIE = 1e-4  # of two tokens' scores, between which rounding decides


@pytest.fixture(scope="module")
def model():
    return localgp.load(os.environ["LOCALGP_WHISPER"], device="cpu")


@pytest.fixture(scope="module")
def reference():
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration.from_pretrained(os.environ["LOCALGP_WHISPER"]).eval()


def recordings():
    """(language, samples) of the test set, as many of each language."""
    if "LOCALGP_PROMPTS" not in os.environ:
        pytest.skip("LOCALGP_PROMPTS=DIR names no recordings")
    folder = Path(os.environ["LOCALGP_PROMPTS"])
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    languages = sorted({row["language"] for row in rows})
    each = -(-RECORDINGS // len(languages))
    for language in languages:
        for row in [row for row in rows if row["language"] == language][:each]:
            yield language, decode(folder / row["audio"], 16_000).cut().samples[:480_000]


@torch.no_grad()
def test_encoder_is_transformers(model, reference):
    """Layer by layer the same numbers; packed, within 1e-5 of those of double precision in the root mean square. (Of
    single numbers that cannot be asked: `transformers`' own two ways to compute attention are 5e-4 apart where states
    are up to 24 large.)"""
    _, samples = next(recordings())
    padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, 480_000 - len(samples)))[None]
    feats, lengths = model.backbone.features(padded, torch.tensor([480_000]))
    theirs = reference.model.encoder(feats.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(encode(model.backbone, feats, lengths).x, theirs, rtol=0, atol=1e-5)
    packed = model.model.packed().encode_features(feats, lengths).x
    exact = copy.deepcopy(reference.model.encoder).double()(feats.transpose(1, 2).double()).last_hidden_state
    ours_off, theirs_off = (float((x - exact).square().mean().sqrt()) for x in (packed, theirs))
    assert ours_off < min(1e-5, 3 * theirs_off)


def test_base_costs_43_73_gflops(model):
    assert round(EncoderCost(model.backbone, 3000).encoder() / 1e9, 2) == 43.73


@torch.no_grad()
def test_greedy_search_writes_what_transformers_writes(model, reference):
    """Token by token; another token is a tie of less than `TIE`."""
    tokens = model.backbone.tokenizer
    searches = TaskSearches(model.backbone, DecodeOptions(beam=1), torch.float32)
    same, ties = 0, []
    for language, samples in recordings():
        encoded = model._encode([samples])
        task = Task(0, language, language)
        ours = before_end(searches(encoded.x, encoded.lengths, [0], [task])[0].tokens, tokens.eos)
        padded = torch.nn.functional.pad(torch.from_numpy(samples), (0, 480_000 - len(samples)))[None]
        feats = model.backbone.features(padded, torch.tensor([480_000]))[0].transpose(1, 2)
        written = reference.generate(
            feats, language=language, task="transcribe", num_beams=1, do_sample=False
        )
        theirs = before_end(
            [i for i in written[0].tolist() if not tokens.eos < i < tokens.first_time], tokens.eos
        )
        same += ours == theirs
        if ours != theirs:
            ties.append(
                gap(reference, feats, [*tokens.start, *tokens.prompt(language, language)], ours, theirs)
            )
    assert same + len(ties) >= RECORDINGS
    assert all(tie < TIE for tie in ties), ties


def before_end(ids, eos):
    return ids[: ids.index(eos)] if eos in ids else ids


def gap(reference, feats, primer, ours, theirs):
    """Between the scores of the first two tokens that differ, by `transformers`."""
    place = next(
        i for i, pair in enumerate(zip([*ours, -1], [*theirs, -1], strict=False)) if pair[0] != pair[1]
    )
    end = reference.config.eos_token_id
    pair = [(text[place] if place < len(text) else end) for text in (ours, theirs)]
    given = torch.tensor([[*primer, *ours[:place]]])
    scores = reference(input_features=feats, decoder_input_ids=given).logits[0, -1].log_softmax(-1)
    return float((scores[pair[0]] - scores[pair[1]]).abs())


def test_french_speech_is_found_to_be_french(model):
    found = [model.transcribe(samples).language for language, samples in recordings() if language == "fr"][:8]
    assert found.count("fr") >= 7


@torch.no_grad()
@pytest.mark.parametrize("beam", [2, 5])
def test_beam_search_writes_what_transformers_writes(model, reference, beam):
    tokens = model.backbone.tokenizer
    options = DecodeOptions(beam=beam, ranking="transformers")
    searches = TaskSearches(model.backbone, options, torch.float32)
    for language, samples in itertools.islice(recordings(), 0, RECORDINGS, 7):
        encoded = model._encode([samples])
        found = searches(encoded.x, encoded.lengths, [0], [Task(0, language, language)])[0].tokens
        written = reference.generate(
            encoder_outputs=BaseModelOutput(encoded.x), language=language, task="transcribe", num_beams=beam
        )
        theirs = [
            i for i in before_end(written[0].tolist(), tokens.eos) if not tokens.eos < i < tokens.first_time
        ]
        assert before_end(found, tokens.eos) == theirs


@torch.no_grad()
def test_a_long_recording_has_transformers_segments(model, reference, monkeypatch):
    """French prompts one after the other, with half a second between them, by Whisper's sequential way. As
    `transformers` does, features are made of the whole recording here, and nothing is put behind its end: ours are made
    of each window as if it were alone. (Temperatures are left out: what `transformers` measures compression of is token
    ids, and what it draws nobody else does.)"""
    spoken = [samples for language, samples in recordings() if language == "fr"]
    pause = np.zeros(8000, np.float32)
    recording = np.concatenate([part for samples in spoken for part in (samples, pause)])[: 100 * 16_000]
    extract = WhisperFeatureExtractor.from_pretrained(os.environ["LOCALGP_WHISPER"])
    whole = extract(recording, sampling_rate=16_000, return_tensors="pt", truncation=False, padding="longest")
    feats_FS = whole.input_features[0]

    def encode_piece(pieces, budget=None):
        first = (pieces[0].ctypes.data - kept[0].ctypes.data) // 4 // 160
        given_SF = feats_FS[:, first : first + 3000].T
        padded_1SF = torch.nn.functional.pad(given_SF, (0, 0, 0, 3000 - len(given_SF)))[None]
        return model.model.packed().encode_features(padded_1SF, torch.tensor([3000]))

    kept = []
    read = model._samples
    monkeypatch.setattr(model, "_samples", lambda source: (kept.append(read(source)[0]) or kept[0], []))
    monkeypatch.setattr(model, "_encode", encode_piece)
    found = model.transcribe(recording, src="fr", beam=1, temperatures=[0.0]).segments
    theirs = reference.generate(
        whole.input_features,
        attention_mask=torch.ones(1, feats_FS.shape[1], dtype=torch.long),
        language="fr",
        task="transcribe",
        return_timestamps=True,
        return_segments=True,
    )["segments"][0]
    decode_text = model.backbone.tokenizer.decode
    expected = [
        (round(float(s["start"]), 2), round(float(s["end"]), 2), decode_text(s["tokens"].tolist()))
        for s in theirs
    ]
    assert len(expected) > 15
    assert [(s.start, s.end, s.text) for s in found] == [
        (start, min(end, 100.0), text) for start, end, text in expected
    ]
