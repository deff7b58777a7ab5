"""Damaged inputs end in an error of ours or a listed skip: 100 random cases, and failures of the surroundings."""

from __future__ import annotations

import errno

import pytest
import torch
from hydra import compose, initialize_config_dir

from localgp.cli import CONF_DIR, reported
from localgp.errors import CheckpointError, ConfigError, NonFiniteError
from localgp.failures import remedy
from localgp.settings import check
from tests.scripts_as_modules import script


def test_a_hundred_damaged_inputs():
    ended, wrong = script("mutate_inputs").mutate(cases=100, seed=7)
    assert wrong == []
    assert sum(ended.values()) == 100
    assert ended["error"] > 40


def test_the_test_itself_sees_what_goes_wrong(tmp_path):
    """Readers that take anything, raise anything or run anything are found out."""
    mutate_inputs = script("mutate_inputs")
    good = tmp_path / "good"
    good.mkdir()
    (good / "m.bin").write_bytes(bytes(1000))

    def ends(use):
        target = mutate_inputs.Target(lambda _: None, use, ("m.bin",), {})
        mutate_inputs.TARGETS["probe"] = target
        try:
            generator = mutate_inputs.Random(0)
            return {mutate_inputs.try_case("probe", good, tmp_path, generator)[0] for _ in range(30)}
        finally:
            del mutate_inputs.TARGETS["probe"]

    def unpickle(place):
        import pickle

        pickle.loads((place / "m.bin").read_bytes())
        return 0

    def litter(place):
        (place / "half-written").write_text("x")
        return 0

    assert "silent" in ends(lambda place: 0)
    assert ends(lambda place: 1 // 0) == {"traceback"}
    assert "code" in ends(unpickle)
    assert ends(litter) == {"written"}


# --- configurations


def composed(*overrides: str):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_every_shipped_experiment_passes():
    for conf in (CONF_DIR / "conf").glob("*.yaml"):
        check(composed(f"conf={conf.stem}"))
    for backbone in ("owsm_v3.1_medium", "mini"):
        check(composed(f"backbone={backbone}", "corpus=europarl_st"))


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        check(composed("training.batch_size=0", "training.lr=fast", "decode.beam=1.5", "exp_dir=''"))
    message = str(error.value)
    assert "training.batch_size is 0; valid: a whole number, 1 or more" in message
    assert "training.lr is 'fast'; valid: a number from 0" in message
    assert "decode.beam is 1.5" in message
    assert "exp_dir is ''; valid: a path" in message


def test_what_has_to_be_given_is_asked_for():
    with pytest.raises(ConfigError, match=r"corpus\.manifest has no value; give corpus\.manifest=\.\.\."):
        check(composed("corpus=manifest"))
    with pytest.raises(ConfigError, match=r"backbone\.path has no value"):
        check(composed("backbone=path"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning.encoder=locla"], "pruning.encoder is 'locla'; valid: null, local"),
        (["pruning.context=[front,speaker]"], "pruning.context has 'speaker'; valid: front, spk, event"),
        (["pruning.decoder=random"], "pruning.decoder is 'random'; valid: null, local"),
        (["window.length=half"], "window.length is 'half'; valid: full, utterance, or seconds, 0.2 or more"),
        (["window.length=0.1"], "window.length is 0.1; valid: full, utterance"),
        (["window.margin=-1"], "window.margin is -1; valid: a number from 0"),
        (["trainer.devices=banana"], "trainer.devices is 'banana'; valid: auto, or 1 and more"),
        (["trainer.strategy=deepspeed"], "trainer.strategy is 'deepspeed'; valid: auto, ddp, fsdp"),
        (["contexts.spk.shuffle=maybe"], "contexts.spk.shuffle is 'maybe'; valid: true, false"),
        (["evaluate.force=3"], "evaluate.force is 3; valid: true, false"),
    ],
)
def test_names_are_checked_before_a_corpus_is_made(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(composed(*overrides))


def test_a_problem_of_both_policies_is_named_once():
    cfg = composed("conf=row10")
    cfg.pruning.target = 1
    with pytest.raises(ConfigError) as error:
        check(cfg)
    assert str(error.value).count("pruning.target") == 1


# --- the surroundings


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "exp/x"), r"exp/x: No space left.*Free space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            r"/root/x: Permission denied.*exp_dir=",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "training.batch_size=1"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
            "decode.batch=1",
        ),
        (
            OSError(errno.ENOTEMPTY, "Directory not empty", "exp/a"),
            "exp/a: Directory not empty: something else",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "exp/b"), "exp/b: .*is missing"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "training.workers=0"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
            "the disk is full",
        ),
    ],
)
def test_failures_of_the_surroundings_name_the_remedy(error, said, capsys):
    import re

    with pytest.raises(SystemExit) as status, reported():
        raise error
    assert status.value.code == 1
    printed = capsys.readouterr().err
    assert re.search(said, printed, re.DOTALL)
    assert "Traceback" not in printed


def test_a_bug_stays_a_traceback():
    assert remedy(KeyError("x")) is None
    assert remedy(RuntimeError("shape mismatch")) is None
    with pytest.raises(ZeroDivisionError), reported():
        1 // 0  # noqa: B018


def test_unwritable_and_full_places(tmp_path, capsys):
    """A file where a directory has to be; a device on which no space is left."""
    from pathlib import Path

    from localgp.corpora.prepared import prepare

    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(SystemExit), reported():
        prepare(composed(f"data_dir={tmp_path / 'data'}"))
    assert "something else is where" in capsys.readouterr().err
    with pytest.raises(SystemExit), reported():
        Path("/dev/full").write_text("x" * 100_000)
    assert "disk is full" in capsys.readouterr().err


def test_two_damaged_checkpoints_are_named_and_left_alone(tmp_path):
    """A training that cannot go on says so, instead of starting over by itself."""
    from localgp.training.fit import newest_checkpoint

    for name in ("last.ckpt", "previous.ckpt"):
        torch.save({"global_step": 3}, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*previous\.ckpt.*training\.resume=never"):
        newest_checkpoint(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    from types import SimpleNamespace

    from localgp.training.module import TrainingModule

    module = SimpleNamespace(global_step=12, cfg=composed(f"exp_dir={tmp_path}"))
    with pytest.raises(
        NonFiniteError, match=r"loss_ctc is not finite at step .*no checkpoint yet.*training\.lr"
    ):
        TrainingModule._check_finite(module, {"loss_ctc": float("nan"), "loss_att": 1.0}, {"utt_ids": ["u1"]})
