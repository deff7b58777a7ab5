"""ESPnet's components of an S2T model, with a decoder or of CTC alone, by the names that ``config.yaml`` gives them.

ESPnet's own task modules have this table too, and imports every class in it, phonemisers and downloads included, before
the first one can be built. Here a class is imported when a configuration names it.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch

from localgp.caches import give_numba_a_cache
from localgp.errors import BackboneError
from localgp.failures import remedy

# Component in the configuration -> name there -> module and class.
COMPONENTS: dict[str, dict[str, str]] = {
    "frontend": {
        "default": "espnet2.asr.frontend.default.DefaultFrontend",
        "sliding_window": "espnet2.asr.frontend.windowing.SlidingWindow",
        "s3prl": "espnet2.asr.frontend.s3prl.S3prlFrontend",
        "fused": "espnet2.asr.frontend.fused.FusedFrontends",
        "whisper": "espnet2.asr.frontend.whisper.WhisperFrontend",
    },
    "specaug": {"specaug": "espnet2.asr.specaug.specaug.SpecAug"},
    "normalize": {
        "global_mvn": "espnet2.layers.global_mvn.GlobalMVN",
        "utterance_mvn": "espnet2.layers.utterance_mvn.UtteranceMVN",
    },
    "preencoder": {
        "sinc": "espnet2.asr.preencoder.sinc.LightweightSincConvs",
        "linear": "espnet2.asr.preencoder.linear.LinearProjection",
    },
    "encoder": {
        "conformer": "espnet2.asr.encoder.conformer_encoder.ConformerEncoder",
        "transformer": "espnet2.asr.encoder.transformer_encoder.TransformerEncoder",
        "transformer_multispkr": "espnet2.asr.encoder.transformer_encoder_multispkr.TransformerEncoder",
        "contextual_block_transformer": (
            "espnet2.asr.encoder.contextual_block_transformer_encoder.ContextualBlockTransformerEncoder"
        ),
        "contextual_block_conformer": (
            "espnet2.asr.encoder.contextual_block_conformer_encoder.ContextualBlockConformerEncoder"
        ),
        "vgg_rnn": "espnet2.asr.encoder.vgg_rnn_encoder.VGGRNNEncoder",
        "rnn": "espnet2.asr.encoder.rnn_encoder.RNNEncoder",
        "wav2vec2": "espnet2.asr.encoder.wav2vec2_encoder.FairSeqWav2Vec2Encoder",
        "hubert": "espnet2.asr.encoder.hubert_encoder.FairseqHubertEncoder",
        "hubert_pretrain": "espnet2.asr.encoder.hubert_encoder.FairseqHubertPretrainEncoder",
        "torchaudiohubert": "espnet2.asr.encoder.hubert_encoder.TorchAudioHuBERTPretrainEncoder",
        "longformer": "espnet2.asr.encoder.longformer_encoder.LongformerEncoder",
        "branchformer": "espnet2.asr.encoder.branchformer_encoder.BranchformerEncoder",
        "whisper": "espnet2.asr.encoder.whisper_encoder.OpenAIWhisperEncoder",
        "e_branchformer": "espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder",
        "e_branchformer_ctc": "espnet2.asr.encoder.e_branchformer_ctc_encoder.EBranchformerCTCEncoder",
    },
    "promptencoder": {
        "conformer": "espnet2.asr.encoder.conformer_encoder.ConformerEncoder",
        "transformer": "espnet2.asr.encoder.transformer_encoder.TransformerEncoder",
        "branchformer": "espnet2.asr.encoder.branchformer_encoder.BranchformerEncoder",
        "e_branchformer": "espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder",
    },
    "postencoder": {
        "hugging_face_transformers": (
            "espnet2.asr.postencoder.hugging_face_transformers_postencoder.HuggingFaceTransformersPostEncoder"
        ),
    },
    "decoder": {
        "transformer": "espnet2.asr.decoder.transformer_decoder.TransformerDecoder",
        "lightweight_conv": "espnet2.asr.decoder.transformer_decoder.LightweightConvolutionTransformerDecoder",
        "lightweight_conv2d": "espnet2.asr.decoder.transformer_decoder.LightweightConvolution2DTransformerDecoder",
        "dynamic_conv": "espnet2.asr.decoder.transformer_decoder.DynamicConvolutionTransformerDecoder",
        "dynamic_conv2d": "espnet2.asr.decoder.transformer_decoder.DynamicConvolution2DTransformerDecoder",
        "rnn": "espnet2.asr.decoder.rnn_decoder.RNNDecoder",
        "mlm": "espnet2.asr.decoder.mlm_decoder.MLMDecoder",
        "whisper": "espnet2.asr.decoder.whisper_decoder.OpenAIWhisperDecoder",
        "hugging_face_transformers": (
            "espnet2.asr.decoder.hugging_face_transformers_decoder.HuggingFaceTransformersDecoder"
        ),
        "s4": "espnet2.asr.decoder.s4_decoder.S4Decoder",
    },
    "ctc": {"ctc": "espnet2.asr.ctc.CTC"},
    "model": {
        "espnet": "espnet2.s2t.espnet_model.ESPnetS2TModel",
        "espnet_ctc": "espnet2.s2t.espnet_ctc_model.ESPnetS2TCTCModel",
    },
}


def component_class(component: str, name: Any) -> Any:
    """The class that ``config.yaml`` means by ``component: name``.

    Raises:
        BackboneError: No such component, or one that cannot be imported here.
    """
    known = COMPONENTS[component]
    if not isinstance(name, str) or name not in known:
        raise BackboneError(
            f"config.yaml: {component}: {name!r} is unknown to ESPnet's S2T task; valid: {', '.join(known)}"
        )
    module, _, kind = known[name].rpartition(".")

    try:
        with torch.device("cpu"):  # whatever the model is built on: a module may have constants
            return getattr(import_module(module), kind)
    except Exception as error:  # an optional package that is missing, or whatever its import raises
        if remedy(error) is not None:
            raise
        raise BackboneError(
            f"config.yaml: {component}: {name} cannot be imported here ({type(error).__name__}: {error}); the model is "
            "not at fault: install what is missing"
        ) from error


@contextlib.contextmanager
def quiet_espnet() -> Iterator[None]:
    """Keeps ESPnet's import from printing (it looks for optional packages that no S2T model needs), and what it
    imports from failing where the user has no home (`localgp.caches`)."""
    give_numba_a_cache()
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
