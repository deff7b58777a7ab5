"""OWSM-CTC: an encoder that is told its task, and no decoder; beside ESPnet's own model and inference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset

import localgp
from localgp import flops
from localgp.backbones import adopt
from localgp.backbones.owsm.components import quiet_espnet
from localgp.backbones.owsm.files import espnet_arguments
from localgp.backbones.owsm.model import load_backbone
from localgp.build import build_model
from localgp.corpora.audio import write_audio
from localgp.corpora.rows import Task
from localgp.encoder.packed import PackedEncoder
from localgp.encoder.run import encode
from localgp.errors import BackboneError, ConfigError
from localgp.evaluation.decode import decode_rows
from localgp.search.ctc import CtcSearch, best_text, without_blank
from localgp.search.options import DecodeOptions
from localgp.search.tasks import primers_of
from localgp.transcribe import main
from localgp.transcription.windows import overlapping
from tests.owsm_helpers import write
from tests.test_config import composed

RATE = 16_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write("ctc_v4", tmp_path_factory.mktemp("ctc") / "model")


@pytest.fixture(scope="module")
def model(directory):
    return localgp.load(str(directory), device="cpu")


@pytest.fixture(scope="module")
def espnet(directory, tmp_path_factory):
    with quiet_espnet():
        from espnet2.bin.s2t_inference_ctc import Speech2TextGreedySearch

        return Speech2TextGreedySearch(**espnet_arguments(directory, tmp_path_factory.mktemp("espnet")))


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(0, 0.1, 45 * RATE).astype(np.float32)


@torch.no_grad()
def test_the_encoder_is_told_as_espnets_is(model, espnet):
    """Language, task, and texts before of different lengths, some of them none."""
    tokens = model.backbone.tokenizer
    speech = 0.1 * torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((2,), 40_000)
    before = [tokens.encode("guten tag"), [tokens.na]]
    prefix = torch.tensor([tokens.prompt("de", "fr"), tokens.prompt("", "")])
    counts = torch.tensor([len(text) for text in before])
    padded = torch.full((2, int(counts.max())), -1)
    for row, text in zip(padded, before, strict=True):
        row[: len(text)] = torch.tensor(text)
    theirs, frames = espnet.s2t_model.encode(speech, lengths, padded, counts, prefix, torch.tensor([2, 2]))
    primers = [[*before[0], *prefix[0].tolist()], prefix[1].tolist()]
    feats, lengths = model.backbone.features(speech, lengths)
    for ours in (
        encode(model.backbone, feats, lengths, primers=primers),
        PackedEncoder(model.backbone).encode(feats, lengths, primers=primers),
    ):
        torch.testing.assert_close(ours.x, theirs[0], atol=1e-5, rtol=0)
        assert ours.lengths.tolist() == frames.tolist()
    alone = encode(model.backbone, feats, lengths)
    assert (alone.x[0] - theirs[0][0]).abs().max() > 1e-3
    torch.testing.assert_close(alone.x[1], theirs[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 8])
def test_recordings_of_any_length_are_espnets(model, espnet, noise, batch):
    """Short ones, and long ones in windows that overlap, many at a time."""
    pieces = [noise[: 3 * RATE], noise, noise[: 31 * RATE]]
    found = model.transcribe(pieces, src="de", tgt="fr", batch=batch, beam=1)
    theirs = espnet.batch_decode(pieces, context_len_in_secs=4, lang_sym="<deu>", task_sym="<st_fra>")
    assert ["".join(t.text.split()) for t in found] == ["".join(text.split()) for text in theirs]
    for transcript, piece in zip(found, pieces, strict=True):
        times = [second for s in transcript.segments for second in (s.start, s.end)]
        assert times == sorted(times)
        assert times[0] >= 0
        assert times[-1] <= len(piece) / RATE


@pytest.mark.parametrize("samples", [10, 16, 17, 20, 22, 23, 99])
def test_windows_overlap_as_espnets_do(samples):
    window, context = 10, 2
    theirs = []
    for first in range(0, samples, window - 2 * context):
        theirs.append(len(range(samples)[first : first + window]))
        if theirs[-1] < window:
            break
    assert [w.last - w.first for w in overlapping(samples, window, context)] == theirs


def test_its_language_is_the_most_probable_symbol(model, noise):
    alone = model.transcribe(noise[: 5 * RATE], beam=1)
    together = model.transcribe([noise[: 5 * RATE], noise], beam=1, batch=8)
    assert alone.language in model.languages
    assert 0 < alone.language_probability < 1
    assert together[0].as_dict() == alone.as_dict()
    assert model.transcribe(noise, beam=1, batch=1).as_dict() == together[1].as_dict()


def test_a_beam_finds_the_most_probable_text():
    """Beside all paths of five frames."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = (2 * torch.randn(5, 4, generator=generator)).log_softmax(-1)
        total: dict = {}
        for path in itertools.product(range(4), repeat=5):
            text = tuple(without_blank(path, 0))
            score = sum(float(scores[t, label]) for t, label in enumerate(path))
            total[text] = total.get(text, 0.0) + math.exp(score)
        found = best_text(scores, [[0, 1, 2, 3]] * 5, blank=0, beam=200)
        assert tuple(found) == max(total, key=total.get)
        longest = best_text(scores, [[0, 1, 2, 3]] * 5, blank=0, beam=200, bonus=50.0)
        assert len(longest) == 5


@torch.no_grad()
def test_a_beams_text_is_no_less_probable_than_the_best_paths(model):
    backbone = model.backbone
    feats, lengths = backbone.features(0.1 * torch.randn(1, 24_000), torch.tensor([24_000]))
    encoded = PackedEncoder(backbone).encode(feats, lengths)
    scores_TBV = backbone.ctc(encoded.x).log_softmax(-1).transpose(0, 1)
    losses = []
    for beam in (1, 8):
        search = CtcSearch(backbone, DecodeOptions(beam=beam), torch.float32)
        (text,) = search(encoded.x, encoded.lengths)
        counts = torch.tensor([len(text)])
        losses.append(F.ctc_loss(scores_TBV, torch.tensor([text]), encoded.lengths, counts, reduction="sum"))
    assert losses[1] < losses[0]


def test_the_loss_is_espnets(directory, espnet):
    cfg = composed("conf=row01", "backbone=path", "backbone.name=tiny", f"backbone.path={directory}")
    model = build_model(cfg).eval()
    tokens = model.backbone.tokenizer
    speech = 0.1 * torch.randn(2, 60_000, generator=torch.Generator().manual_seed(0))
    texts = [
        tokens.prompt("de", "fr") + tokens.encode("oui"),
        tokens.prompt("de", "de") + tokens.encode("ja"),
    ]
    spoken = [tokens.encode("ja"), tokens.encode("nein")]
    text, text_ctc = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in part], True, -1) for part in (texts, spoken)
    )
    batch = {
        "text": text,
        "text_lengths": torch.tensor([len(t) for t in texts]),
        "text_ctc": text_ctc,
        "text_ctc_lengths": torch.tensor([len(t) for t in spoken]),
        "text_prev": torch.full((2, 1), tokens.na),
    }
    ends = torch.full((2,), 60_000)
    encoded = model.encode(speech, ends, primers=text[:, :2].tolist())
    with_prompt = torch.cat([text[:, :2], text_ctc], 1)
    loss, stats, _ = espnet.s2t_model(
        speech,
        ends,
        text,
        batch["text_lengths"],
        batch["text_prev"],
        torch.ones(2, dtype=torch.long),
        with_prompt,
        batch["text_ctc_lengths"] + 2,
        text[:, :2],
        torch.tensor([2, 2]),
    )
    ours = model.losses(encoded, batch)
    torch.testing.assert_close(ours.total, loss[0])
    torch.testing.assert_close(ours.ctc, stats["loss_ctc"].view(()))


def test_every_task_is_encoded_by_itself(model, directory):
    """Prepared rows with two tasks: what is written of each is what its own prompt gives."""
    samples = (3000 * np.random.default_rng(1).standard_normal(2 * RATE)).astype(np.int16)
    row = {"utt_id": "a", "seconds": 2.0, "language": "de", "transcript": "ja", "samples": samples.tolist()}
    rows = Dataset.from_list(
        [row | {"audio_sha1": "", "targets": ["fr"], "translations": ["oui"], "asr": True}]
    )
    cfg = composed(
        *("conf=row05", "pruning.gate_bias=0.0", "backbone=path", "backbone.name=tiny"),
        f"backbone.path={directory}",
    )
    gated = build_model(cfg).eval()
    tasks = [Task(0, "de", "de"), Task(0, "de", "fr")]
    decoded = decode_rows(gated, rows, tasks, DecodeOptions(beam=1), progress=False)
    packed, tokens = gated.packed(), gated.backbone.tokenizer
    speech = torch.zeros(1, gated.samples)
    speech[0, : len(samples)] = torch.from_numpy(samples / np.float32(32768))
    for task in tasks:
        encoded = packed.encode(speech, torch.tensor([len(samples)]), primers=primers_of(tokens, [task]))
        labels = gated.backbone.ctc(encoded.x)[0].argmax(-1).tolist()
        assert decoded.text[task.name]["a"] == tokens.decode(without_blank(labels, tokens.blank))
    assert decoded.text["de"] != decoded.text["de-fr"]
    assert decoded.gates.open.shape[-1] == encoded.x.shape[1]


def test_what_cannot_be_is_refused(directory, model, tmp_path, noise):
    for kind, changed in {
        "input_layer": {"encoder_conf": {"input_layer": "conv2d"}},
        "pos_enc_layer_type": {"encoder_conf": {"pos_enc_layer_type": "rel_pos"}},
        "promptencoder: conformer": {"promptencoder": "conformer"},
        "with model: espnet ": {"model": "espnet"},
    }.items():
        config = yaml.safe_load((directory / "config.yaml").read_text())
        for name, value in changed.items():
            config[name] = config[name] | value if isinstance(value, dict) else value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / "x.pth").write_bytes(b"")
        with pytest.raises(BackboneError, match=f"not supported: .*{kind}"):
            load_backbone({"name": "tiny", "path": str(tmp_path), "weights": "pretrained"})
    with pytest.raises(ConfigError, match=r"maxlenratio is -3 .* which bound what a decoder writes"):
        model.transcribe(noise[:RATE], src="de", maxlenratio=-3)
    with pytest.raises(ConfigError, match="windows is 'timestamps'; valid: overlap, pauses"):
        model.transcribe(noise, src="de", windows="timestamps")
    cfg = composed("conf=row09", "backbone=path", "backbone.name=tiny", f"backbone.path={directory}")
    with pytest.raises(ConfigError, match="which the decoder of backbone tiny does not have; valid: none"):
        build_model(cfg)


def test_it_is_written_adopted_and_read_back(model, espnet, directory, tmp_path, noise):
    backbone = adopt(espnet)
    assert backbone.is_told
    backbone.save(tmp_path / "copy")
    again = localgp.load(str(tmp_path / "copy"), device="cpu")
    text = model.transcribe(noise[:RATE], src="de").text
    assert again.transcribe(noise[:RATE], src="de").text == text
    write_audio(tmp_path / "a.wav", noise[:RATE], RATE)
    assert main([str(tmp_path / "a.wav"), "--model", str(directory), "--src", "de", "--format", "srt"]) == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_products_of_lower_precision(model, dtype):
    backbone = model.backbone
    feats, lengths = backbone.features(0.1 * torch.randn(2, 24_000), torch.tensor([24_000, 24_000]))
    before = [backbone.tokenizer.encode("guten tag") + backbone.tokenizer.prompt("de", "fr")] * 2
    for primers in (None, before):
        exact, rounded = (
            PackedEncoder(backbone, kind).encode(feats, lengths, primers=primers).x
            for kind in (torch.float32, dtype)
        )
        assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_gates_are_put_on_what_one_has(espnet, tmp_path):
    """On OWSM-CTC, and on a v3, whose layers have other parts than those of most of the family."""
    gated = localgp.gate(espnet, "row05")
    assert gated.backbone.is_told
    assert set(gated.model.policy.layers[0].heads) == {"ffn1", "attention", "ffn2"}
    directory = write("v3", tmp_path / "v3")
    net = localgp.load(str(directory), device="cpu").backbone.net
    gated = localgp.gate(net, "row05", vocabulary=str(directory))
    assert set(gated.model.policy.layers[0].heads) == {"attention", "ffn"}


def test_published_shapes_are_counted():
    """An encoder of a billion parameters, and no decoder."""
    counted = flops.count(composed("conf=row01", "backbone=owsm_ctc_v4"))
    assert counted["gflops"]["decoder"] == 0
    assert 700 < counted["gflops"]["encoder"] < 800
