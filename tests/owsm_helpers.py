"""Small random OWSMs of every kind, written by ESPnet's own S2T task."""

from __future__ import annotations

import numpy as np
import torch
import yaml

from localgp.backbones.owsm.components import quiet_espnet
from localgp.backbones.owsm.files import EMBEDDED
from localgp.backbones.owsm.shapes import Dimensions, train_config
from localgp.backbones.owsm.tokens import bpe_pieces, full_token_list, is_special, special_symbols

TRANSFORMER = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 32,
    "num_blocks": 2,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "input_layer": "conv2d",
    "normalize_before": True,
}
CTC = {"interctc_layer_idx": [1, 2], "use_cross_attention": [0, 1, 0]}
V4 = {"mels": 128, "input_layer": "conv2d8"}
# Model: fields of the shape, letters of a language's code, the encoder's options, seconds of the window, further tasks
PUBLISHED = {
    "v1": ({}, 2, TRANSFORMER, 30.0, ()),
    "v2": ({}, 2, TRANSFORMER | {"layer_drop_rate": 0.1}, 30.0, ()),
    "v2_ebranchformer": ({}, 2, None, 30.0, ()),
    "v3": ({}, 3, TRANSFORMER | {"layer_drop_rate": 0.1}, 30.0, ()),
    "v3.1_base": ({}, 3, None, 30.0, ()),
    "v3.2": ({}, 3, None, 30.0, ()),
    "v4_base": (V4, 3, {"gradient_checkpoint_layers": [0, 1]}, 30.0, ()),
    "powsm": ({}, 3, None, 20.0, ("pr", "g2p", "p2g")),
    "ctc_v3.1": ({"input_layer": "conv2d8"}, 3, CTC, 30.0, ()),
    "ctc_v4": (V4, 3, CTC, 30.0, ()),
    "conv2d1": ({"input_layer": "conv2d1"}, 3, None, 5.0, ()),
    "conv2d2": ({"input_layer": "conv2d2"}, 3, None, 30.0, ()),
    "conv2d6": ({"input_layer": "conv2d6"}, 3, None, 30.0, ()),
}


def configuration(name, folder):
    """ESPnet's config.yaml of a small model with a published one's fields."""
    shape, letters, encoder, seconds, tasks = PUBLISHED[name]
    ctc = encoder is not None and "interctc_layer_idx" in encoder
    layers = len(encoder["use_cross_attention"]) if ctc else 2
    dimensions = Dimensions(16, 2, layers, 0 if ctc else 2, 32, vocabulary=0, padded_seconds=seconds, **shape)
    languages = {2: ["de", "en", "fr", "it"], 3: ["deu", "eng", "fra", "ita"]}[letters]
    symbols = special_symbols(languages, None if ctc else seconds)
    place = symbols.index("<asr>") + 1
    symbols[place:place] = [f"<{task}>" for task in tasks]
    bpe = EMBEDDED / "bpe.model"
    text = [piece for piece in bpe_pieces(bpe) if not is_special(piece)]
    stats = folder / "feats_stats.npz"
    mels = shape.get("mels", 80)
    np.savez(stats, count=100, sum=np.full(mels, -800.0), sum_square=np.full(mels, 8000.0))
    config = train_config(dimensions, full_token_list([*symbols, *text]), str(bpe), str(stats))
    if encoder is TRANSFORMER or (encoder is not None and "normalize_before" in encoder):
        return config | {"encoder": "transformer", "encoder_conf": encoder}
    if ctc:
        config["model_conf"] |= {"ctc_asr_only": [True, False, False]}
    return config | {"encoder_conf": config["encoder_conf"] | (encoder or {})}


def describe(name, folder, **encoder):
    """Its directory without weights: what ``backbone.weights=random`` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(name, folder)
    config["encoder_conf"] = config["encoder_conf"] | encoder
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return config


def write(name, folder):
    """Its directory, as ESPnet's training leaves one."""
    config = describe(name, folder)
    with quiet_espnet():
        from espnet2.tasks import s2t, s2t_ctc

        task = (s2t_ctc if config["model"] == "espnet_ctc" else s2t).S2TTask
        torch.manual_seed(5)
        model, _ = task.build_model_from_file(folder / "config.yaml", None, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():  # weights that norms and biases have a part in
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if hasattr(model, "decoder"):
            model.decoder.output_layer.weight.mul_(3.0)
        model.ctc.ctc_lo.weight.mul_(3.0)
    torch.save(model.state_dict(), folder / "valid.acc.ave.pth")
    return folder
