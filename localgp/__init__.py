"""Context-driven dynamic pruning for speech foundation models.

Importing this package is cheap: ESPnet, SpeechBrain and Lightning are imported
where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localgp.caches import give_user_a_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from localgp.transcription.transcriber import Transcriber

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

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
        precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the device multiplies it faster.
        gates: ``trained``; or ``open`` for every module on every frame, the dense model.
        extensions: Gate policies and context extractors that a packed or downloaded model may import, as classes or
            as dotted paths (``my_module.MyGates``). What a run of your own names needs no leave.

    Raises:
        LocalGPError: Nothing there, or something that is damaged, unsafe or of another kind.

    Example:
        >>> import localgp
        >>> model = localgp.load("embedded", device="cpu")
        >>> model.languages
        ['deu', 'fra', 'ita']
    """
    from localgp.hub.load import load as load_model

    return load_model(source, device=device, precision=precision, gates=gates, extensions=extensions)
