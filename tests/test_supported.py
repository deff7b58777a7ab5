"""What the forward here does not do is refused before a weight is read, or of a model that somebody else has built."""

from __future__ import annotations

import pytest
import yaml

from localgp.backbones.owsm.build import build_espnet_model
from localgp.backbones.owsm.components import quiet_espnet
from localgp.backbones.owsm.files import locate, read_config
from localgp.backbones.owsm.model import load_backbone
from localgp.backbones.owsm.supported import check_supported
from localgp.errors import BackboneError
from tests.owsm_helpers import write

RELATIVE = {"pos_enc_layer_type": "rel_pos", "attention_layer_type": "rel_selfattn"}
CONDITIONED = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
CHANGES = {  # what is changed in which model, and what is said of it: of its configuration, and of itself
    "conditioning": (
        "v3.1_base",
        {"encoder_conf": CONDITIONED},
        "interctc_use_conditioning",
        "intermediate CTC",
    ),
    "conditioning, v3": (
        "v3",
        {"encoder_conf": CONDITIONED},
        "interctc_use_conditioning",
        "intermediate CTC",
    ),
    "rel_pos": (
        "v3.1_base",
        {"encoder_conf": RELATIVE},
        "pos_enc_layer_type: rel_pos",
        "RelPositionalEncoding",
    ),
    "no FFN": ("v3.1_base", {"encoder_conf": {"use_ffn": False}}, "use_ffn: False", "layers lack FFNs"),
    "one FFN": (
        "v3.1_base",
        {"encoder_conf": {"macaron_ffn": False}},
        "macaron_ffn: False",
        "layers lack FFNs",
    ),
    "post-norm": (
        "v3",
        {"encoder_conf": {"normalize_before": False}},
        "normalize_before: False",
        "not pre-norm",
    ),
    "concat": ("v3", {"encoder_conf": {"concat_after": True}}, "concat_after: True", "concat_after"),
    "conv1d": (
        "v3",
        {"encoder_conf": {"positionwise_layer_type": "conv1d"}},
        "positionwise_layer_type: conv1d",
        "FFN is",
    ),
    "linear": (
        "v3.1_base",
        {"encoder_conf": {"input_layer": "linear"}},
        "input_layer: linear",
        "input_layer is",
    ),
    "preencoder": (
        "v3.1_base",
        {"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 80}},
        "preencoder: linear is not computed",
        "it has a preencoder",
    ),
    "postencoder": (
        "v3.1_base",
        {"postencoder": "hugging_face_transformers"},
        "postencoder: .* is not computed",
        None,
    ),
    "conformer": (
        "v3.1_base",
        {"encoder": "conformer", "encoder_conf": None},
        "encoder: conformer has layers",
        None,
    ),
    "no decoder": ("v3.1_base", {"decoder": None}, "decoder: null", None),
    "another decoder": ("v3.1_base", {"decoder": "rnn"}, r"decoder: rnn \(valid: transformer\)", None),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: write(name, tmp_path_factory.mktemp(name) / "model") for name in ("v3.1_base", "v3")}


@pytest.mark.parametrize("case", list(CHANGES))
def test_refused_with_the_reason(directories, tmp_path, case):
    name, changes, said, of_the_model = CHANGES[case]
    config = read_config(locate(str(directories[name])))
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) and config.get(key) else value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "never_read.pth").write_bytes(b"")
    with pytest.raises(BackboneError, match=f"not supported: .*{said}"):
        load_backbone({"name": "tiny", "path": str(tmp_path), "weights": "pretrained"})
    if of_the_model is not None:
        with quiet_espnet():
            net = build_espnet_model(config)
        with pytest.raises(BackboneError, match=f"not supported: .*{of_the_model}"):
            check_supported(net)
