"""Small models and inputs that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel processes

import pytest
import torch

SIZE, LAYERS = 32, 3


def make_encoder():
    """A randomly initialised E-Branchformer of OWSM-v3.1's kind, in eval mode; the same weights every time."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    torch.manual_seed(0)
    return EBranchformerEncoder(
        80,
        output_size=SIZE,
        attention_heads=4,
        attention_layer_type="selfattn",
        pos_enc_layer_type="abs_pos",
        cgmlp_linear_units=64,
        linear_units=64,
        num_blocks=LAYERS,
        use_ffn=True,
        macaron_ffn=True,
        merge_conv_kernel=31,
    ).eval()


@pytest.fixture(scope="session")
def encoder():
    return make_encoder()


@pytest.fixture
def feats():
    """Features of a ragged batch: (3, 240, 80) and lengths."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 240, 80, generator=generator), torch.tensor([240, 170, 90])


@pytest.fixture
def columns() -> set[str]:
    """What scripts outside of this project read of a row of the encoder's and of training's benchmark."""
    audio = {"backbone", "dtype", "seconds_of_audio", "padded_to", "skipped"}
    return audio | {"flop_ratio", "time_ratio_vs_dense", "time_ratio_vs_espnet", "overhead_share", "peak_mib"}
