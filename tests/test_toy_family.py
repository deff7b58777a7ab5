"""A second family through the seam alone: nothing outside of `tests.toy_family` names it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import localgp
from localgp import backbones
from localgp.backbones.cost import DecoderCost, EncoderCost
from localgp.build import build_model
from localgp.corpora.rows import Task
from localgp.decoder.train import decode_tokens
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.errors import BackboneError, ConfigError
from localgp.hub.pack import pack
from localgp.run import write_atomically
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches
from localgp.training.module import TrainingModule
from localgp.weights import save_weights
from localgp.window import Window
from tests.fvcore_count import count_with_fvcore
from tests.test_config import composed

SPEECH = torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0)) * 0.1
LENGTHS = torch.tensor([32_000, 20_000, 9_000])
GATED = (
    *("conf=row10", "pruning.encoder_modules=[attention,ffn]", "pruning.context=[front]"),
    *("pruning.decoder_context=[front,task]", "pruning.gate_bias=0.3", "backbone=path", "device=cpu"),
)


@pytest.fixture(autouse=True)
def family(monkeypatch):
    monkeypatch.setitem(backbones.FAMILIES, "toy", "tests.toy_family")


@pytest.fixture
def cfg(tmp_path):
    torch.manual_seed(0)
    toy = backbones.open_backbone({"name": "toy", "path": "published/toy", "weights": "random"})
    toy.save(tmp_path / "model")
    return composed(*GATED, f"backbone.path={tmp_path / 'model'}", "backbone.name=toy")


@pytest.fixture
def model(cfg):
    """Gates that decide by what they see, about half of them closed."""
    model = build_model(cfg).eval()
    torch.manual_seed(1)
    for policy in (model.policy, model.decoder_policy):
        for layer in policy.layers:
            for head in layer.heads.values():
                torch.nn.init.normal_(head.weight)
    return model


def batch():
    text = torch.tensor([[2, 4, 6, 7, 8], [2, 5, 9, -1, -1], [3, 4, 10, 11, -1], [2, 4, 6, -1, -1]])
    return {
        "speech": SPEECH,
        "speech_lengths": torch.full((3,), 32_000),
        "signal": torch.stack([torch.zeros(3, dtype=torch.long), LENGTHS], dim=1),
        "text": text,
        "utterance": torch.tensor([0, 0, 1, 2]),
        "tasks": ["de", "de-fr", "fr", "de"],
        "utt_ids": ["a", "b", "c"],
    }


@pytest.mark.parametrize("path", ["masked", "gathered"])
def test_a_training_step_reaches_backbone_and_gates(cfg, path):
    cfg.pruning.path = path
    module = TrainingModule(build_model(cfg).train(), cfg, sample_rate=16_000)
    losses = []
    for forget in (False, True):
        module.model.forget, module._micro_step = forget, 0
        module.zero_grad()
        loss = module.training_step(batch(), 0)
        loss.backward()
        losses.append(float(loss))
    assert losses[0] == losses[1]
    assert {"loss_att", "loss_sparsity", "kept/attention", "kept/decoder.ffn"} <= set(module.terms)
    assert "loss_ctc" not in module.terms
    without = [name for name, p in module.named_parameters() if p.grad is None]
    assert without == []


@torch.no_grad()
def test_all_paths_are_one(model):
    feats, lengths = model.features(SPEECH, torch.full((3,), 32_000))
    for policy in (None, model.policy):
        masked, gathered = (
            encode(model.backbone, feats, lengths, policy, path=p) for p in ("masked", "gathered")
        )
        gates = None if policy is None else PackedGates(policy)
        packed = PackedEncoder(model.backbone).encode(feats, lengths, gates)
        torch.testing.assert_close(gathered.x, masked.x, atol=1e-5, rtol=0)
        torch.testing.assert_close(packed.x, masked.x, atol=1e-5, rtol=0)
    kept = torch.stack([gate.value.mean() for layer in masked.gates for gate in layer.values()])
    assert 0.1 < kept.mean() < 0.9
    model.window = Window("utterance", 0.0)
    ragged = model.packed().encode(SPEECH, LENGTHS)
    for b, length in enumerate(LENGTHS):
        alone = model.packed().encode(SPEECH[b : b + 1, :length], LENGTHS[b : b + 1])
        torch.testing.assert_close(ragged.x[b, : alone.x.shape[1]], alone.x[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_search_writes_what_the_whole_pass_scores(model):
    encoded = model.packed().encode(SPEECH, LENGTHS)
    searches = TaskSearches(model.backbone, DecodeOptions(beam=3, maxlenratio=-8), torch.float32)
    tasks = [Task(0, "de", "de"), Task(0, "de", "fr"), Task(2, "fr", "fr")]
    found = searches(encoded.x, encoded.lengths, [0, 0, 2], tasks, gates=partial(model.step_gates, encoded))
    for task, owner, written in zip(tasks, [0, 0, 2], found, strict=True):
        prompt = model.backbone.tokenizer.prompt(task.source, task.target)
        tokens = torch.tensor([[0, *prompt, *written.tokens]])[:, : 3 + len(written.open_PLM) - 1]
        own = torch.tensor([owner])
        contexts = model.decoder_contexts(encoded, own, [task.name], torch.tensor([prompt]))
        whole = decode_tokens(
            model.backbone,
            encoded.x[owner : owner + 1],
            encoded.lengths[owner : owner + 1],
            tokens,
            torch.tensor([tokens.shape[1]]),
            model.decoder_policy,
            contexts,
        )
        names = model.backbone.part_names("decoder")
        opened = torch.stack([torch.stack([g[n].mask[0] for n in names], -1) for g in whole.gates], 1)
        assert torch.equal(written.open_PLM, opened[2:])
    with pytest.raises(ConfigError, match="no CTC"):
        TaskSearches(model.backbone, DecodeOptions(ctc_weight=0.3), torch.float32)


def test_no_output_is_longer_than_the_positions(model):
    encoded = model.packed().encode(SPEECH, LENGTHS)
    model.backbone.net.output.bias.data[model.backbone.tokenizer.eos] = -1e4
    (written,) = TaskSearches(model.backbone, DecodeOptions(beam=1, maxlenratio=-500), torch.float32)(
        encoded.x, encoded.lengths, [0], [Task(0, "de", "de")]
    )
    assert 3 + len(written.tokens) <= 64 + 1  # and the forced end


def test_it_is_counted_as_fvcore_counts_it(model):
    cost = EncoderCost(model.backbone, 200)
    assert cost.encoder() == count_with_fvcore(model.backbone, 200)
    gates = model.packed().encode(SPEECH[:1], LENGTHS[:1]).gates
    kept = [{name: float(gate.value.sum()) for name, gate in layer.items()} for layer in gates]
    assert cost.encoder(kept) < cost.encoder()
    terms = DecoderCost(model.backbone, cost.frames).terms(4)
    assert terms["ffn"] == 2 * 4 * (2 * 16 * 32 + 5 * 16)
    assert terms["source keys and values"] == 2 * cost.frames * 2 * 16**2


def test_it_is_packed_up_and_loaded(cfg, model, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save_weights(model.state_dict(), run / "checkpoints" / "model.safetensors")
    write_atomically(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    packed = pack(run, tmp_path, formats=("huggingface",), name="m", licence="mit", without_scores=True)
    assert (packed["huggingface"] / "toy" / "toy.json").is_file()
    assert {name.split(".")[0] for name in model.state_dict()} == {"toy", "policy", "decoder_policy"}
    noise = SPEECH[0].numpy().astype(np.float32)
    texts = [
        localgp.load(str(place), device="cpu").transcribe(noise, beam=2, ctc_weight=0.0, maxlenratio=0.2)
        for place in (run, packed["huggingface"])
    ]
    assert texts[0].language in ("de", "fr")
    assert [s.text for s in texts[0].segments] == [s.text for s in texts[1].segments]
    with pytest.raises(ConfigError, match="no model of ESPnet's"):
        pack(run, tmp_path, formats=("espnet",), name="n", licence="mit", without_scores=True)


def test_a_model_that_is_there_is_gated(model):
    gated = localgp.gate(
        model.backbone.net, "row05", "backbone.name=toy", "decode.beam=1", "decode.maxlenratio=-4"
    )
    assert gated.model.backbone.net is model.backbone.net
    noise = SPEECH[0].numpy()
    assert gated.gates(noise).kept().keys() == {"attention", "ffn"}
    assert gated.transcribe(noise, src="de").language == "de"
    with pytest.raises(BackboneError, match="Linear is no model that can be gated; valid: WhisperFor"):
        localgp.gate(torch.nn.Linear(1, 1))


def test_gates_of_other_families_parts_are_refused(cfg):
    cfg.pruning.encoder_modules = ["ffn1"]
    with pytest.raises(ConfigError, match="has ffn1, which the encoder of backbone toy.*attention, ffn"):
        build_model(cfg)
