"""Our loss against ESPnet's own, on the same weights and batch."""

from __future__ import annotations

import pytest
import torch

from localgp.gates import LocalGates
from localgp.model import GatedS2T
from localgp.training.schedule import build_optimizer
from tests.conftest import make_backbone, make_encoder
from tests.test_config import composed

TOKENS = ["<blank>", "<unk>", "<na>", *"abcdefghij", "<sos>", "<eos>", "<sop>"]


@pytest.fixture(scope="module")
def espnet():
    from espnet2.asr.ctc import CTC
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.frontend.default import DefaultFrontend
    from espnet2.s2t.espnet_model import ESPnetS2TModel

    torch.manual_seed(1)
    return ESPnetS2TModel(
        vocab_size=len(TOKENS),
        token_list=TOKENS,
        frontend=DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=80),
        specaug=None,
        normalize=None,
        preencoder=None,
        encoder=make_encoder(),
        postencoder=None,
        decoder=TransformerDecoder(len(TOKENS), 32, attention_heads=4, linear_units=64, num_blocks=2),
        ctc=CTC(len(TOKENS), 32),
        ctc_weight=0.3,
        lsm_weight=0.1,
    ).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    lengths = torch.full((3,), 24000)
    text = torch.tensor([[3, 4, 5, 6], [7, 8, -1, -1], [9, 3, 3, -1]])
    return {
        "speech": torch.randn(3, 24000, generator=generator) * 0.1,
        "speech_lengths": lengths,
        "text": text,
        "text_lengths": torch.tensor([4, 2, 3]),
        "text_ctc": text.clone(),
        "text_ctc_lengths": torch.tensor([4, 2, 3]),
        "text_prev": torch.full((3, 1), TOKENS.index("<na>")),
        "text_prev_lengths": torch.ones(3, dtype=torch.long),
        "utterance": torch.arange(3),
    }


def test_loss_is_espnets(espnet, batch):
    model = GatedS2T(make_backbone(net=espnet)).eval()
    losses = model.losses(model.encode(batch["speech"], batch["speech_lengths"]), batch)
    expected, _, _ = espnet(**{k: v.clone() for k, v in batch.items() if k != "utterance"})
    torch.testing.assert_close(losses.total, expected.squeeze())


def test_previous_text_is_a_condition_and_not_a_target(espnet, batch):
    model = GatedS2T(make_backbone(net=espnet)).eval()
    batch["text_prev"] = torch.tensor([[4, 5], [2, -1], [6, -1]])
    batch["text_prev_lengths"] = torch.tensor([2, 1, 1])
    losses = model.losses(model.encode(batch["speech"], batch["speech_lengths"]), batch)
    expected, _, _ = espnet(**{k: v.clone() for k, v in batch.items() if k != "utterance"})
    torch.testing.assert_close(losses.total, expected.squeeze())


def test_one_encoder_pass_serves_all_tasks(espnet, batch):
    """Grouped: two sequences of utterance 0 and one of utterance 1 cost what they cost one by one."""
    model = GatedS2T(make_backbone(net=espnet)).eval()
    grouped = batch | {
        "speech": batch["speech"][:2],
        "speech_lengths": batch["speech_lengths"][:2],
        "text_ctc": batch["text_ctc"][:2],
        "text_ctc_lengths": batch["text_ctc_lengths"][:2],
        "utterance": torch.tensor([0, 1, 0]),
    }
    loss = model.losses(model.encode(grouped["speech"], grouped["speech_lengths"]), grouped).attention
    apart = batch | {"speech": batch["speech"][torch.tensor([0, 1, 0])]}
    expected = model.losses(model.encode(apart["speech"], apart["speech_lengths"]), apart).attention
    torch.testing.assert_close(loss, expected)


def test_gates_and_backbone_have_their_own_learning_rates(espnet):
    model = GatedS2T(make_backbone(net=espnet), LocalGates(3, 32, ["ffn1"], {"front": 32}))
    cfg = composed("conf=row05", "training.lr=0.001", "training.gate_lr=0.1", "training.scheduler=constant")
    groups = build_optimizer(model, cfg.training, 10)["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [0.001, 0.1]
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())


def test_espnet_checkpoint_still_loads(espnet):
    """The ESPnet model is kept whole: its parameters have the names they had."""
    model = GatedS2T(make_backbone(net=espnet), LocalGates(3, 32, ["ffn1"], {"front": 32}))
    names = {k.removeprefix("espnet.") for k in model.state_dict() if k.startswith("espnet.")}
    assert names == set(espnet.state_dict())
