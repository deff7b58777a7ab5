"""Whisper behind the seam, against `transformers` on a tiny random model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import localgp
from localgp.backbones import open_backbone
from localgp.backbones.cost import EncoderCost
from localgp.backbones.whisper.features import LogMel
from localgp.backbones.whisper.stem import WholeConvolutions
from localgp.backbones.whisper.tokens import WhisperTokens
from localgp.build import build_decoder_policy, build_model
from localgp.decoder.train import decode_tokens
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.errors import BackboneError, CheckpointError, ConfigError
from localgp.gates import OpenGates, RandomGates
from localgp.hub.pack import pack
from localgp.run import write_atomically
from localgp.training.module import TrainingModule
from localgp.weights import save_weights
from tests.fvcore_count import count_with_fvcore
from tests.test_config import composed
from tests.whisper_helpers import VOCABULARY, save_tiny_whisper

transformers = pytest.importorskip("transformers")
FULL = torch.tensor([480_000, 480_000])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def backbone(folder):
    made = open_backbone({"name": "tiny", "path": str(folder), "weights": "pretrained"})
    made.net.eval()
    return made


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def recordings():
    """Two, padded, and as they are."""
    rng = np.random.default_rng(0)
    recordings = [rng.normal(0, 0.1, n).astype(np.float32) for n in (48_000, 30_001)]
    padded = torch.zeros(2, 480_000)
    for row, recording in zip(padded, recordings, strict=True):
        row[: len(recording)] = torch.from_numpy(recording)
    return padded, recordings


@pytest.mark.parametrize("mels", [80, 128])
def test_features_are_whispers(mels):
    padded, alone = recordings()
    extract = transformers.WhisperFeatureExtractor(feature_size=mels)
    expected = extract(alone, sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(LogMel(mels)(padded), expected.transpose(1, 2), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("gates", [None, OpenGates(["attention", "ffn"])], ids=["dense", "open"])
def test_encoder_is_transformers(backbone, reference, gates):
    feats, lengths = backbone.features(recordings()[0], FULL)
    expected = reference.model.encoder(feats.transpose(1, 2)).last_hidden_state
    for path in ("masked", "gathered"):
        torch.testing.assert_close(
            encode(backbone, feats, lengths, gates, path=path).x, expected, rtol=0, atol=1e-5
        )
    packed = PackedEncoder(backbone).encode(feats, lengths, gates and PackedGates(gates.eval()))
    torch.testing.assert_close(packed.x, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_decoder_is_transformers(backbone, reference):
    memory = torch.randn(2, 1500, 32)
    tokens = torch.randint(0, VOCABULARY, (2, 9))
    expected = reference(encoder_outputs=(memory,), decoder_input_ids=tokens).logits
    found = decode_tokens(backbone, memory, torch.tensor([1500, 1500]), tokens, torch.tensor([9, 9])).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[321, 188], [300, 7], [1, 2], [5, 4]])
def test_utterances_of_a_batch_are_each_as_if_alone(backbone, lengths):
    """Odd and even lengths, with and without a constant end."""
    feats = backbone.features(recordings()[0], FULL)[0][:, : max(lengths)]
    gates = RandomGates(["attention", "ffn"], 0.5, 0).eval()
    together = PackedEncoder(backbone).encode(feats, torch.tensor(lengths), PackedGates(gates))
    masked = encode(backbone, feats, torch.tensor(lengths), None, ragged=True)
    dense = PackedEncoder(backbone).encode(feats, torch.tensor(lengths))
    for b, n in enumerate(lengths):
        frames = (n + 1) // 2
        assert together.lengths[b] == frames
        alone = encode(backbone, feats[b : b + 1, :n], torch.tensor([n]))
        torch.testing.assert_close(masked.x[b, :frames], alone.x[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(dense.x[b, :frames], alone.x[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[321, 188], [300, 300]])
def test_a_gpus_stem_is_the_same(backbone, lengths):
    feats = backbone.features(recordings()[0], FULL)[0][:, : max(lengths)]
    stem = backbone.packed(torch.float32).stem
    front, layout = stem(feats, lengths)
    whole = WholeConvolutions(backbone.net.model.encoder, torch.float32)
    torch.testing.assert_close(whole(feats, lengths, layout), front, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def cfg(folder):
    return composed("conf=row10", "pruning.context=[front]", "backbone=path", f"backbone.path={folder}")


@pytest.fixture(scope="module")
def model(cfg):
    """Gates that decide by what they see, about half of them closed."""
    model = build_model(cfg).eval()
    torch.manual_seed(1)
    for policy in (model.policy, model.decoder_policy):
        for layer in policy.layers:
            for head in layer.heads.values():
                torch.nn.init.normal_(head.weight)
                torch.nn.init.zeros_(head.bias)
    return model


def test_gates_default_to_whispers_parts(cfg):
    assert list(cfg.pruning.encoder_modules) == ["attention", "ffn"]
    assert list(composed("backbone=whisper_base", "conf=row02").pruning.encoder_modules) == [
        "attention",
        "ffn",
    ]
    assert "ffn1" in composed("backbone=owsm_v3.1_base", "conf=row02").pruning.encoder_modules


def test_a_training_step_reaches_backbone_and_gates(cfg):
    module = TrainingModule(build_model(cfg).train(), cfg, sample_rate=16_000)
    tokens = module.model.backbone.tokenizer
    text = torch.tensor([[*tokens.prompt("de", target), 65, 66, 67] for target in ("de", "en", "fr")])
    text[1, -1] = -1
    loss = module.training_step(
        {
            "speech": recordings()[0],
            "speech_lengths": FULL,
            "signal": torch.tensor([[0, 48_000], [0, 30_001]]),
            "text": text,
            "text_prev": torch.full((3, 1), tokens.na),
            "utterance": torch.tensor([0, 0, 1]),
            "tasks": ["de", "de-en", "fr"],
            "utt_ids": ["a", "b"],
            "contexts": {},
        },
        0,
    )
    loss.backward()
    without = [name for name, p in module.named_parameters() if p.grad is None]
    assert without == ["model.whisper.model.encoder.embed_positions.weight"]  # sinusoids, which nobody trains


def test_the_prompt_is_given_and_not_learnt(backbone):
    tokens = backbone.tokenizer
    prompt = tokens.prompt("de", "en")
    batch = {
        "text": torch.tensor([[*prompt, 65, 66], [*prompt, 67, -1]]),
        "text_prev": torch.tensor([[tokens.na, -1], [70, 71]]),
    }
    given = backbone.decoder_input(batch)
    start, end, ignored = tokens.start[0], tokens.eos, -1
    assert given.tokens.tolist() == [
        [start, *prompt, 65, 66, end, end],
        [tokens.prev, 70, 71, start, *prompt, 67],
    ]
    assert given.lengths.tolist() == [6, 8]
    assert given.targets.tolist() == [
        [ignored, ignored, ignored, 65, 66, end, ignored, ignored],
        [ignored] * 6 + [67, end],
    ]
    logits = torch.randn(2, 8, VOCABULARY)
    loss = backbone.losses(torch.empty(0), torch.empty(0), logits, given.targets, batch)
    scores = logits.log_softmax(-1)
    expected = (
        -(scores[0, 3, 65] + scores[0, 4, 66] + scores[0, 5, end] + scores[1, 6, 67] + scores[1, 7, end]) / 2
    )
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("fill", ["zero", "pair"])
def test_all_paths_are_one(model, monkeypatch, fill):
    monkeypatch.setattr(model.policy, "fill", fill)
    feats, lengths = model.features(recordings()[0], FULL)
    masked, gathered = (
        encode(model.backbone, feats, lengths, model.policy, path=p) for p in ("masked", "gathered")
    )
    packed = PackedEncoder(model.backbone).encode(feats, lengths, PackedGates(model.policy))
    torch.testing.assert_close(gathered.x, masked.x, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.x, masked.x, atol=1e-5, rtol=0)
    kept = torch.stack([gate.value.mean() for layer in masked.gates for gate in layer.values()])
    assert 0.1 < kept.mean() < 0.9


def test_it_is_counted_as_fvcore_counts_transformers(backbone, reference):
    from fvcore.nn import FlopCountAnalysis

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = reference

        def forward(self, feats):
            return self.net.model.encoder(feats).last_hidden_state

    reference.set_attn_implementation("eager")
    analysis = FlopCountAnalysis(Encoder().eval(), torch.zeros(1, 80, 3000))
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    assert EncoderCost(backbone, 3000).encoder() == analysis.total() == count_with_fvcore(backbone, 3000)


def test_base_costs_what_was_counted_on_transformers():
    """43.73 G, by fvcore on its encoder with eager attention."""
    base = open_backbone({"name": "whisper_base", "path": "openai/whisper-base", "weights": "random"})
    assert EncoderCost(base, 3000).encoder() == 43_733_760_000


def test_it_is_packed_up_and_loaded(cfg, model, tmp_path):
    """As `transformers` keeps it, the gates beside it."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save_weights(model.state_dict(), run / "checkpoints" / "model.safetensors")
    write_atomically(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    packed = pack(run, tmp_path, name="m", licence="mit", without_scores=True)
    assert list(packed) == ["huggingface"]
    modes = {file.stat().st_mode for file in packed["huggingface"].iterdir() if file.is_file()}
    assert len(modes) == 1, "whoever may read one may read all"
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(packed["huggingface"])
    for name, value in model.backbone.net.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name
    processor = transformers.WhisperProcessor.from_pretrained(packed["huggingface"])
    assert (
        processor.tokenizer.encode("ab", add_special_tokens=False)
        == model.backbone.tokenizer._tokenizer.encode("ab").ids
    )
    ours = localgp.load(str(packed["huggingface"]), device="cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value), name
    noise = recordings()[1][0]
    texts = [
        localgp.load(str(place), device="cpu").transcribe(noise, src="de", beam=2, maxlenratio=-5).text
        for place in (run, packed["huggingface"])
    ]
    assert texts[0] == texts[1]
    again = pack(run, tmp_path, name="m", licence="mit", without_scores=True, overwrite=True)
    assert again == packed
    with pytest.raises(ConfigError, match="no model of ESPnet's"):
        pack(run, tmp_path, formats=("espnet",), name="n", licence="mit", without_scores=True)


def spoilt(folder, tmp_path, name, content):
    """A copy of a model with another file in it, or without one."""
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", None, "has no model.safetensors.*safetensors alone"),
        ("model.safetensors", b"\x10\x00", "weights are damaged"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", b"{", "not a tokenizer"),
        ("preprocessor_config.json", b'{"hop_length": 320}', "hop_length 320 .valid: 160"),
        ("preprocessor_config.json", b"[]", "not a JSON object"),
        ("config.json", b'{"model_type": "whisper", "d_model": "wide"}', "damaged or of another kind"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(folder, tmp_path, name, content, message):
    copy = spoilt(folder, tmp_path, name, content)
    with pytest.raises(BackboneError, match=f"(?s){message}"):
        open_backbone({"name": "tiny", "path": str(copy), "weights": "pretrained"})


def test_weights_of_another_shape_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["model.encoder.conv1.bias"] = torch.zeros(7)
    state["model.encoder.layers.0.extra"] = torch.zeros(1)
    del state["model.decoder.layer_norm.weight"]
    copy = spoilt(folder, tmp_path, "model.safetensors", None)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match="(?s)do not fit config.json") as refused:
        open_backbone({"name": "tiny", "path": str(copy), "weights": "pretrained"})
    for problem in (
        "conv1.bias: .*7.*in the file",
        "extra: not in the model",
        "layer_norm.weight: not in the file",
    ):
        assert refused.match(problem)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    copy = spoilt(folder, tmp_path, "tokenizer.json", None)
    WhisperTokens.placeholder(VOCABULARY + 1).write(copy)
    with pytest.raises(BackboneError, match="tokenizer has 1865 tokens, its model 1864; use the tokenizer"):
        open_backbone({"name": "tiny", "path": str(copy), "weights": "pretrained"})


def test_what_is_no_model_is_refused(folder, tmp_path):
    with pytest.raises(BackboneError, match="not a complete ESPnet|no such|valid are"):
        open_backbone({"name": "whisper_base", "path": "nowhere at all", "weights": "pretrained"})
    with pytest.raises(BackboneError, match="is a file; give the directory"):
        open_backbone({"name": "whisper_base", "path": str(folder / "config.json"), "weights": "pretrained"})


def test_a_text_longer_than_the_positions_is_refused(backbone):
    with pytest.raises(ConfigError, match="has 449 tokens with its prompt.*448; cut its recording"):
        backbone.embed(torch.zeros(1, 449, dtype=torch.long))


def test_a_model_that_one_has_is_gated(folder, model, reference, tmp_path):
    noise = recordings()[1][0]
    own = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    gated = localgp.gate(own, "row05", "decode.beam=1", "decode.maxlenratio=-4")
    assert gated.model.backbone.net is own
    masks = gated.gates(noise)
    assert {name: mask.shape for name, mask in masks.modules.items()} == {
        "attention": (2, 150),
        "ffn": (2, 150),
    }
    plain = localgp.load(str(folder), device="cpu").transcribe(noise, src="de", beam=1, maxlenratio=-4)
    opened = localgp.gate(own, "control_open").transcribe(noise, src="de", beam=1, maxlenratio=-4)
    assert opened.text == plain.text
    untrained = localgp.gate(own, "row13")
    assert untrained.model.window.is_full, "a short one would have to be learnt"
    assert not localgp.gate(own, "row13", "window=utterance").model.window.is_full
    assert untrained.gates(noise).kept() == pytest.approx({"attention": 0.5, "ffn": 0.5})
    save_weights(
        {k: v for k, v in model.state_dict().items() if "policy" in k}, tmp_path / "gates.safetensors"
    )
    trained = localgp.gate(own, "row10", "pruning.context=[front]", gates=tmp_path / "gates.safetensors")
    assert torch.equal(
        trained.model.policy.layers[0].heads["ffn"].weight, model.policy.layers[0].heads["ffn"].weight
    )
    with pytest.raises(CheckpointError, match="no gates at"):
        localgp.gate(own, gates=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="of another model"):
        localgp.gate(own, "row05", gates=tmp_path / "gates.safetensors")
    with pytest.raises(BackboneError, match="float16; give it in fp32"):
        localgp.gate(
            transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)
        )
    nameless = transformers.WhisperForConditionalGeneration(own.config)
    nameless.name_or_path = nameless.config._name_or_path = ""
    with pytest.raises(BackboneError, match="no tokenizer at .*vocabulary=processor"):
        localgp.gate(nameless)
    processor = transformers.WhisperProcessor.from_pretrained(folder)
    assert localgp.gate(nameless, vocabulary=processor).languages[:2] == ["en", "zh"]


def test_stored_gates_know_when_they_are(tmp_path, backbone):
    """Whisper's frame t is centred at 20 t ms."""
    from localgp.evaluation.gates_file import GateRecord, read_gates, write_gates

    centres = backbone.timeline.centres(2) / backbone.sample_rate
    opened = np.ones((1, 2, 2, 150), dtype=bool)
    record = GateRecord(["a"], ["attention", "ffn"], opened, np.array([[0, 150]]), 0.02, None, tuple(centres))
    write_gates(tmp_path / "gates.npz", record)
    np.testing.assert_allclose(read_gates(tmp_path / "gates.npz").centres(), 0.02 * np.arange(150), atol=1e-9)


def test_gates_are_told_no_task_where_there_is_one_alone(backbone):
    tokens = backbone.tokenizer
    english = copy.copy(backbone)
    english.tokenizer = WhisperTokens(tokens._tokenizer, {"is_multilingual": False})
    cfg = composed("backbone=whisper_base.en", "conf=row03", "pruning.decoder_context=[front,task]")
    with pytest.raises(ConfigError, match="has one task and no symbols of it; leave task out"):
        build_decoder_policy(cfg, english)
    assert build_decoder_policy(cfg, backbone) is not None
    cfg = composed("backbone=whisper_base.en", "conf=row03", "pruning.decoder_context=[front]")
    assert build_decoder_policy(cfg, english) is not None


def test_a_published_model_says_what_it_was_not_taught(folder):
    model = localgp.load(str(folder), device="cpu")
    speech = torch.randn(8_000) * 0.1

    def warned(**languages):
        return [
            w for w in model.transcribe(speech, beam=1, maxlenratio=-3, **languages).warnings if "taught" in w
        ]

    assert "into it, only into en" in warned(src="fr", tgt="it")[0]
    assert not warned(src="fr", tgt="fr")
    assert not warned(src="fr", tgt="en")
    model.config = {"name": "fine-tuned"}
    assert not warned(src="fr", tgt="it")
