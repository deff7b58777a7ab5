"""A run's directory on the command line is the run; what a run stores is what makes it; a run can be made longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from localgp.command_line import check_line, composing, parsed
from localgp.config_parts import flat, stored
from localgp.errors import CheckpointError, ConfigError
from localgp.hub.load import base_config
from localgp.run import Run
from localgp.run_argument import with_run
from localgp.settings import SCHEMA, Part
from localgp.stored import read_yaml_mapping, runs_below


def arguments_of(*argv: str):
    arguments, _ = parsed(argv)
    arguments.config_name = "config"
    return arguments


def understood(*argv: str, command: str = "evaluate"):
    """The configuration of a command line."""
    arguments = arguments_of(*argv)
    overrides = check_line(with_run(arguments.overrides, arguments, command), arguments)
    with composing(arguments) as composed:
        return composed(overrides)


def make_run(exp: Path, *overrides: str) -> Run:
    run = Run(base_config(f"exp_dir={exp}", *overrides))
    run.start()
    return run


def finish(run: Run) -> None:
    run.checkpoints.mkdir()
    run.weights.touch()


KINDS = {
    "row": ["conf=row05", "seed=2"],
    "variant": ["conf=row06", "pruning.target=0.5", "pruning.attention=cosine"],
    "own name": ["conf=row05", "name=my-row", "training.lr=0.01", "decode.beam=2"],
    "own corpus": ["conf=row01", "corpus=manifest", r"corpus.manifest='a,b \'c\'.jsonl'", "corpus.name=my"],
    "europarl": ["conf=row10", "corpus=europarl_st", "corpus.languages=[de,en]", "backbone=owsm_v3.1_base"],
    "path": ["backbone=path", "backbone.path=models/x", "backbone.name=x", "trainer.max_steps=7"],
}


@pytest.mark.parametrize("overrides", KINDS.values(), ids=KINDS.keys())
def test_a_directory_is_the_options_that_made_the_run(tmp_path, overrides):
    run = make_run(tmp_path, *overrides)
    cfg = understood(str(run.path))
    assert Run(cfg).path == run.path
    assert stored(cfg) == stored(run.cfg)
    Run(cfg).check()


def test_options_stand_on_top_of_the_directory(tmp_path):
    run = make_run(tmp_path, "conf=row05", "decode.beam=3")
    cfg = understood("decode.beam=1", str(run.path), "evaluate.split=dev", "data_dir=elsewhere")
    assert (cfg.decode.beam, cfg.evaluate.split) == (1, "dev")
    assert cfg.corpus.root == "elsewhere/mini"  # which lies in data_dir
    with pytest.raises(ConfigError, match="did you mean decode.beam"):
        understood(str(run.path), "decode.bean=1")
    arguments = arguments_of("-m", str(run.path), "decode.beam=1,2")
    assert (
        check_line(with_run(arguments.overrides, arguments, "evaluate"), arguments)[-1] == "decode.beam=1,2"
    )


def test_each_command_takes_a_directory(tmp_path):
    run = make_run(tmp_path, "conf=row05")
    assert understood(str(run.path), command="analyze").name == "row05"
    assert understood(str(run.path), command="report").exp_dir == str(tmp_path)
    assert understood(str(tmp_path), command="report").exp_dir == str(tmp_path)
    runs = understood(str(run.path), command="bench").bench
    assert (runs.name, list(runs.confs)) == ("runs", ["row05"])
    assert understood(str(run.path), "bench=encoder", command="bench").bench.run == str(run.path)
    later = make_run(tmp_path, "conf=row05", "seed=2")
    with pytest.raises(ConfigError, match="first seed of an experiment; give .*seed1"):
        understood(str(later.path), command="bench")


@pytest.mark.parametrize(
    ("argv", "error", "said"),
    [
        (
            ["{exp}/mini/mini/row05"],
            CheckpointError,
            "is no run's directory; give .*row05/seed1, .*row05/seed2",
        ),
        (["{exp}"], CheckpointError, "no run's directory; give .*seed1"),
        (["row05"], CheckpointError, "row05 is neither an option .key=value. nor a directory"),
        (["{run}", "conf=row06"], ConfigError, "says by itself what it is; leave out conf=row06"),
        (["{run}", "{exp}/mini/mini/row05/seed2"], ConfigError, "give one run, not"),
        (["{exp}/moved/seed1"], CheckpointError, "belongs at .*mini/mini/row05/seed1"),
        (["{exp}/broken/seed1"], CheckpointError, "not a run's configuration, seed.* missing"),
        (["{exp}/newer/seed1"], CheckpointError, "pruning.quantum=3, unknown here"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, argv, error, said):
    run = make_run(tmp_path, "conf=row05")
    make_run(tmp_path, "conf=row05", "seed=2")
    text = (run.path / "config.yaml").read_text()
    written = {
        "moved": text,
        "broken": "name: x\n",
        "newer": text.replace("pruning:", "pruning:\n  quantum: 3"),
    }
    for name, content in written.items():
        (tmp_path / name / "seed1").mkdir(parents=True)
        (tmp_path / name / "seed1" / "config.yaml").write_text(content)
    with pytest.raises(error, match=said):
        understood(*(item.format(exp=tmp_path, run=run.path) for item in argv))


def test_runs_below_a_directory(tmp_path):
    runs = [
        make_run(tmp_path, f"conf={conf}", f"seed={seed}").path
        for conf in ("row01", "row05")
        for seed in (1, 2)
    ]
    assert runs_below(tmp_path) == runs
    assert runs_below(tmp_path / "mini" / "mini" / "row05") == runs[2:]
    assert runs_below(runs[0]) == runs[:1]
    assert runs_below(tmp_path / "none") == []


# --- what is stored


def test_a_run_stores_what_makes_it(tmp_path):
    content = read_yaml_mapping(make_run(tmp_path, "conf=row05").path / "config.yaml")
    kept = set(flat(content))
    assert not kept & {key for key, option in SCHEMA.items() if option.part is Part.COMMAND}
    assert {"name", "pruning.target", "training.lr", "corpus.root", "decode.beam", "data_dir"} <= kept
    assert "bench" not in content
    assert "report" not in content


OLD = {
    "whole": lambda config: config,
    "before attention": lambda config: config["pruning"].pop("attention"),
    "before the window": lambda config: config.pop("window"),
    "padding": lambda config: config.update(padding=config.pop("window")["length"]),
    "other commands": lambda config: config.update(bench={"x": 1}, report=None, debug={}, threads=8),
    "other device": lambda config: config.update(device="cuda"),
}


@pytest.mark.parametrize("change", OLD.values(), ids=OLD.keys())
def test_runs_that_stored_everything_are_the_same_runs(tmp_path, change):
    cfg = base_config("conf=row05", f"exp_dir={tmp_path}")
    config = OmegaConf.to_container(cfg, resolve=True)
    change(config)
    run = Run(cfg)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    run.check()
    assert stored(understood(str(run.path))) == stored(cfg)


@pytest.mark.parametrize(
    ("override", "training", "scoring"),
    [
        ("decode.beam=1", True, True),
        ("bench=encoder", True, True),
        ("training.log_every=3", True, True),
        ("corpus.root=elsewhere", True, True),
        ("contexts.spk.source=elsewhere", True, True),  # which row05 does not see
        ("training.lr=0.1", False, True),
        ("trainer.devices=2", False, True),
        ("corpus.case=keep", False, False),
        ("pruning.threshold=0.4", False, False),
    ],
)
def test_what_may_change_between_commands(tmp_path, override, training, scoring):
    make_run(tmp_path, "conf=row05")
    run = Run(base_config("conf=row05", f"exp_dir={tmp_path}", override))
    for trained, may in ((False, training), (True, scoring)):
        if may:
            run.check(trained=trained)
        else:
            with pytest.raises(CheckpointError, match=override.partition("=")[0]):
                run.check(trained=trained)


# --- a longer training


@pytest.mark.parametrize("longer", ["training.max_steps=60", "trainer.max_steps=60", "training.max_epochs=9"])
def test_a_schedule_without_an_end_goes_on(tmp_path, longer):
    run = make_run(tmp_path, "training.scheduler=constant", "training.max_steps=40")
    other = Run(understood(str(run.path), longer, command="train"))
    other.check()
    assert other.extends
    other.start()
    assert not other.extends, "it is stored with its new length"


def test_a_schedule_that_ends_says_why_it_cannot_go_on(tmp_path):
    run = make_run(tmp_path, "training.scheduler=linear", "training.max_steps=40")
    longer = Run(understood(str(run.path), "training.max_steps=60", command="train"))
    assert not longer.extends
    with pytest.raises(CheckpointError, match=r"40 there, 60 asked for.*falls to 0.*warmup or constant can"):
        longer.check()


def test_another_change_beside_the_length_is_another_run(tmp_path):
    run = make_run(tmp_path, "training.scheduler=constant", "training.max_steps=40")
    with pytest.raises(CheckpointError, match="training.lr"):
        Run(understood(str(run.path), "training.max_steps=60", "training.lr=1", command="train")).check()


def test_a_finished_run_keeps_the_weights_that_it_had(tmp_path):
    import torch

    from localgp.training.fit import extend

    run = make_run(tmp_path, "training.scheduler=constant", "training.max_steps=40")
    finish(run)
    run.weights.write_text("weights")
    torch.save({"global_step": 40}, run.checkpoints / "last.ckpt")
    for steps in (30, 40):
        with pytest.raises(CheckpointError, match=f"trained to step 40, and {steps} were asked for"):
            extend(run, steps)
        assert run.finished
    extend(run, 60)
    assert not run.finished
    assert (run.checkpoints / "model-until-step40.safetensors").read_text() == "weights"
