"""Models in and out: what is packed is what was trained, ESPnet reads it, and nobody's code runs."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file

import localgp
from localgp.archive import unpacked, write_zip
from localgp.errors import BackboneError, CheckpointError, ConfigError, HubError
from localgp.hub.card import licence_of
from localgp.hub.licences import licence_identifier
from localgp.hub.pack import pack, packed_name, push
from localgp.pack import main, run_directory
from tests.scripts_as_modules import script
from tests.test_config import composed

QUICK = {"beam": 2, "ctc_weight": 0.0, "maxlenratio": 0.1}
NOISE = (np.random.default_rng(0).normal(size=40_000) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of row05 over a tiny backbone; its gates are not all open."""
    place = tmp_path_factory.mktemp("run")
    script("mutate.runs").tiny_run(place)
    path = place / "checkpoints" / "model.safetensors"
    state = load_file(path)
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.startswith("policy."):
            state[name] = torch.randn(value.shape, generator=generator)
    from localgp.weights import save_weights

    save_weights(state, path)
    return place


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory):
    place = tmp_path_factory.mktemp("packed")
    return pack(run, place, name="tiny", licence="cc-by-4.0")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALGP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("form", ["espnet", "huggingface"])
def test_packed_is_what_was_trained(run, packed, form):
    trained, loaded = (localgp.load(str(path), device="cpu") for path in (run, packed[form]))
    assert trained.windows == loaded.windows == "pauses"  # fine-tuning shows no timestamps
    theirs, ours = trained.model.state_dict(), loaded.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].equal(ours[name]) for name in theirs)
    assert any(name.startswith("policy.") for name in ours)
    assert loaded.options == trained.options
    assert loaded.metrics == trained.metrics
    one, two = (model.transcribe(NOISE, src="deu", tgt="fra", **QUICK) for model in (trained, loaded))
    assert one == two


def test_espnet_loads_the_archive_and_writes_what_open_gates_write(packed, tmp_path):
    from espnet2.bin.s2t_inference import Speech2Text
    from espnet2.main_funcs.pack_funcs import unpack

    files = unpack(packed["espnet"], tmp_path / "theirs")
    assert set(files) == {"s2t_train_config", "s2t_model_file"}
    theirs = Speech2Text(
        **files, lang_sym="<deu>", task_sym="<st_fra>", beam_size=2, ctc_weight=0.0, maxlenratio=0.1
    )
    text, *_ = theirs(NOISE)[0]
    opened = localgp.load(str(packed["espnet"]), device="cpu", gates="open")
    ours = opened.transcribe(NOISE, src="deu", tgt="fra", **QUICK)
    assert opened.model.policy is None
    assert ours.text == theirs(NOISE)[0][3].strip()
    assert text


def test_the_card_is_made_from_the_run(packed):
    card = (packed["huggingface"] / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "localgp"
    assert "python -m localgp.train" in card
    assert "conf=row05" in card
    assert "| WER / BLEU | 1.0 | 1.0 | 1.0 |" in card
    assert {p.suffix for p in packed["huggingface"].rglob("*") if p.is_file()} <= {
        ".md",
        ".json",
        ".yaml",
        ".safetensors",
        ".model",
        ".npz",
    }


def test_no_path_of_this_machine_is_packed(run, packed):
    with zipfile.ZipFile(packed["espnet"]) as zipped:
        texts = [zipped.read(n) for n in zipped.namelist() if n.endswith((".yaml", ".md", ".json"))]
    texts += [
        p.read_bytes() for p in packed["huggingface"].rglob("*") if p.suffix in (".yaml", ".md", ".json")
    ]
    assert not any(str(run.parent).encode() in text for text in texts)


def test_what_is_packed_is_what_makes_the_model_whatever_the_machine():
    from localgp.config_parts import PORTABLE, flat
    from localgp.hub.load import base_config
    from localgp.hub.pack import portable
    from localgp.settings import SCHEMA, Part

    cfg = base_config("conf=row05", "data_dir=here", "corpus.root=there", "training.logger=none")
    kept = flat(portable(OmegaConf.to_container(cfg, resolve=True)))
    assert {SCHEMA[key].part for key in kept} == set(PORTABLE) == {*Part} - {Part.FREE, Part.COMMAND}


def test_extractors_are_named_and_their_place_on_this_machine_is_not(tmp_path):
    from localgp.hub.card import model_card
    from localgp.hub.load import base_config
    from localgp.hub.pack import portable

    (tmp_path / "BEATs.pt").write_bytes(b"")
    cfg = base_config("conf=row08", f"contexts.event.source={tmp_path / 'BEATs.pt'}")
    config = portable(OmegaConf.to_container(cfg, resolve=True))
    assert config["contexts"]["event"]["source"] == "models/BEATs.pt"
    gflops = {
        "encoder": 1.5,
        "dense": 2.0,
        "context": 0.75,
        "contexts": {"spk": 0.25, "event": 0.5},
        "total": 2.25,
    }
    metrics = {"wer": {"de": 1.0}, "bleu": {}, "gflops": gflops | {"convention": "counted"}}
    card = model_card(config, metrics, licence="mit", name="m")
    assert "`spk` embedded in localgp; `event` from `models/BEATs.pt`" in card
    assert "Encoder with gates: 1.500 GFLOPs, dense 2.000" in card
    assert "contexts: spk 0.250, event 0.500; together 2.250 (counted)" in card
    assert str(tmp_path) not in card
    plain = portable(OmegaConf.to_container(base_config("conf=row05"), resolve=True))
    assert "extractors" not in model_card(plain, {}, licence="mit", name="m")


@pytest.mark.parametrize(
    ("backbone", "corpus", "licence"),
    [
        ("mini", "mini", "apache-2.0"),
        ("owsm_v3.1_small", "mini", "cc-by-4.0"),
        ("mini", "europarl_st", "cc-by-nc-4.0"),
        ("mini_big", "mini", None),
        ("owsm_v3.1_medium_mine", "mini", None),
    ],
)
def test_the_licence_is_known_for_exact_names_alone(backbone, corpus, licence):
    config = {"backbone": {"name": backbone}, "corpus": {"name": corpus}}
    if licence is None:
        with pytest.raises(ConfigError, match="--licence"):
            licence_of(config)
    else:
        assert licence_of(config) == licence


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("foo", r"'foo' is no licence identifier.*such as apache-2.0"),
        ("apache", "did you mean apache-2.0"),
        ("apache2", "did you mean apache-2.0"),
        ("GPL-3.0-or-later", "did you mean gpl-3.0"),
        ("cc-by-nc", "cc-by-nc-4.0"),
        ("", "is no licence identifier"),
    ],
)
def test_a_licence_is_one_of_the_hubs(run, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        pack(run, tmp_path, licence=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["mit", "MIT", "Apache-2.0", "cc-by-4.0", "other"])
def test_a_licence_is_written_as_the_hub_does(given):
    assert licence_identifier(given) == given.lower()


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_a_folder_of_runs_names_its_runs(tmp_path, levels):
    """exp/, exp/<corpus>/, …: what is above a run is not taken for a damaged model."""
    below = Path(*("exp", "mini", "mini", "row05")[4 - levels :])
    for seed, ended in ((1, True), (2, True), (3, False)):
        checkpoints = tmp_path / below / f"seed{seed}" / "checkpoints"
        checkpoints.mkdir(parents=True)
        if ended:
            (checkpoints / "model.safetensors").touch()
    folder = tmp_path / below.parts[0]
    with pytest.raises(CheckpointError) as raised:
        localgp.load(str(folder), device="cpu")
    assert "is a folder of runs" in str(raised.value)
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        str(tmp_path / below / f"seed{seed}") for seed in (1, 2)
    ]


def test_packing_needs_a_finished_run_scores_and_a_licence(run, tmp_path):
    with pytest.raises(CheckpointError, match="is not a run directory"):
        pack(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="--licence"):
        pack(run, tmp_path / "out")
    scores = (run / "metrics.json").read_bytes()
    (run / "metrics.json").unlink()
    try:
        with pytest.raises(CheckpointError, match=r"Evaluate it first.*--without-scores"):
            pack(run, tmp_path / "out", licence="mit")
    finally:
        (run / "metrics.json").write_bytes(scores)
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="is not a packed model; choose another place"):
        pack(run, tmp_path, name="mine", licence="mit", formats=("huggingface",))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "localgp-mini-row05-mini-seed1"),
        (["seed=2"], "localgp-mini-row05-mini-seed2"),
        (["pruning.target=0.5"], "localgp-mini-row05-target0.5-mini-seed1"),
        (["conf=row06", "pruning.attention=cosine"], "localgp-mini-row06-cosine-mini-seed1"),
        (["name=mine", "corpus.name=talks", "backbone.name=big"], "localgp-big-mine-talks-seed1"),
    ],
)
def test_every_run_has_a_name_of_its_own(overrides, name):
    config = OmegaConf.to_container(composed("conf=row05", *overrides), resolve=True)
    assert packed_name(config) == name


@pytest.mark.parametrize("form", ["espnet", "huggingface"])
def test_a_packed_model_is_replaced_only_when_asked(run, tmp_path, form):
    place = {"espnet": tmp_path / "m.zip", "huggingface": tmp_path / "m"}[form]
    given = {"name": "m", "licence": "mit", "formats": (form,)}
    pack(run, tmp_path, **given)
    before = place.stat().st_ino
    with pytest.raises(CheckpointError, match=r"m(\.zip)? exists: --overwrite replaces it, --name"):
        pack(run, tmp_path, **given)
    assert place.stat().st_ino == before
    pack(run, tmp_path, **given, overwrite=True)
    assert place.stat().st_ino != before


def test_the_command(run, tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--licence", "mit", "--format", "huggingface", "--name", "m"]
    assert main([str(run), *arguments]) == 0
    assert str(tmp_path / "m") in capsys.readouterr().out
    assert str(run_directory(["conf=row05", "seed=3"])) == "exp/mini/mini/row05/seed3"
    with pytest.raises(ConfigError, match="not exp"):
        run_directory(["conf=row05", "exp"])
    with pytest.raises(ConfigError, match="no_such"):
        run_directory(["no_such=1"])


def test_pushing_without_a_network_says_what_to_do(packed, run):
    with pytest.raises(HubError, match="hf upload me/model"):
        push(packed["huggingface"], "me/model")
    with pytest.raises(CheckpointError, match="is not a packed model"):
        push(run, "me/model")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/place", "no model at no/such/place"),
        ("owner/name", "hf download owner/name"),
        ("README.md", "is a file and not an archive"),
    ],
)
def test_nothing_there(source, message):
    with pytest.raises((BackboneError, HubError), match=message):
        localgp.load(source)


# --- untrusted models


class Hostile:
    def __reduce__(self):
        return (pytest.fail, ("the code of a model's author was run",))


@pytest.mark.parametrize("name", ["../up.txt", "/tmp/abs.txt", "a/../../up.txt", "c:\\x", "..\\up.txt"])
def test_a_member_outside_of_the_archive_is_refused(tmp_path, name):
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("meta.yaml", "{}")
        zipped.writestr(name, "x")
    with pytest.raises(BackboneError, match="refused, member"):
        unpacked(path)
    assert not (tmp_path / "up.txt").exists()
    assert [path.name for path in (tmp_path / "cache").glob("*")] == [".lock"]


def test_links_and_bombs_are_refused(tmp_path, monkeypatch):
    import tarfile

    path = tmp_path / "m.tar.gz"
    with tarfile.open(path, "w:gz") as tarred:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(link)
    with pytest.raises(BackboneError, match="is a link or a device"):
        unpacked(path)
    monkeypatch.setattr("localgp.archive._LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", bytes(10_000))
    with pytest.raises(BackboneError, match="unpacks to over"):
        unpacked(tmp_path / "bomb.zip")


def test_zips_are_the_same_every_time(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.txt").write_text("b")
    (tmp_path / "d" / "meta.yaml").write_text("a")
    for name in ("one.zip", "two.zip"):
        write_zip(tmp_path / name, tmp_path / "d", first="meta.yaml")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["meta.yaml", "b.txt"]


@pytest.mark.parametrize("where", ["archive", "run", "folder"])
def test_a_hostile_pickle_is_refused(run, packed, tmp_path, where):
    import shutil

    if where == "archive":
        path = tmp_path / "m.zip"
        with zipfile.ZipFile(packed["espnet"]) as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bad.writestr(name, pickle.dumps(Hostile()) if name.endswith(".pth") else good.read(name))
    else:
        path = tmp_path / "copy"
        shutil.copytree(run if where == "run" else packed["huggingface"], path)
        weights = path / "checkpoints" / "model.safetensors" if where == "run" else path / "model.safetensors"
        weights.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises((BackboneError, CheckpointError), match=r"refused|damaged"):
        localgp.load(str(path), device="cpu")


def test_a_hostile_checkpoint_is_kept_aside(tmp_path, capsys):
    from localgp.training.fit import newest_checkpoint

    (tmp_path / "last.ckpt").write_bytes(pickle.dumps(Hostile()))
    torch.save({"global_step": 7}, tmp_path / "previous.ckpt")
    found = newest_checkpoint(tmp_path)
    assert found == (tmp_path / "previous.ckpt", 7)
    assert "cannot be read" in capsys.readouterr().out


def test_metrics_are_read_as_json(run, packed):
    assert json.loads((packed["huggingface"] / "metrics.json").read_text())["wer"]["de"] == 1.0
