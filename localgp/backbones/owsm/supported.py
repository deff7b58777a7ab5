"""Which of ESPnet's S2T models are of OWSM's kind: what the forward here does, and no model that it would do wrong.

A configuration is looked at before its weights are read; a model that somebody else has built, as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from localgp.errors import BackboneError

ENCODERS = ("e_branchformer", "transformer")
INPUT_LAYERS = ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8")
TOLD = "e_branchformer_ctc"  # OWSM-CTC's encoder
VALID = "valid are OWSM v1 to v4, POWSM and OWSM-CTC"


def is_ctc(config: Mapping[str, Any]) -> bool:
    """Whether it is a model without a decoder, of ESPnet's task for those."""
    return config.get("encoder") == TOLD or config.get("model") == "espnet_ctc"


def check_config(config: Mapping[str, Any]) -> None:
    """Refuses a configuration that is not computed here.

    Raises:
        BackboneError: A model that would not be computed as ESPnet does it, with everything that is in the way.
    """
    _refuse(list(_config_problems(config)))


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    from localgp.backbones.owsm.components import COMPONENTS

    encoder, decoder = config.get("encoder"), config.get("decoder")
    if is_ctc(config):
        yield from _ctc_config_problems(config)
        return
    if encoder in COMPONENTS["encoder"] and encoder not in ENCODERS:
        yield f"encoder: {encoder} has layers that are not gated here (valid: {', '.join(ENCODERS)})"
        return
    for kind in ("preencoder", "postencoder"):
        if config.get(kind) is not None:
            yield f"{kind}: {config[kind]} is not computed here (valid: null)"
    given = config.get("encoder_conf") or {}
    if encoder in ENCODERS:
        layer = given.get("input_layer", "conv2d")
        if layer not in INPUT_LAYERS:
            yield f"encoder_conf.input_layer: {layer} (valid: {', '.join(INPUT_LAYERS)})"
        if given.get("interctc_use_conditioning"):
            yield (
                "encoder_conf.interctc_use_conditioning: what an intermediate CTC writes is not added to the "
                "layers here (valid: false)"
            )
        yield from _conf(encoder, given)
    if decoder is None:
        yield "decoder: null; a model without a decoder cannot be searched here (valid: transformer)"
    elif decoder in COMPONENTS["decoder"] and decoder != "transformer":
        yield f"decoder: {decoder} (valid: transformer)"


def _ctc_config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Of OWSM-CTC."""
    if config.get("encoder") != TOLD or config.get("model", "espnet_ctc") != "espnet_ctc":
        yield f"encoder: {config.get('encoder')} with model: {config.get('model')} (valid: {TOLD} with espnet_ctc)"
        return
    given, prompt = config.get("encoder_conf") or {}, config.get("promptencoder_conf") or {}
    if given.get("input_layer", "conv2d8") != "conv2d8":
        yield f"encoder_conf.input_layer: {given['input_layer']} takes no prompt in ESPnet (valid: conv2d8)"
    yield from _conf("e_branchformer", given)
    if config.get("promptencoder", "transformer") != "transformer":
        yield f"promptencoder: {config['promptencoder']} (valid: transformer)"
    if prompt.get("interctc_layer_idx"):
        yield "promptencoder_conf.interctc_layer_idx: an intermediate CTC of the prompt (valid: [])"


def _conf(encoder: str, given: Mapping[str, Any]) -> Iterator[str]:
    """What an encoder's own options may be."""
    if encoder == "e_branchformer":
        defaults = {"pos_enc_layer_type": "rel_pos", "attention_layer_type": "rel_selfattn"}
        needed = {"pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn"}
        defaults |= {"use_ffn": False, "macaron_ffn": False}  # type: ignore[dict-item]
        needed |= {"use_ffn": True, "macaron_ffn": True}  # type: ignore[dict-item]
    else:
        defaults = {"pos_enc_layer_type": "abs_pos", "positionwise_layer_type": "linear"}
        needed = dict(defaults)
        defaults |= {"normalize_before": True, "concat_after": False}  # type: ignore[dict-item]
        needed |= {"normalize_before": True, "concat_after": False}  # type: ignore[dict-item]
    for key, valid in needed.items():
        value = given.get(key, defaults[key])
        if value != valid:
            yield f"encoder_conf.{key}: {value} (valid: {valid})"


def check_supported(net: Any) -> None:
    """The same of a model.

    Raises:
        BackboneError: If encoder or decoder are not of the kind that OWSM has.
    """
    _refuse(list(_problems(net)))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise BackboneError(
            f"this backbone is not supported: {'; '.join(problems)}. Use another model: {VALID}."
        )


def _problems(net: Any) -> Iterator[str]:
    from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
    from espnet2.asr.encoder.e_branchformer_ctc_encoder import EBranchformerCTCEncoder
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
    from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

    encoder, decoder = net.encoder, getattr(net, "decoder", None)
    if hasattr(net, "prompt_encoder"):
        if not isinstance(encoder, EBranchformerCTCEncoder):
            yield _named("encoder", encoder, "EBranchformerCTCEncoder, of a model with a prompt encoder")
        else:
            yield from _encoder_problems(encoder)
        if not isinstance(net.prompt_encoder, TransformerEncoder):
            yield _named("prompt encoder", net.prompt_encoder, "TransformerEncoder")
        return
    for kind in ("preencoder", "postencoder"):
        if getattr(net, kind, None) is not None:
            yield f"it has a {kind}, which is not computed here"
    if not isinstance(encoder, (EBranchformerEncoder, TransformerEncoder)):
        yield _named("encoder", encoder, "EBranchformerEncoder, TransformerEncoder")
    else:
        yield from _encoder_problems(encoder)
    if not isinstance(decoder, TransformerDecoder):
        yield _named("decoder", decoder, "TransformerDecoder (transformer)")
    else:
        yield from _decoder_problems(decoder)


def _named(what: str, found: Any, supported: str) -> str:
    return f"{what} is {type(found).__name__}, supported: {supported}"


def _encoder_problems(encoder: Any) -> Iterator[str]:
    from espnet.nets.pytorch_backend.transformer import subsampling
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet.nets.pytorch_backend.transformer.embedding import PositionalEncoding
    from torch import nn

    from localgp.backbones.owsm.stem import positions_of

    layer = encoder.encoders[0]
    kinds = tuple(getattr(subsampling, f"Conv2dSubsampling{n}") for n in ("", 1, 2, 6, 8))
    if not isinstance(encoder.embed, kinds):
        yield _named("input_layer", encoder.embed, ", ".join(INPUT_LAYERS))
    elif type(positions_of(encoder.embed)) is not PositionalEncoding:
        yield _named("position encoding", positions_of(encoder.embed), "PositionalEncoding (abs_pos)")
    if encoder.interctc_use_conditioning and type(encoder).__name__ != "EBranchformerCTCEncoder":
        yield "what an intermediate CTC writes is added to the layers (interctc_use_conditioning)"
    attention = layer.attn if hasattr(layer, "cgmlp") else layer.self_attn
    if type(attention) is not MultiHeadedAttention:
        yield _named("attention", attention, "selfattn with abs_pos")
    if hasattr(layer, "cgmlp"):
        if layer.feed_forward is None or layer.feed_forward_macaron is None:
            yield "layers lack FFNs, supported: use_ffn: true and macaron_ffn: true"
    elif not encoder.normalize_before or layer.concat_after:
        yield "the encoder's layers are not pre-norm without concat_after"
    elif not hasattr(layer.feed_forward, "w_1") or not isinstance(layer.feed_forward.w_1, nn.Linear):
        yield _named("FFN", layer.feed_forward, "positionwise_layer_type: linear")


def _decoder_problems(decoder: Any) -> Iterator[str]:
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from torch import nn

    first = decoder.decoders[0]
    if not isinstance(decoder.embed[0], nn.Embedding):
        yield "the decoder's input_layer is not embed"
    if not decoder.normalize_before or first.concat_after:
        yield "the decoder's layers are not pre-norm without concat_after"
    if type(first.self_attn) is not MultiHeadedAttention:
        yield _named("the decoder's attention", first.self_attn, "MultiHeadedAttention")
    if decoder.output_layer is None:
        yield "the decoder has no output layer"
