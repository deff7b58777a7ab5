"""Every OWSM: small random models, written by ESPnet's own task, here and in ESPnet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import localgp
from localgp import flops
from localgp.backbones.cost import EncoderCost
from localgp.backbones.owsm import NAMES
from localgp.backbones.owsm.components import quiet_espnet
from localgp.backbones.owsm.files import espnet_arguments
from localgp.backbones.owsm.model import load_backbone
from localgp.backbones.owsm.shapes import DIMENSIONS
from localgp.build import build_model
from localgp.corpora.audio import write_audio
from localgp.corpora.rows import Task
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.errors import ConfigError
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches, primers_of
from localgp.training.callbacks import _line
from localgp.training.module import TrainingModule
from localgp.transcribe import main
from tests.fvcore_count import count_with_fvcore
from tests.owsm_helpers import PUBLISHED, write
from tests.test_config import composed

TOKENS = 6  # of a hypothesis


@pytest.fixture(scope="module", params=list(PUBLISHED))
def directory(request, tmp_path_factory):
    return write(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def model(directory):
    """Gates that decide by what they see, about half of them closed."""
    cfg = composed(
        *("conf=row05", "pruning.gate_bias=0.3", "backbone=path", "device=cpu", "backbone.name=tiny"),
        f"backbone.path={directory}",
    )
    model = build_model(cfg).eval()
    torch.manual_seed(1)
    for layer in model.policy.layers:
        for head in layer.heads.values():
            torch.nn.init.normal_(head.weight)
    return model


@pytest.fixture(scope="module")
def speech(model):
    """Two windows, noise and then silence."""
    speech = torch.zeros(2, model.backbone.samples)
    noise = 0.1 * torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
    speech[:, :30_000] = noise
    speech[1, 17_000:] = 0.0
    return speech


@torch.no_grad()
def test_all_paths_are_espnets_encoder(model, speech):
    backbone = model.backbone
    feats, lengths = backbone.features(speech, torch.full((2,), speech.shape[1]))
    theirs = backbone.reference_encoder(feats, lengths)
    for policy in (None, model.policy):
        masked, gathered = (encode(backbone, feats, lengths, policy, path=p) for p in ("masked", "gathered"))
        gates = None if policy is None else PackedGates(policy)
        packed = PackedEncoder(backbone).encode(feats, lengths, gates)
        assert masked.x.shape == theirs.shape
        torch.testing.assert_close(gathered.x, masked.x, atol=1e-5, rtol=0)
        torch.testing.assert_close(packed.x, masked.x, atol=1e-5, rtol=0)
        if policy is None:
            torch.testing.assert_close(masked.x, theirs, atol=1e-5, rtol=0)
    kept = torch.stack([gate.value.mean() for layer in masked.gates for gate in layer.values()])
    assert 0.1 < kept.mean() < 0.9


@torch.no_grad()
def test_utterances_of_other_lengths_are_as_if_alone(model, speech):
    feats, _ = model.backbone.features(speech, torch.full((2,), speech.shape[1]))
    lengths = torch.tensor([190, 141])
    together = PackedEncoder(model.backbone).encode(feats[:, :190].contiguous(), lengths)
    masked = encode(model.backbone, feats[:, :190], lengths, None, path="masked", ragged=True)
    for b, n in enumerate(lengths.tolist()):
        alone = model.backbone.reference_encoder(feats[b : b + 1, :n], lengths[b : b + 1])
        frames = alone.shape[1]
        assert together.lengths[b] == frames
        torch.testing.assert_close(together.x[b, :frames], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(masked.x[b, :frames], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_hypotheses_are_espnets(model, directory, speech, tmp_path):
    arguments = espnet_arguments(directory, tmp_path)
    options = DecodeOptions(beam=5, ctc_weight=0.3, maxlenratio=-TOKENS)
    with quiet_espnet():
        if model.backbone.is_told:  # without a decoder
            from espnet2.bin.s2t_inference_ctc import Speech2TextGreedySearch

            theirs, options = Speech2TextGreedySearch(**arguments), DecodeOptions(beam=1)
        else:
            from espnet2.bin.s2t_inference import Speech2Text

            theirs = Speech2Text(**arguments, beam_size=5, ctc_weight=0.3, maxlenratio=-TOKENS)
    tokenizer = model.backbone.tokenizer
    tasks = [Task(0, "de", "de"), Task(1, "fr", "fr")]
    feats, lengths = model.backbone.features(speech, torch.full((2,), speech.shape[1]))
    encoded = PackedEncoder(model.backbone).encode(feats, lengths, primers=primers_of(tokenizer, tasks))
    searches = TaskSearches(model.backbone, options, torch.float32)
    found = searches(encoded.x, encoded.lengths, [0, 1], tasks)
    for signal, language, written in zip(speech, ("de", "fr"), found, strict=True):
        with quiet_espnet():
            best = theirs(signal, lang_sym=f"<{tokenizer.code(language)}>", task_sym="<asr>")[0]
        assert len(written.tokens) >= TOKENS
        ends = model.backbone.shape.decoder_layers > 0  # else eos is a label like any other
        ours = [tokenizer.token_list[i] for i in written.tokens if i != tokenizer.eos or not ends]
        assert best[1][-len(ours) :] == ours


@pytest.mark.parametrize(("task", "before"), [("pr", ""), ("g2p", "guten tag"), ("p2g", "guten tag")])
def test_powsms_tasks_are_asked_for_by_name(tmp_path, task, before):
    """Its text beside ESPnet's own, with the same language, task and text before."""
    directory = write("powsm", tmp_path / "model")
    model = localgp.load(str(directory), device="cpu")
    noise = 0.1 * torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    asked = {"beam": 2, "ctc_weight": 0.3, "maxlenratio": -TOKENS}
    ours = model.transcribe(noise, src="de", task=task, before=before, **asked)
    with quiet_espnet():
        from espnet2.bin.s2t_inference import Speech2Text

        arguments = espnet_arguments(directory, tmp_path / "work")
        theirs = Speech2Text(**arguments, beam_size=2, ctc_weight=0.3, maxlenratio=-TOKENS, device="cpu")
        found = theirs(noise, text_prev=before or "<na>", lang_sym="<deu>", task_sym=f"<{task}>")
    assert ours.text == found[0][3].strip()
    assert ours.target == task
    with pytest.raises(
        ConfigError, match=r"task is 'pp'; this model has transcribe, translate, pr, g2p, p2g"
    ):
        model.transcribe(noise, src="de", task="pp")
    with pytest.raises(ConfigError, match="leave the target fra out"):
        model.transcribe(noise, src="de", tgt="fra", task=task)


def test_a_task_that_a_model_lacks_is_refused_before_it_is_loaded(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(ConfigError, match=r"task is 'pr'; this model has transcribe, translate$"):
        main([str(tmp_path / "a.wav"), "--task", "pr"])


def test_flops_are_fvcores_on_espnets_modules(directory):
    from fvcore.nn import FlopCountAnalysis

    class Espnet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = backbone.net

        def forward(self, feats):
            return backbone.reference_encoder(feats, torch.tensor([feats.shape[1]]))

    backbone = load_backbone({"name": "tiny", "path": str(directory), "weights": "pretrained"})
    analysis = FlopCountAnalysis(Espnet().eval(), torch.zeros(1, 240, backbone.shape.mels))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    cost = EncoderCost(backbone, 240).encoder()
    assert cost == analysis.total() == count_with_fvcore(backbone, 240)


def test_frames_are_centred_on_what_they_see(model):
    """A frame's output changes with the feature frames around its centre, and with no other."""
    backbone, frame = model.backbone, 2
    timeline = backbone.timeline
    feats = torch.zeros(1, 120, backbone.shape.mels, requires_grad=True)
    backbone.front(feats, torch.tensor([120])).front[0, frame].square().sum().backward()
    (seen,) = feats.grad[0].abs().sum(1).nonzero(as_tuple=True)
    middle = (seen[0] + seen[-1]) / 2 * timeline.hop
    assert float(middle) == timeline.centres(3)[frame]


def test_gates_train_a_step_and_close_a_share(model, directory):
    cfg = composed(
        *("conf=row05", "backbone=path", "device=cpu", "backbone.name=tiny", f"backbone.path={directory}"),
        *("pruning.target=0.5", "pruning.gate_bias=0.0"),
    )
    module = TrainingModule(build_model(cfg).train(), cfg, sample_rate=16_000)
    tokenizer = module.model.backbone.tokenizer
    prompt, words = tokenizer.prompt("de", "de"), tokenizer.encode("guten tag")
    text = torch.tensor([[*prompt, *words]])
    samples = 40_000
    batch = {
        "speech": 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0)),
        "speech_lengths": torch.tensor([samples]),
        "signal": torch.tensor([[0, samples]]),
        "text": text,
        "text_lengths": torch.tensor([text.shape[1]]),
        "text_prev": torch.tensor([[tokenizer.na]]),
        "text_ctc": torch.tensor([words]),
        "text_ctc_lengths": torch.tensor([len(words)]),
        "utterance": torch.tensor([0]),
        "tasks": ["de"],
        "utt_ids": ["a"],
    }
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 1e-3)
    before = [p.clone() for p in module.model.policy.parameters()]
    loss = module.training_step(batch, 0)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert all((p != q).any() for p, q in zip(module.model.policy.parameters(), before, strict=True))
    logged = module.terms | dict.fromkeys(("lr", "audio_per_second", "data_share", "memory_mib"), 1.0)
    line = _line(SimpleNamespace(global_step=1, max_steps=2), module, logged)
    assert ("acc " in line) == (module.model.backbone.shape.decoder_layers > 0)
    kept = {name: float(value) for name, value in module.terms.items() if name.startswith("kept/")}
    assert {f"kept/{part}" for part in module.model.backbone.frame_parts()} <= set(kept)
    assert min(kept.values()) < 1.0


def test_the_table_of_models_is_what_is_configured_and_counted():
    """docs/backbones.md; the large ones take a second each, and are counted by the same code."""
    text = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `owsm")
    ]
    named = {row[0] for row in rows}
    assert named == {name for name in NAMES if name != "mini"}
    for name, hub, _, layers, width, mels, frames, gflops in rows:
        cfg = composed(f"backbone={name}", "conf=row01")
        shape = DIMENSIONS[name]
        assert cfg.backbone.path == hub
        assert layers == f"{shape.encoder_layers} + {shape.decoder_layers}"
        assert (int(width), int(mels)) == (shape.size, shape.mels)
        assert (
            int(frames) == {"conv2d": 749, "conv2d8": 374 + 2 * (not shape.decoder_layers)}[shape.input_layer]
        )
        if name.endswith("_base"):
            assert flops.count(cfg)["gflops"]["encoder"] == float(gflops)
