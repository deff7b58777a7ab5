"""Context-driven dynamic pruning for speech foundation models.

Importing this package is cheap: ESPnet, SpeechBrain and Lightning are imported
where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localgp.caches import give_user_a_name

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path
    from typing import Any

    from localgp.transcription.transcriber import Transcriber

__version__ = "0.1.0"
__all__ = ["__version__", "gate", "load"]

give_user_a_name()  # before anything imports PyTorch


def load(
    source: str,
    *,
    device: str = "auto",
    precision: str = "fp32",
    gates: str = "trained",
    extensions: Collection[type | str] = (),
) -> Transcriber:
    """A model that transcribes, from wherever it is.

    Args:
        source: A run directory of `localgp.train`, a packed model (folder or archive of `localgp.pack`), an
            ESPnet S2T model directory, ``embedded``, or a Hugging Face repository id.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16``, ``int8`` (weights in 8 bits, on a CPU), or ``auto``: bf16 where the device
            multiplies it faster.
        gates: ``trained``; or ``open`` for every module on every frame, the dense model.
        extensions: Gate policies and context extractors that a packed or downloaded model may import, as classes or
            as dotted paths (``my_module.MyGates``). What a run of your own names needs no leave.

    Raises:
        LocalGPError: Nothing there, or something that is damaged, unsafe or of another kind.

    Examples:
        >>> import localgp
        >>> model = localgp.load("embedded", device="cpu")
        >>> model.languages
        ['deu', 'fra', 'ita']
    """
    from localgp.hub.load import load as load_model

    return load_model(source, device=device, precision=precision, gates=gates, extensions=extensions)


def gate(
    model: Any,
    conf: str = "row05",
    *overrides: str,
    gates: str | Path | None = None,
    vocabulary: Any = None,
    precision: str = "fp32",
) -> Transcriber:
    """A model that one already has, with gates on it: it transcribes, and says what its gates decide.

    Args:
        model: ``WhisperForConditionalGeneration`` of `transformers`, or ``Speech2Text`` or ``ESPnetS2TModel`` of
            ESPnet; it is used as it is, not copied, on its device.
        conf: The experiment whose gates it gets, such as ``row13``, whose need no training, or ``row05``.
        overrides: Options besides, as on the command line: ``pruning.target=0.3``. The window is the model's own unless
            one says ``window=utterance``: a short one is learnt first.
        gates: Trained ones: ``gates.safetensors``, or the folder of a packed model that has it. None: new ones;
            LocalGP's run nearly everything until they are trained.
        vocabulary: What has the model's tokens, where it does not say so itself: of Whisper its processor, tokenizer or
            directory; of an ``ESPnetS2TModel`` its directory.
        precision: ``fp32``, ``bf16``, ``int8`` (weights in 8 bits, on a CPU), or ``auto``: bf16 where the device
            multiplies it faster.

    Raises:
        LocalGPError: Another kind of model, options that cannot be, or gates of another model.

    Examples:
        >>> from transformers import WhisperForConditionalGeneration                       # doctest: +SKIP
        >>> whisper = WhisperForConditionalGeneration.from_pretrained("openai/whisper-base")  # doctest: +SKIP
        >>> gated = localgp.gate(whisper, "row05")                                         # doctest: +SKIP
        >>> gated.transcribe("speech.wav", src="fr").text                                  # doctest: +SKIP
        >>> gated.gates("speech.wav").kept()                                               # doctest: +SKIP
    """
    from localgp.hub.gate import gate as gate_model

    return gate_model(model, conf, *overrides, gates=gates, vocabulary=vocabulary, precision=precision)
