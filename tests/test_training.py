"""Around the training step: what it keeps in memory, what it resumes from, and when it stops."""

from __future__ import annotations

import copy
import errno
from types import SimpleNamespace

import pytest
import torch

from localgp.errors import BackboneError, CheckpointError, NonFiniteError
from localgp.gates import LocalGates
from localgp.model import GatedS2T
from localgp.pruning import DECODER_MODULES as MODULES
from localgp.training import module as training_module
from localgp.training.callbacks import _memory_mib
from localgp.training.dev_scores import DevScores
from localgp.training.fit import newest_checkpoint
from localgp.training.module import TrainingModule, gradient_norm
from tests.conftest import make_backbone
from tests.scripts_as_modules import script
from tests.test_config import composed
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)

# Memory


class Languages:
    size = 6

    def of(self, tasks):
        return torch.ones(len(tasks), 1, self.size)


def test_a_gated_decoder_is_checkpointed(espnet, batch):  # noqa: F811
    """As of row 9: less is kept, and loss and gradients stay what they were."""
    saved_bytes = script("memory_table").saved_bytes
    kept, losses, gradients = [], [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        policy = LocalGates(2, 32, MODULES, {"lang2vec": Languages.size})
        model = GatedS2T(
            make_backbone(net=copy.deepcopy(espnet)), None, policy, languages=Languages(), forget=checkpointed
        ).train()
        encoded = model.encode(batch["speech"], batch["speech_lengths"], path="masked")
        encoded = encoded._replace(x=encoded.x.detach().zero_())  # what comes of the decoder alone

        def loss(model=model, encoded=encoded):
            torch.manual_seed(1)  # dropout and gates
            return model.losses(encoded, batch | {"tasks": ["de", "de-fr", "fr"]}).attention

        kept.append(saved_bytes(loss, list(model.parameters())))
        losses.append(loss())
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < 0.7 * kept[0]
    assert losses[0] == losses[1]
    assert any(name.startswith("decoder_policy") for name in gradients[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_peak_memory_is_that_of_the_models_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 3 * 2**20)
    assert _memory_mib(torch.device("cpu")) > 20
    assert _memory_mib(torch.device("cuda", 0)) == 3


# Resuming


def test_nothing_to_resume(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_each_damaged_checkpoint_is_kept_aside(tmp_path, capsys):
    torch.save({"global_step": 7}, tmp_path / "previous.ckpt")
    for content in (b"first", b"second"):
        (tmp_path / "last.ckpt").write_bytes(content)
        assert newest_checkpoint(tmp_path) == (tmp_path / "previous.ckpt", 7)
    assert (tmp_path / "last.damaged").read_bytes() == b"first"
    assert (tmp_path / "last.damaged2").read_bytes() == b"second"
    assert "kept as last.damaged2" in capsys.readouterr().out


def test_no_readable_checkpoint_is_an_error_however_often(tmp_path):
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"damaged")
    for _ in range(2):  # and does not begin anew at the second try
        with pytest.raises(CheckpointError, match=r"last\.ckpt.*previous\.ckpt.*training\.resume=never"):
            newest_checkpoint(tmp_path)


@pytest.mark.parametrize("failure", [MemoryError(), OSError(errno.EACCES, "no"), OSError(errno.EIO, "no")])
def test_a_failure_of_the_machine_is_not_a_damaged_checkpoint(tmp_path, monkeypatch, failure):
    torch.save({"global_step": 7}, tmp_path / "last.ckpt")

    def fail(*args, **kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(type(failure)):
            newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path) == (tmp_path / "last.ckpt", 7)


# Stopping


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_dev_loss_that_is_not_finite_stops_before_the_ranking(tmp_path, value):
    cfg = composed(f"exp_dir={tmp_path}")
    logged = []
    trainer = SimpleNamespace(sanity_checking=True)
    module = SimpleNamespace(global_step=6, cfg=cfg, log_dict=logged.append, trainer=trainer)
    module._dev_utterances = 2
    module._dev_sums = {"valid/loss": value, "valid/accuracy": 1.0}
    with pytest.raises(NonFiniteError, match="dev loss is (nan|inf) at step 6.*There is no checkpoint yet"):
        TrainingModule.on_validation_epoch_end(module)
    last = tmp_path / "mini/mini/row01/seed1/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    with pytest.raises(NonFiniteError, match=f"{last} is from before it"):
        TrainingModule.on_validation_epoch_end(module)
    assert logged == []
    module._dev_sums["valid/loss"] = 3.0
    TrainingModule.on_validation_epoch_end(module)
    assert logged == [{"valid/loss": 1.5, "valid/accuracy": 0.5}]


def test_weights_that_are_not_finite_are_not_decoded():
    model = torch.nn.Identity()
    model.policy = model.decoder_policy = None
    module = TrainingModule(model, composed(), sample_rate=16_000)
    module._dev_sums = {"valid/loss": float("nan")}
    scores = DevScores(None, "none")
    scores.on_validation_epoch_end(None, module)
    module._dev_sums["valid/loss"] = 1.0
    with pytest.raises(AttributeError, match="select_columns"):  # of no rows
        scores.on_validation_epoch_end(None, module)


def test_gradient_norm_is_over_all_shards(monkeypatch):
    cpu = torch.device("cpu")
    ours, theirs = [torch.tensor([3.0]), torch.tensor([0.0, 4.0])], 144.0
    monkeypatch.setattr(training_module, "sum_over_ranks", lambda squared: squared + theirs)
    assert gradient_norm(ours, cpu, sharded=False) == 5
    assert gradient_norm(ours, cpu, sharded=True) == 13
    assert gradient_norm([], cpu, sharded=True) == 12
    theirs = float("nan")
    assert gradient_norm(ours, cpu, sharded=True) != gradient_norm(ours, cpu, sharded=True)


def test_a_gradient_that_is_not_finite_elsewhere_stops_here_too(tmp_path, monkeypatch):
    from lightning.pytorch.strategies import FSDPStrategy

    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    module = SimpleNamespace(
        cfg=composed(f"exp_dir={tmp_path}"), global_step=6, terms={}, device=weight.device,
        trainer=SimpleNamespace(strategy=FSDPStrategy()), named_parameters=lambda: [("weight", weight)],
    )  # fmt: skip
    optimizer = torch.optim.SGD([weight], 0.1)
    monkeypatch.setattr(training_module, "sum_over_ranks", lambda squared: squared + float("nan"))
    with pytest.raises(NonFiniteError, match="norm is nan at step 6. No update"):
        TrainingModule.on_before_optimizer_step(module, optimizer)
    weight.grad[0] = float("nan")
    with pytest.raises(NonFiniteError, match="norm is nan at step 6, first in weight"):
        TrainingModule.on_before_optimizer_step(module, optimizer)


# Backbones


def test_flops_of_configurations_that_say_less(tmp_path, monkeypatch):
    """OWSM's 30 s where no length is given; an encoder of another kind is named."""
    from localgp import flops
    from localgp.backbones.owsm import files as owsm

    cfg = composed()
    config = owsm.read_train_config(cfg.backbone)
    without = {k: v for k, v in config.items() if k != "preprocessor_conf"}
    monkeypatch.setattr(owsm, "read_train_config", lambda _: without)
    assert ", 30 s" in flops.count(cfg)["gflops"]["convention"]
    small = {"output_size": 32, "attention_heads": 4, "num_blocks": 1}
    other = {**config, "encoder": "conformer", "encoder_conf": small}
    monkeypatch.setattr(owsm, "read_train_config", lambda _: other)
    with pytest.raises(BackboneError, match="encoder: conformer has layers that are not gated here"):
        flops.count(cfg)
