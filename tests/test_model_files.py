"""Where a model's files are looked for, under which names, and what is said of those that cannot be read."""

from __future__ import annotations

import errno
import getpass
import logging
import os
import pwd
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import localgp
from localgp.archive import unpacked, write_zip
from localgp.backbones.owsm.build import build_espnet_model
from localgp.backbones.owsm.files import EMBEDDED, espnet_arguments, locate, write_espnet_directory
from localgp.backbones.owsm.model import load_backbone
from localgp.backbones.owsm.shapes import Dimensions, train_config
from localgp.backbones.owsm.tokens import bpe_pieces, full_token_list
from localgp.caches import give_numba_a_cache, give_user_a_name
from localgp.contexts.source import local_directory
from localgp.errors import BackboneError, ConfigError
from localgp.hub.load import describe
from localgp.paths import literal
from localgp.run import Run, write_atomically
from localgp.weights import load_state, save_weights

TINY = Dimensions(16, 2, 1, 1, 32, vocabulary=0, padded_seconds=8.0, dropout=0.0)
ODD_NAMES = ["modèle", "模型", r"a\b", "a$b", "a${b}", r"a\${b}", "~x", "it's", "a b, [c]={d}", 'a"b#c']


@pytest.fixture(scope="module")
def espnet(tmp_path_factory):
    """The directory of a model of 16 dimensions."""
    bpe = EMBEDDED / "bpe.model"
    config = train_config(TINY, full_token_list(bpe_pieces(bpe)), str(bpe), str(EMBEDDED / "feats_stats.npz"))
    directory = tmp_path_factory.mktemp("espnet") / "model"
    write_espnet_directory(build_espnet_model(config), config, directory)
    return directory


@pytest.fixture
def model(espnet, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(espnet, tmp_path / "model"))


def load(path, **options):
    return load_backbone({"name": "tiny", "path": str(path), "weights": "pretrained"} | options)


def edit(model, **changes):
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8")) | changes
    (model / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


# --- checkpoints of a training directory


def make_checkpoints(model, *names):
    """Files by name, or links as ``link>target``, in place of the one checkpoint."""
    (model / "valid.acc.ave.pth").unlink()
    (model / "meta.yaml").unlink(missing_ok=True)  # only what is packed has one
    for name in names:
        link, _, target = name.partition(">")
        if target:
            (model / link).symlink_to(target)
        else:
            (model / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["valid.acc.ave_5best.pth", "valid.acc.ave.pth>valid.acc.ave_5best.pth"], "valid.acc.ave_5best.pth"),
        (
            [
                "valid.acc.ave_5best.pth",
                "valid.acc.ave_10best.pth",
                "valid.acc.ave.pth>valid.acc.ave_10best.pth",
            ],
            "valid.acc.ave_10best.pth",
        ),
        (["valid.total_count.ave_5best.till45epoch.pth"], "valid.total_count.ave_5best.till45epoch.pth"),
        (
            ["valid.acc.ave.pth", "valid.acc.ave_5best.pth"],
            "valid.acc.ave.pth",
        ),  # copied, the link became a file
        (["valid.loss.ave.pth", "valid.acc.ave.pth"], "valid.acc.ave.pth"),
        (["valid.loss.ave.pth", "valid.loss.ave_3best.pth"], "valid.loss.ave.pth"),
        (["valid.acc.ave_3best.pth", "valid.acc.ave.pth>valid.acc.ave_9best.pth"], "valid.acc.ave_3best.pth"),
    ],
)
def test_the_averaged_checkpoint_of_a_training_directory(model, caplog, names, chosen):
    training = [
        "checkpoint.pth",
        "1epoch.pth",
        "2epoch.pth",
        "latest.pth>2epoch.pth",
        "valid.acc.best.pth>1epoch.pth",
    ]
    make_checkpoints(model, *training, *names)
    with caplog.at_level(logging.WARNING):
        assert locate(str(model)).weights == (model / chosen).resolve()
    assert f"took {chosen}, left " in caplog.text
    assert all(name.partition(">")[0] in caplog.text for name in training)


def test_a_training_directory_loads(espnet, model):
    os.replace(model / "valid.acc.ave.pth", model / "kept")
    (model / "valid.acc.ave.pth").write_bytes(b"")
    make_checkpoints(model, "checkpoint.pth", "1epoch.pth", "valid.acc.ave.pth>valid.acc.ave_5best.pth")
    os.replace(model / "kept", model / "valid.acc.ave_5best.pth")
    ours, theirs = load(model).net.state_dict(), load(espnet).net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_is_chosen_by_name(espnet, model):
    make_checkpoints(model, "1epoch.pth", "latest.pth>1epoch.pth", "2epoch.pth")
    shutil.copy(espnet / "valid.acc.ave.pth", model / "2epoch.pth")
    with pytest.raises(BackboneError, match=r"choose one of them: backbone\.checkpoint=latest\.pth"):
        load(model)
    load(model, checkpoint="2epoch.pth")
    with pytest.raises(
        BackboneError, match=r"checkpoint=3epoch\.pth: .* 1epoch\.pth, 2epoch\.pth, latest\.pth"
    ):
        load(model, checkpoint="3epoch.pth")
    with pytest.raises(ConfigError, match=r"checkpoint=2epoch\.pth and backbone\.weights=random exclude"):
        load(model, checkpoint="2epoch.pth", weights="random")


def test_runs_are_read_that_were_stored_before_a_checkpoint_could_be_chosen(tmp_path):
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config, stored_config

    for override in ("", "++backbone.checkpoint=2epoch.pth"):
        cfg = base_config("conf=row05", *([override] if override else []))
        if not override:
            del cfg.backbone.checkpoint
        run = Run(base_config("conf=row05", f"exp_dir={tmp_path}", *([override] if override else [])))
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        run.check(trained=True)
        found = stored_config(run.path / "config.yaml").backbone.checkpoint
        assert found == (override.partition("=")[2] or None)


# --- other forms of a model


@pytest.mark.parametrize("place", ["exp/s2t", "exp_owsm/s2t_train"])
def test_a_recipes_folder_of_experiments(espnet, tmp_path, place):
    (tmp_path / place).mkdir(parents=True)
    for file in ("config.yaml", "valid.acc.ave.pth"):
        shutil.copy(espnet / file, tmp_path / place)
    (tmp_path / "data").mkdir()
    for file in ("bpe.model", "feats_stats.npz"):
        shutil.copy(espnet / file, tmp_path / "data")
    stats = {"stats_file": "data/feats_stats.npz"}
    edit(tmp_path / place, bpemodel="data/bpe.model", normalize_conf=stats)
    assert load(tmp_path).source == str(tmp_path)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_an_archive_is_given_as_the_path(espnet, tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("LOCALGP_CACHE", str(tmp_path / "cache"))
    kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar"}[suffix]
    archive = shutil.make_archive(str(tmp_path / "model"), kind, espnet)
    loaded = load(archive)
    assert loaded.source == archive
    assert loaded.tokenizer.bpe_model.is_relative_to(tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("[0-9a-f]*"))) == 1  # a digest
    evil = tmp_path / f"evil{suffix}"
    if kind == "zip":
        with zipfile.ZipFile(evil, "w") as zipped:
            zipped.writestr("../config.yaml", "x")
    else:
        with tarfile.open(evil, "w:gz" if kind == "gztar" else "w") as tarred:
            tarred.add(espnet / "config.yaml", "../config.yaml")
    with pytest.raises(BackboneError, match=r"refused, member '\.\./config\.yaml'"):
        load(evil)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"is a file; give the directory .*, or a zip or tar of it"):
        load(tmp_path / "model.pth")


@pytest.mark.parametrize("form", ["model", "module", "extra"])
def test_what_a_checkpoint_holds_besides_is_no_obstacle(espnet, model, caplog, form):
    state = torch.load(espnet / "valid.acc.ave.pth", weights_only=True)
    given = state | {"encoder.old": torch.zeros(2)} if form == "extra" else {form: state, "scaler": {}}
    torch.save(given, model / "valid.acc.ave.pth")
    with caplog.at_level(logging.WARNING):
        ours = load(model).net.state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in state)
    assert ("left out encoder.old, which the model does not have" in caplog.text) == (form == "extra")


@pytest.mark.parametrize("normed", [False, True])
def test_attention_qk_norm_is_espnets_qk_norm(model, tmp_path, caplog, normed):
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    for part in ("encoder_conf", "decoder_conf"):
        config[part] |= {"attention_qk_norm": normed}
    (model / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    net = load(model, weights="random").net
    torch.save(net.state_dict(), model / "valid.acc.ave.pth")
    assert load(model).branches("encoder", 0)["attention"].head_norms is None or normed
    assert "ignored" not in caplog.text
    from espnet2.tasks.s2t import S2TTask

    arguments = espnet_arguments(model, tmp_path / "work")
    theirs, _ = S2TTask.build_model_from_file(arguments["s2t_train_config"], arguments["s2t_model_file"])
    assert ("encoder.encoders.0.attn.q_norm.weight" in theirs.state_dict()) == normed


def test_a_preprocessor_may_name_the_symbols(model):
    symbols = {"<na>": "<none>", "<notimestamps>": "<notime>"}
    config = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))
    tokens = [symbols.get(token, token) for token in config["token_list"]]
    given = {"na_symbol": "<none>", "notime_symbol": "<notime>", "last_time_symbol": "<4.00>"}
    edit(
        model,
        token_list=tokens,
        preprocessor_conf=config["preprocessor_conf"] | given,
        model_conf=config["model_conf"] | {"sym_na": "<none>"},
    )
    found = load(model).tokenizer
    assert [tokens[i] for i in (found.na, found.notimestamps, found.last_time)] == list(given.values())
    assert tokens[found.first_time] == "<0.00>"
    assert found.prompt("de", "de")[-1] == found.notimestamps
    edit(model, preprocessor_conf=config["preprocessor_conf"] | {"first_time_symbol": "<0>"})
    with pytest.raises(BackboneError, match=r"lacks .*<0>"):
        load(model)


def test_no_averaged_checkpoint_or_only_broken_links(model):
    make_checkpoints(model, "checkpoint.pth", "1epoch.pth")
    with pytest.raises(BackboneError, match=r"not one averaged: 1epoch\.pth, checkpoint\.pth"):
        locate(str(model))
    (model / "checkpoint.pth").unlink()
    (model / "1epoch.pth").unlink()
    (model / "valid.acc.ave.pth").symlink_to("gone.pth")
    with pytest.raises(BackboneError, match=r"link to gone\.pth, which is not there"):
        locate(str(model))


# --- the model's own folder


@pytest.mark.parametrize("named", ["bpe.model", "data/bpe/bpe.model", "./bpe.model"])
def test_files_of_the_current_directory_are_not_the_models(model, tmp_path, monkeypatch, named):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data" / "bpe").mkdir(parents=True)
    for file in ("bpe.model", "data/bpe/bpe.model", "feats_stats.npz", "tokens.txt"):
        (elsewhere / file).write_bytes(b"another model's")
    tokens = yaml.safe_load((model / "config.yaml").read_text(encoding="utf-8"))["token_list"]
    (model / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    edit(model, bpemodel=named, token_list="tokens.txt")
    if "data" in named:
        (model / "data" / "bpe").mkdir(parents=True)
        os.replace(model / "bpe.model", model / named)
    monkeypatch.chdir(elsewhere)
    assert load(model).tokenizer.bpe_model == (model / named).resolve()
    assert load(os.path.relpath(model)).tokenizer.token_list == tokens
    for file in (named, "tokens.txt", "feats_stats.npz"):  # better none than another's
        (model / file).rename(model / "aside")
        with pytest.raises(BackboneError, match="it is not there; copy it to"):
            load(model)
        (model / "aside").rename(model / file)


def test_an_absolute_path_of_another_machine_gives_way_to_the_models_own_file(model, tmp_path):
    (tmp_path / "bpe.model").write_bytes(b"another model's")
    edit(model, bpemodel=str(tmp_path / "bpe.model"))
    assert load(model).tokenizer.bpe_model == (model / "bpe.model").resolve()


def test_paths_of_a_linked_training_directory_start_above_the_link(model, tmp_path):
    recipe = tmp_path / "recipe"
    (recipe / "data").mkdir(parents=True)
    (recipe / "exp").mkdir()
    os.replace(model / "bpe.model", recipe / "data" / "bpe.model")
    edit(model, bpemodel="data/bpe.model")
    (recipe / "exp" / "s2t").symlink_to(model)
    assert load(recipe / "exp" / "s2t").tokenizer.bpe_model == (recipe / "data" / "bpe.model").resolve()


# --- names of folders


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_folder_name_can_hold_a_model(espnet, tmp_path, monkeypatch, name):
    """An ESPnet directory, an archive of it and the cache that it is unpacked to."""
    place = tmp_path / name
    shutil.copytree(espnet, place / "model")
    archive = place / "model.zip"
    write_zip(archive, espnet, first="meta.yaml")
    monkeypatch.setenv("LOCALGP_CACHE", str(place / "cache"))
    for source in (place / "model", archive):
        loaded = localgp.load(str(source), device="cpu")
        assert loaded.backbone.tokenizer.bpe_model.is_relative_to(place)
    assert espnet_arguments(place / "model", tmp_path / "work")["s2t_model_file"].startswith(str(place))


@pytest.mark.parametrize("name", [name for name in ODD_NAMES if "$" in name])
def test_a_path_in_a_configuration_stays_what_it_is(tmp_path, name):
    """Given literally, stored with a run, and read back."""
    from omegaconf import OmegaConf

    from localgp.hub.load import base_config, stored_config

    cfg = base_config("conf=row01", "backbone=mini")
    cfg.backbone.path, cfg.exp_dir = literal(name), str(tmp_path)
    assert cfg.backbone.path == name
    write_atomically(tmp_path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    assert stored_config(tmp_path / "config.yaml").backbone.path == name
    assert Run(cfg).path.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "read",
    [localgp.load, describe, load, lambda path: local_directory(path)],
    ids=["load", "describe", "backbone", "context"],
)
def test_an_unknown_users_home_is_an_error(read):
    with pytest.raises(
        ConfigError, match=r"~nobody-here/x: ~nobody-here stands for .*; give .* \./~nobody-here/x"
    ):
        read("~nobody-here/x")


# --- files that may not be read


@pytest.fixture
def forbid(monkeypatch):
    """Makes a file one of mode 0600 of somebody else; before root no file is."""
    forbidden: set[Path] = set()
    opened = Path.open

    def guarded(self, *args, **kwargs):
        if self in forbidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    return forbidden.add


@pytest.mark.parametrize("file", ["valid.acc.ave.pth", "bpe.model", "config.yaml"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(model, forbid, file):
    forbid((model / file).resolve())
    with pytest.raises(PermissionError, match=file):
        localgp.load(str(model), device="cpu")


def test_weights_that_may_not_be_read_are_not_called_missing(tmp_path, forbid):
    module, path = torch.nn.Linear(2, 2), tmp_path / "model.safetensors"
    save_weights(module.state_dict(), path)
    forbid(path)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        load_state(module, path)


# --- caches


@pytest.fixture
def archive(espnet, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALGP_CACHE", str(tmp_path / "cache"))
    write_zip(tmp_path / "m.zip", espnet, first="meta.yaml")
    return tmp_path / "m.zip"


@pytest.mark.parametrize("harm", ["delete", "cut", "sizes", "all", "older"])
def test_an_unpacked_archive_that_was_damaged_is_unpacked_again(archive, harm):
    place = unpacked(archive)
    whole = {path.name: path.read_bytes() for path in place.iterdir()}
    if harm == "delete":
        (place / "bpe.model").unlink()
    elif harm == "cut":
        (place / "bpe.model").write_bytes(whole["bpe.model"][:100])
    elif harm == "sizes":
        (place.parent / "files.json").write_text("[")
    elif harm == "all":
        shutil.rmtree(place)
    else:  # as versions before kept it
        shutil.rmtree(place.parent)
        place.parent.mkdir()
        (place.parent / "config.yaml").write_text("token_list: []")
    assert unpacked(archive) == place
    assert {path.name: path.read_bytes() for path in place.iterdir()} == whole
    assert not [path for path in place.parent.parent.iterdir() if path.name.startswith(".unpacking")]


def test_an_unpacked_archive_is_used_as_it_is(archive):
    before = (unpacked(archive) / "bpe.model").stat().st_ino
    assert (unpacked(archive) / "bpe.model").stat().st_ino == before


def no_user(*_):
    raise KeyError("no such user")


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home directory and without a line in passwd, who can write nowhere but to $TMPDIR."""
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALGP_CACHE", "NUMBA_CACHE_DIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_user)
    monkeypatch.setattr(pwd, "getpwnam", no_user)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    give_numba_a_cache.cache_clear()
    yield
    give_numba_a_cache.cache_clear()


def test_numba_gets_a_cache_where_a_user_has_none(homeless, monkeypatch):
    directory = give_numba_a_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == directory.name
    assert Path(directory.name).is_dir()
    assert localgp.load("embedded", device="cpu").languages
    monkeypatch.delenv("NUMBA_CACHE_DIR")


def test_a_user_id_without_a_name_gets_one(homeless, monkeypatch):
    with pytest.raises(KeyError):
        getpass.getuser()
    monkeypatch.setenv("LOGNAME", "")  # restored afterwards
    give_user_a_name()
    assert getpass.getuser() == f"uid{os.getuid()}"
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert f"uid{os.getuid()}" in default_cache_dir()


def test_numba_keeps_the_cache_that_it_has(monkeypatch, tmp_path):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    give_numba_a_cache.cache_clear()
    assert give_numba_a_cache() is None
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    give_numba_a_cache.cache_clear()
    assert give_numba_a_cache() is None


def test_an_archive_without_a_home_to_unpack_it_to_names_the_remedy(archive, homeless):
    with pytest.raises(BackboneError, match=r"nowhere to unpack it .*LOCALGP_CACHE=DIR"):
        unpacked(archive)


@pytest.mark.parametrize("cache", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_names_the_remedy(archive, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCALGP_CACHE", str(tmp_path / cache))
    with pytest.raises(BackboneError, match=r"nowhere to unpack it .*LOCALGP_CACHE=DIR"):
        unpacked(archive)
