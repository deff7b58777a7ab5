"""Small models and inputs that several tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel processes

import pytest
import torch

SIZE, LAYERS = 32, 3


def make_encoder(size=SIZE, mels=80, input_layer="conv2d"):
    """A randomly initialised E-Branchformer of OWSM-v3.1's kind, in eval mode; the same weights every time."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    torch.manual_seed(0)
    return EBranchformerEncoder(
        mels,
        output_size=size,
        input_layer=input_layer,
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


class SmallTokens:
    """A vocabulary of 61 tokens without text."""

    sos, eos, notimestamps, first_time, last_time, blank, na = 1, 2, 3, 40, 52, 0, 6
    start, languages, language_ids = (sos,), ("deu", "fra"), (4, 5)
    token_list = tuple(f"<{index}>" for index in range(61))

    def prompt(self, language, target, *, timestamps=False):
        return [4, 5, self.notimestamps]

    def rules(self, primers):
        from localgp.backbones.rules import TimestampRules

        rules = TimestampRules(self.sos, self.eos, self.notimestamps, self.first_time, self.last_time)
        return rules.of(primers)


def make_backbone(encoder=None, decoder=None, ctc=None, net=None):
    """OWSM's backbone around parts of ESPnet's, or around a whole model; what is not given is small and random."""
    from localgp.backbones.owsm.model import OwsmBackbone

    if net is None:
        from espnet2.asr.decoder.transformer_decoder import TransformerDecoder

        size = SIZE
        if encoder is not None or decoder is not None:
            size = encoder.output_size() if encoder is not None else decoder.output_layer.in_features
        net = torch.nn.Module()
        with torch.random.fork_rng():
            net.encoder = make_encoder(size) if encoder is None else encoder
            net.decoder = decoder
            if decoder is None:
                net.decoder = TransformerDecoder(
                    61, size, attention_heads=4, linear_units=64, num_blocks=2
                ).eval()
        net.ctc, net.frontend = ctc, None
        net.train(net.encoder.training)
    return OwsmBackbone(net, SmallTokens(), train_config={})


def distance(target, layers, frames_BT, *, per="global", total=None):
    """Of the share kept from what is asked for, as training reports it."""
    from localgp.gates.target import SparsityTarget

    return SparsityTarget(target, per=per)(layers, frames_BT, total=total)[1]


@pytest.fixture(scope="session")
def encoder():
    return make_encoder()


@pytest.fixture(scope="session")
def backbone(encoder):
    return make_backbone(encoder)


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
