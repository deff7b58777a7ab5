"""Every shipped configuration composes; nothing appears or vanishes on the command line unnoticed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from localgp.build import build_policy
from localgp.cli import CONF_DIR
from localgp.errors import ConfigError
from localgp.settings import check, keys_of

CONFS = sorted(p.stem for p in (CONF_DIR / "conf").glob("*.yaml"))
BACKBONES = sorted(p.stem for p in (CONF_DIR / "backbone").glob("*.yaml"))
ENTRY_POINTS = ["prepare", "train", "evaluate", "flops", "bench", "analyze", "report"]


def composed(*overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize("conf", CONFS)
def test_every_experiment_composes_and_builds(conf, backbone):
    cfg = composed(f"conf={conf}")
    assert cfg.name == conf
    base = composed()
    assert set(keys_of(cfg)) == set(keys_of(base)), "an experiment may set keys, not invent them"
    policy = build_policy(cfg, backbone)
    assert (policy is None) == (cfg.pruning.encoder is None)


@pytest.mark.parametrize("conf", CONFS)
def test_every_experiment_says_how_to_run_it(conf):
    head = (CONF_DIR / "conf" / f"{conf}.yaml").read_text(encoding="utf-8").splitlines()[:3]
    assert head[0] == "# @package _global_"
    assert f"python -m localgp.train conf={conf}" in head[2]


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b != "path"])
@pytest.mark.parametrize("corpus", ["mini", "europarl_st"])
def test_every_backbone_and_corpus_composes(backbone, corpus):
    cfg = composed(f"backbone={backbone}", f"corpus={corpus}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.backbone.name == backbone
    assert cfg.training.name == ("mini" if backbone == "mini" else "paper")


def test_the_papers_recipe():
    training = composed("backbone=owsm_v3.1_medium").training
    assert (training.batch_size, training.optimizer, training.lr) == (4, "adam", 1e-5)
    assert (training.scheduler, training.warmup_steps) == ("warmup", 6000)


def test_training_can_be_chosen_apart_from_the_backbone():
    assert composed("backbone=owsm_v3.1_base", "training=mini").training.name == "mini"


def test_what_a_backbone_has_is_shown_resolved():
    """Of the parts to gate, those of the backbone, in help and configuration."""
    run = [sys.executable, "-m", "localgp.train", "backbone=whisper_base", "conf=row02"]
    help_, config = (
        subprocess.run([*run, *flags], capture_output=True, text=True, check=True).stdout
        for flags in (["--help"], ["--cfg", "job"])
    )
    assert "pruning.encoder_modules=[attention,ffn]" in help_
    assert "  encoder_modules:\n  - attention\n  - ffn\n" in config


def test_options_are_a_contract():
    """A new or lost option shows here; change the list on purpose."""
    listed = Path(__file__).parent / "assets" / "options.txt"
    assert sorted(keys_of(composed())) == listed.read_text(encoding="utf-8").split()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning.encoder=locla"], "pruning.encoder is 'locla'; valid: null, local"),
        (["pruning.encoder=local", "pruning.context=[face]"], "'face'; valid: front"),
        (["pruning.encoder=local", "pruning.encoder_modules=[ffn3]"], "ffn3.*valid: ffn1, attention"),
        (["pruning.encoder=local", "pruning.encoder_modules=[cgmlp]"], "cannot be gated frame by frame"),
        (["pruning.encoder=local", "pruning.target=1.5"], "pruning.target is 1.5"),
        (["pruning.encoder=global", "pruning.context=[]"], "GlobalGP pools"),
        (["pruning.decoder=random"], "pruning.decoder is 'random'; valid: null, local, global, open"),
        (["pruning.decoder_modules=[ffn1]"], "ffn1.*valid: a list of some of self_attention, source"),
        (["pruning.decoder_context=[spk]"], "spk.*valid: a list of some of front, task, lang2vec"),
        (["pruning.decoder=global", "pruning.decoder_context=[]"], "GlobalGP decides from it alone"),
        (["trainer.devices=many"], "trainer.devices is 'many'; valid: auto, or 1 and more"),
        (["trainer.strategy=magic"], "trainer.strategy is 'magic'; valid: auto, ddp, fsdp"),
        (["corpus.reader=kaldi", "corpus.workers=0"], "(?s)corpus.reader is 'kaldi'.*corpus.workers is 0"),
        (["corpus.name=a/b", "corpus.max_seconds=0"], "(?s)corpus.name is 'a/b'.*corpus.max_seconds is 0"),
        (["corpus.generate.dev_segments=0"], "corpus.generate.dev_segments is 0"),
        (
            ["corpus=europarl_st", "corpus.train_folders=[test]"],
            "valid: a list of some of train, train-noisy",
        ),
        (["corpus.on_error=ignore"], "corpus.on_error is 'ignore'; valid: raise, skip"),
        (["corpus.case=upper"], "corpus.case is 'upper'; valid: lower, keep"),
        (["backbone.weights=trained"], "backbone.weights is 'trained'; valid: pretrained, random"),
        (["pruning.path=fast", "pruning.attention=cosin"], "(?s)'fast'; valid: masked.*'cosin'; valid: dot"),
        (["training.optimizer=sgd"], "training.optimizer is 'sgd'; valid: adam, adamw"),
        (["training.scheduler=cosine"], "training.scheduler is 'cosine'; valid: warmup"),
        (["training.logger=paper"], "training.logger is 'paper'; valid: tensorboard"),
        (["device=gpu", "decode.precision=fp8"], "(?s)decode.precision is 'fp8'.*device is 'gpu'"),
    ],
)
def test_bad_values_are_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(composed(*overrides))


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_is_quick(name):
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", f"localgp.{name}", "--help"], capture_output=True, text=True, check=True
    )
    assert "Options (key=value)" in result.stdout
    # 3 s on an idle machine is the promise; a loaded test machine gets slack, an ESPnet import takes 7 s alone
    assert time.perf_counter() - began < 6
