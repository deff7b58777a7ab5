"""Small extractors in the published file formats, and rows to extract from."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch

HYPERPARAMS = """\
pretrained_path: somewhere/else
n_mels: 80
out_n_neurons: 3
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 48]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    res2net_scale: 4
    se_channels: 8
    lin_neurons: 12
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
"""

# As the published BEATs has them, but small: DeepNorm and gated relative positions included.
CFG = {
    "encoder_layers": 4,
    "embed_dim": 16,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 4,
    "deep_norm": True,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 80,
    "gru_rel_pos": True,
    "layer_wise_gradient_decay_ratio": 0.6,
}


def write_speaker(directory: Path, seed: int = 0) -> Path:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    torch.manual_seed(seed)
    network = ECAPA_TDNN(
        80,
        channels=[16, 16, 16, 16, 48],
        attention_channels=8,
        res2net_scale=4,
        se_channels=8,
        lin_neurons=12,
    )
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), directory / "embedding_model.ckpt")
    (directory / "hyperparams.yaml").write_text(HYPERPARAMS, encoding="utf-8")
    return directory


def write_event(path: Path, seed: int = 0) -> Path:
    from localgp.contexts.event import build

    torch.manual_seed(seed)
    beats = build(CFG)
    with torch.no_grad():  # ESPnet leaves some of them at zero
        for parameter in beats.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({"cfg": CFG, "model": beats.state_dict()}, path)
    return path


def signal(samples: int = 16000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(samples)).astype(np.float32)


def make_rows(
    count: int = 5, speakers: tuple[str | None, ...] = ("de-a", "de-b", "fr-c")
) -> datasets.Dataset:
    """Rows as a prepared split has them; each sounds different."""
    return datasets.Dataset.from_list(
        [
            {
                "utt_id": f"u{i}",
                "audio_sha1": f"{i:016x}",
                "speaker": speakers[i % len(speakers)],
                "language": (speakers[i % len(speakers)] or "de-x")[:2],
                "asr": True,
                "transcript": "ab",
                "targets": ["fr"],
                "translations": ["c"],
                "seconds": 0.5,
                "samples": (3000 * signal(8000, i)).astype(np.int16).tolist(),
            }
            for i in range(count)
        ]
    ).with_format("numpy", columns=["samples"], output_all_columns=True, dtype="int16")
