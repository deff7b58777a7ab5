"""Reading, building and writing ESPnet S2T models."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
import yaml

import localgp
from localgp.backbones.owsm.build import build_espnet_model
from localgp.backbones.owsm.components import quiet_espnet
from localgp.backbones.owsm.files import EMBEDDED, espnet_arguments, read_train_config, write_espnet_directory
from localgp.backbones.owsm.model import assemble, load_backbone
from localgp.backbones.owsm.shapes import DIMENSIONS, Dimensions, train_config
from localgp.backbones.owsm.tokens import bpe_pieces, full_token_list
from localgp.errors import BackboneError

TINY = Dimensions(16, 2, 1, 1, 32, vocabulary=0, padded_seconds=8.0, dropout=0.0)


def load(path, **changes):
    return load_backbone({"name": "tiny", "path": str(path), "weights": "pretrained", **changes})


@pytest.fixture(scope="module")
def tiny():
    """A randomly initialised model of 16 dimensions with the embedded vocabulary."""
    bpe = EMBEDDED / "bpe.model"
    stats = str(EMBEDDED / "feats_stats.npz")
    config = train_config(TINY, full_token_list(bpe_pieces(bpe)), str(bpe), stats)
    torch.manual_seed(3)
    return assemble(build_espnet_model(config), config, "tiny", "a test")


@pytest.fixture
def written(tiny, tmp_path):
    write_espnet_directory(tiny.net, tiny.train_config, tmp_path / "model")
    return tmp_path / "model"


def assert_same_weights(first, second, *, atol=0.0):
    own, other = first.net.state_dict(), second.net.state_dict()
    assert own.keys() == other.keys()
    for key in own:
        torch.testing.assert_close(own[key], other[key], rtol=0, atol=atol)


def test_what_is_written_reads_the_same(tiny, written):
    again = load(written)
    assert_same_weights(tiny, again)
    assert again.tokenizer.token_list == tiny.tokenizer.token_list
    assert (again.sample_rate, again.padded_seconds, again.source) == (16000, 8.0, str(written))


def test_a_written_directory_can_be_moved(tiny, written, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.move(written, moved)
    assert str(tmp_path) not in (moved / "config.yaml").read_text()
    assert_same_weights(tiny, load(moved))


def test_half_precision_halves_the_file_and_keeps_statistics(tiny, written, tmp_path):
    write_espnet_directory(tiny.net, tiny.train_config, tmp_path / "half", half=True)
    again = load(tmp_path / "half")
    assert_same_weights(tiny, again, atol=2e-3)
    assert next(again.net.parameters()).dtype == torch.float32
    assert torch.equal(again.net.normalize.mean, tiny.net.normalize.mean)
    name = "valid.acc.ave.pth"
    assert (tmp_path / "half" / name).stat().st_size < 0.8 * (written / name).stat().st_size


def test_overwriting_leaves_other_files_and_no_debris(tiny, written):
    (written / "scores.json").write_text("{}")
    write_espnet_directory(tiny.net, tiny.train_config, written, half=True)
    assert (written / "scores.json").exists()
    assert [p.name for p in written.parent.iterdir()] == ["model"]


def test_layout_of_the_published_repositories(tiny, written, tmp_path):
    """Statistics and BPE under data/ and exp/, paths relative to the root; root or exp/<name> can be given."""
    root = tmp_path / "hub"
    model = root / "exp" / "s2t_train_raw_bpe50000"
    for folder in (model, root / "data" / "bpe_unigram", root / "exp" / "s2t_stats_raw_bpe50000" / "train"):
        folder.mkdir(parents=True)
    config = yaml.safe_load((written / "config.yaml").read_text())
    config["bpemodel"] = "data/bpe_unigram/bpe.model"
    config["normalize_conf"]["stats_file"] = "exp/s2t_stats_raw_bpe50000/train/feats_stats.npz"
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(written / "bpe.model", root / config["bpemodel"])
    shutil.copy(written / "feats_stats.npz", root / config["normalize_conf"]["stats_file"])
    shutil.copy(written / "valid.acc.ave.pth", model / "valid.total_count.ave_5best.till45epoch.pth")
    meta = {
        "espnet": "202308",
        "files": {"s2t_model_file": "exp/s2t_train_raw_bpe50000/valid.total_count.ave_5best.till45epoch.pth"},
        "yaml_files": {"s2t_train_config": "exp/s2t_train_raw_bpe50000/config.yaml"},
    }
    (root / "meta.yaml").write_text(yaml.safe_dump(meta))
    assert_same_weights(tiny, load(root))
    assert_same_weights(tiny, load(model))
    (root / "meta.yaml").unlink()
    assert_same_weights(tiny, load(root))


def test_unknown_arguments_of_a_published_config_are_ignored_and_named(tiny, written, caplog):
    config = yaml.safe_load((written / "config.yaml").read_text())
    config["encoder_conf"] |= {"use_flash_attn": True, "use_flash_attn_3": True}
    config["decoder_conf"]["qk_norm_v2"] = False
    config["model_conf"]["some_loss"] = 1
    config["batch_bins"] = 10_000_000
    (written / "config.yaml").write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.WARNING):
        assert_same_weights(tiny, load(written))
    for argument in ("use_flash_attn_3", "qk_norm_v2", "some_loss"):
        assert f"ignored {argument}" in caplog.text


def test_embedded_model_gives_espnets_encoder_output(tmp_path):
    """The package's model in ESPnet's own inference class, from another directory."""
    with quiet_espnet():
        from espnet2.bin.s2t_inference import Speech2Text

        theirs = Speech2Text(**espnet_arguments("embedded", tmp_path), beam_size=1, device="cpu")
    ours = load("embedded")
    assert ours.padded_seconds == theirs.preprocessor_conf["speech_length"] == 8.0
    speech = 0.1 * torch.randn(1, 128000, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([128000])
    with torch.no_grad():
        expected, _ = theirs.s2t_model.encode(speech, lengths)
        got, _ = ours.net.eval().encode(speech, lengths)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert theirs.converter.token2id["<deu>"] == ours.tokenizer.prompt("de", "de")[0]


def test_a_model_of_espnets_that_one_has_is_gated(tmp_path):
    with quiet_espnet():
        from espnet2.bin.s2t_inference import Speech2Text

        theirs = Speech2Text(**espnet_arguments("embedded", tmp_path), beam_size=1, device="cpu")
    noise = 0.05 * np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    options = ("decode.beam=1", "decode.maxlenratio=-4")
    gated = localgp.gate(theirs, "control_open", *options)
    assert gated.model.backbone.net is theirs.s2t_model
    text = localgp.load("embedded", device="cpu").transcribe(
        noise, src="de", beam=1, maxlenratio=-4, ctc_weight=0.0
    )
    assert gated.transcribe(noise, src="de").text == text.text
    masks = localgp.gate(theirs.s2t_model, "row05", *options, vocabulary="embedded").gates(noise)
    assert list(masks.modules) == ["ffn1", "attention", "ffn2"]
    with pytest.raises(BackboneError, match="does not know its BPE model; give the directory"):
        localgp.gate(theirs.s2t_model)


def test_embedded_model_is_small():
    backbone = load("embedded")
    parameters = sum(p.numel() for p in backbone.net.parameters())
    assert 3.2e6 < parameters < 3.8e6
    assert sum(p.stat().st_size for p in EMBEDDED.iterdir()) < 16e6


class Hostile:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused(written, tmp_path):
    victim = tmp_path / "victim"
    torch.save({"weight": Hostile(victim)}, written / "valid.acc.ave.pth")
    with pytest.raises(BackboneError, match=r"valid\.acc\.ave\.pth: refused.*would run code"):
        load(written)
    assert not victim.exists()


def test_a_truncated_checkpoint_is_named(written):
    path = written / "valid.acc.ave.pth"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BackboneError, match=r"valid\.acc\.ave\.pth: .*copy it again"):
        load(written)


def test_a_trainers_state_is_not_a_model(written):
    torch.save({"optimizer": {"a": torch.zeros(1)}, "epoch": 3}, written / "valid.acc.ave.pth")
    with pytest.raises(BackboneError, match="not a state dictionary"):
        load(written)


def test_a_checkpoint_of_another_shape_is_explained(written):
    path = written / "valid.acc.ave.pth"
    state = torch.load(path, weights_only=True)
    state["ctc.ctc_lo.bias"] = torch.zeros(7)
    state["encoder.extra"] = torch.zeros(1)
    del state["decoder.after_norm.weight"]
    torch.save(state, path)
    with pytest.raises(BackboneError) as caught:
        load(written)
    message = str(caught.value)
    assert "ctc.ctc_lo.bias: (7,) in the checkpoint, (676,) in the model" in message
    assert "encoder.extra: not in the model" in message
    assert "decoder.after_norm.weight: not in the checkpoint" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.yaml", r"missing config\.yaml"),
        ("valid.acc.ave.pth", r"missing \*\.pth"),
        ("bpe.model", r"names the BPE model 'bpe\.model' \(bpemodel\), and it is not there; copy it to"),
        ("feats_stats.npz", r"names the feature statistics .*feats_stats\.npz"),
    ],
)
def test_a_missing_file_is_named(written, missing, message):
    (written / missing).unlink()
    with pytest.raises(BackboneError, match=message):
        load(written)


def test_of_several_checkpoints_the_averaged_one_is_taken(tiny, written):
    (written / "meta.yaml").unlink()
    shutil.copy(written / "valid.acc.ave.pth", written / "3epoch.pth")
    assert_same_weights(tiny, load(written))
    (written / "valid.acc.ave.pth").rename(written / "4epoch.pth")
    with pytest.raises(BackboneError, match=r"2 checkpoints and not one averaged: 3epoch\.pth, 4epoch\.pth"):
        load(written)


def test_a_config_of_something_else_is_refused(written):
    (written / "config.yaml").write_text("name: a recipe\n")
    with pytest.raises(BackboneError, match="not the configuration of an ESPnet S2T model"):
        load(written)
    (written / "config.yaml").write_text("a: [1,\n")
    with pytest.raises(BackboneError, match="not a readable YAML file"):
        load(written)


def test_an_unknown_encoder_is_named(written):
    config = yaml.safe_load((written / "config.yaml").read_text())
    (written / "config.yaml").write_text(yaml.safe_dump({**config, "encoder": "zipformer"}))
    with pytest.raises(BackboneError, match="encoder: 'zipformer' is unknown to ESPnet"):
        load(written)


def test_a_hub_id_without_a_network_says_what_to_download():
    with pytest.raises(BackboneError) as caught:
        load("espnet/owsm_v3.1_ebf_that_is_not_cached")
    message = str(caught.value)
    assert "hf download espnet/owsm_v3.1_ebf_that_is_not_cached --local-dir models/" in message
    assert "backbone.path=models/owsm_v3.1_ebf_that_is_not_cached" in message


def test_paths_that_are_neither_directory_nor_id(tmp_path):
    with pytest.raises(BackboneError, match="no such directory, and not a Hugging Face repository id"):
        load(tmp_path / "nowhere" / "at" / "all")
    file = tmp_path / "config.yaml"
    file.write_text("")
    with pytest.raises(BackboneError, match="is a file; give the directory"):
        load(file)


def test_random_weights_have_the_shape_of_the_directory(written):
    backbone = load(written, weights="random")
    assert backbone.source == "random weights"
    assert sum(p.numel() for p in backbone.net.parameters()) == sum(
        p.numel() for p in load(written).net.parameters()
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("owsm_v3.1_base", 101e6), ("owsm_v3.1_small", 367e6), ("owsm_v3.1_medium", 1.02e9)],
)
def test_published_shapes_have_the_published_number_of_parameters(name, parameters):
    """Without download and, on the meta device, without memory."""
    config = read_train_config({"name": name, "path": f"espnet/{name}", "weights": "random"})
    assert len(config["token_list"]) == DIMENSIONS[name].vocabulary
    with torch.device("meta"):
        model = build_espnet_model(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)


@pytest.mark.slow
def test_random_base_decodes_nonsense_without_any_download():
    backbone = load_backbone(
        {"name": "owsm_v3.1_base", "path": "espnet/owsm_v3.1_ebf_base", "weights": "random"}
    )
    speech = torch.from_numpy(np.zeros((1, 480000), np.float32))
    with torch.no_grad():
        encoded, lengths = backbone.net.eval().encode(speech, torch.tensor([480000]))
    assert encoded.shape == (1, 749, 384)
    assert lengths.tolist() == [749]
