"""A command line is understood, or refused with everything that is wrong with it, before anything is done."""

from __future__ import annotations

import itertools
import runpy
import shlex
import sys

import pytest
from omegaconf import OmegaConf

from localgp.__main__ import COMMANDS
from localgp.__main__ import main as dispatch
from localgp.command_line import as_override, check_line, composing, parsed
from localgp.conf_files import CONF_DIR, choices, comment_of, comments
from localgp.errors import ConfigError
from localgp.help_text import help_text
from localgp.hub.load import base_config
from localgp.settings import SCHEMA, SPEECHPRUNE, keys_of


def checked(*argv: str, config_name: str = "config") -> list[str]:
    arguments, _ = parsed(argv)
    arguments.config_name = config_name
    return check_line(arguments.overrides, arguments)


# --- one schema


def test_the_schema_is_of_the_options_that_there_are():
    different = itertools.zip_longest(choices()["bench"], choices()["corpus"], fillvalue="mini")
    keys = {
        key
        for bench, corpus in different
        for key in keys_of(base_config(f"bench={bench}", f"corpus={corpus}"))
    }
    assert keys == {key for key in SCHEMA if "@" not in key}
    arguments, _ = parsed(())
    arguments.config_name = "speechprune"
    with composing(arguments) as composed:
        assert set(keys_of(composed([]))) == set(SPEECHPRUNE)


def test_a_rule_of_one_bench_is_of_a_bench_that_there_is():
    special = [key.split("@") for key in SCHEMA if "@" in key]
    assert special
    for key, bench in special:
        assert key in SCHEMA
        assert bench in choices()["bench"]


def test_documentation_is_what_stands_beside_an_option():
    assert comments("config")["pruning.target"].startswith("sparsity: share of frames skipped")
    assert comments("config")["trainer"].startswith("processes:")
    assert comments("corpus/mini")["corpus.root"] == "where the generated corpus lies"
    assert comments("backbone/mini")["backbone.path"].startswith("embedded | a directory")
    # What has no words in the chosen file has them in another one of its group.
    assert (
        comment_of("training.val_every", {"training": "mini"})
        == comments("training/paper")["training.val_every"]
    )


# --- names that there are not


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["prunning.target=0.5"], "no option prunning.target; did you mean pruning.target"),
        (["+prunning.target=0.5"], "no option prunning.target; did you mean pruning.target"),
        (["++prunning.target=0.5"], "did you mean pruning.target"),
        (["pruning.tarrget=0.5"], "did you mean pruning.target"),
        (["++pruning={tarrget: 0.5}"], "no option pruning.tarrget"),
        (["target=0.5"], "did you mean pruning.target"),
        (["max_steps=5"], "did you mean training.max_steps or trainer.max_steps"),
        (["corpus.generate.sed=5"], "did you mean corpus.generate.seed"),
        (["contexts.spk.sorce=x"], "did you mean contexts.spk.source"),
        (["contexts.spkr.source=x"], "contexts.spkr is seen by no gates; did you mean spk"),
        (["confs=row05"], "did you mean conf or bench.confs"),
        (["conf=row5"], "no such conf; did you mean row05; valid: control_open"),
        (["corpus.manifest=x"], "no option corpus.manifest here; it belongs to corpus=manifest"),
        (["+corpus.manifest=x"], "it belongs to corpus=manifest"),
        (["-m", "seed=1,2", "decode.bean=1,2"], "no option decode.bean; did you mean decode.beam"),
        (["-m", "bench=encoder,decoder", "bench.steps=3"], "bench.steps here; it belongs to bench=decoder"),
        (["~pruning.target"], "cannot be taken away"),
        (["pruning=5"], "pruning is 5, and a section"),
    ],
)
def test_an_option_that_there_is_not_is_refused(argv, said):
    with pytest.raises(ConfigError) as error:
        checked(*argv)
    assert said in str(error.value)
    assert "+prunning" not in str(error.value), "it is no advice to add a typo"


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        checked("conf=row5", "prunning.target=1", "++decode.bean=2")
    assert str(error.value).count("\n") == 2
    with pytest.raises(ConfigError) as error:
        checked("-m", "seed=1,2", "training.gate_lr=0,1", "decode.beam=0", "decode.bean=2")
    assert sorted(line.split(";")[0].strip() for line in str(error.value).splitlines()) == [
        "decode.beam is 0",
        "there is no option decode.bean",
        "training.gate_lr is 0",
    ]


def test_the_other_configuration_is_checked_too():
    with pytest.raises(ConfigError, match=r"(?s)no option rte; did you mean rate.*limit is 0"):
        checked("rte=0.2", "limit=0", config_name="speechprune")
    assert checked("rate=[0.2,0.4]", "method=both", config_name="speechprune")


@pytest.mark.parametrize(
    "argv",
    [
        ["conf=row05", "pruning.target=0.5"],
        ["pruning={target: 0.5}"],
        ["++pruning.target=0.5"],
        ["hydra.job.name=x", "hydra.verbose=true"],
        ["-m", "conf=row01,row05", "seed=range(1,3)"],
        ["bench=runs", "bench.utterances=3"],
        ["bench=decoder", "bench.utterances=[3]"],
        ["corpus=manifest", "corpus.manifest=x.jsonl"],
    ],
)
def test_what_can_be_is_left_as_it_is(argv):
    arguments, flags = parsed(argv)
    assert checked(*argv) == arguments.overrides
    assert flags == [item for item in argv if item.startswith("-")]


def test_ones_own_configurations_are_checked_as_well(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "mine.yaml").write_text("# @package _global_\nname: mine\npruning: {tarrget: 0.5}\n")
    with pytest.raises(ConfigError, match="no option pruning.tarrget; did you mean pruning.target"):
        checked("--config-dir", str(tmp_path), "conf=mine")
    (tmp_path / "conf" / "mine.yaml").write_text("# @package _global_\nname: mine\npruning: {target: 0.5}\n")
    assert checked("--config-dir", str(tmp_path), "conf=mine") == ["conf=mine"]


# --- from a value to the command line and back


@pytest.mark.parametrize(
    "value",
    [
        "it's",
        "a\\'b",
        "a\\",
        "",
        "C:\\x y",
        "a,b",
        "[x]",
        "$x",
        "${x}",
        "a\\${x}",
        "null",
        "3",
        "é:=",
        None,
        1e-5,
        3,
        True,
        ["a", ["b"], None],
        [],
    ],
)
def test_every_value_can_be_written_as_an_override(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, "key", OverridesParser.create().parse_override(f"key={as_override(value)}").value())
    found = OmegaConf.to_container(cfg, resolve=True)["key"]
    assert found == value
    assert type(found) is type(value)


# --- help, and the commands


@pytest.mark.parametrize(
    ("command", "own"),
    [("train", ("training", "seed")), ("evaluate", ("evaluate", "decode")), ("bench", ("bench",))],
)
def test_help_is_a_text_with_the_commands_own_options_first(command, own):
    arguments, _ = parsed(["--help"])
    arguments.config_name = "config"
    text = help_text(command, "What it does.", own, ["conf=row05"], arguments)
    assert text.startswith("What it does.")
    places = [text.index(f"  {section}") for section in own]
    assert max(places) < text.index("Groups") < text.index("Other sections") < text.index("--cfg job")
    for section in own:
        for key in keys_of(base_config("conf=row05")):
            if key.startswith(f"{section}."):
                line = next(line for line in text.splitlines() if line.startswith(f"  {key}="))
                comment = comment_of(key, {})
                assert not comment or comment.split()[0] in line or len(line) > 70
    for names in choices().values():
        assert all(name in text for name in names)
    assert len(text.splitlines()) < 90


def test_a_command_is_run_by_its_name(monkeypatch):
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda module, **options: ran.append((module, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["localgp"])
    for command in COMMANDS:
        assert dispatch([command, "conf=row05"]) == 0
    assert ran == [(f"localgp.{command}", ["conf=row05"]) for command in COMMANDS]


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        ([], 0, "prepare"),
        (["--help"], 0, "prepare"),
        (["--version"], 0, "localgp 0."),
        (["trian"], 2, "no command trian; did you mean train"),
        (["conf=row05"], 2, "no command conf=row05"),
    ],
)
def test_what_is_no_command_is_answered(arguments, status, printed, capsys):
    assert dispatch(arguments) == status
    captured = capsys.readouterr()
    assert printed in (captured.err if status else captured.out)


def test_no_configuration_leaves_log_files():
    """Hydra writes ``<program>.log`` where it is not told otherwise."""
    for file in CONF_DIR.glob("*.yaml"):
        assert "override hydra/job_logging: stdout" in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize("path", ["modèle", "~x", "it's", "a=b", 'a"b', "a{b}", "x;y", "a(b", "日本/ü#1"])
def test_a_value_that_needs_quotes_is_shown_with_them(path):
    """And what is shown is understood, by the shell and by Hydra."""
    with pytest.raises(ConfigError) as caught:
        checked("backbone=path", f"backbone.path={path}")
    _, _, shown = str(caught.value).partition("Hydra's: ")
    (override,) = shlex.split(shown)
    checked("backbone=path", override)
    assert base_config("backbone=path", override).backbone.path == path


@pytest.mark.parametrize("value", ["[a", "'a", "{a"])
def test_a_value_that_quotes_do_not_mend_keeps_hydras_message(value):
    with pytest.raises(ConfigError) as caught:
        checked(f"corpus.languages={value}")
    assert "need quotes" not in str(caught.value)
