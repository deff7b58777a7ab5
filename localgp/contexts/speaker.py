"""Speaker context: the embedding of a SpeechBrain ECAPA-TDNN, one vector an utterance.

A model directory is SpeechBrain's own: ``hyperparams.yaml`` and ``embedding_model.ckpt``, as in
``speechbrain/spkrec-ecapa-voxceleb``. The classes are SpeechBrain's; the file's values are read as data
(`localgp.contexts.hyperparams`).

Shape legend: N samples, F feature frames (10 ms), C embedding size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localgp.contexts.hyperparams import arguments_of, read_hyperparams
from localgp.contexts.source import (
    MINI,
    ContextError,
    digest_of,
    fetch_directory,
    lengthened,
    load_exactly,
    read_tensors,
)

PUBLISHED = "speechbrain/spkrec-ecapa-voxceleb"
HYPERPARAMS, WEIGHTS = "hyperparams.yaml", "embedding_model.ckpt"
_KEY = "contexts.spk.source"
_ECAPA = "speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN"
_FBANK = "speechbrain.lobes.features.Fbank"
_NORM = "speechbrain.processing.features.InputNormalization"
_IGNORED = {"device", "dropout"}  # no effect here
_VERSION = 1  # raise it when the same weights give other numbers: caches are then made again


@dataclass(frozen=True)
class SpeakerShape:
    """Dimensions of an ECAPA-TDNN; the defaults are those of `PUBLISHED`."""

    input_size: int = 80
    channels: tuple[int, ...] = (1024, 1024, 1024, 1024, 3072)
    kernel_sizes: tuple[int, ...] = (5, 3, 3, 3, 1)
    dilations: tuple[int, ...] = (1, 2, 3, 4, 1)
    groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    attention_channels: int = 128
    res2net_scale: int = 8
    se_channels: int = 128
    lin_neurons: int = 192
    global_context: bool = True

    @property
    def size(self) -> int:
        return self.lin_neurons

    @property
    def shortest(self) -> int:
        """Samples that the widest convolution can be padded from: by reflection, so from more frames than it adds."""
        added = [d * (k - 1) // 2 for k, d in zip(self.kernel_sizes, self.dilations, strict=True)]
        return 160 * max(added)

    def flops(self, samples: int) -> float:
        """Of one utterance from its features on, as fvcore counts (1 multiply-add = 1 FLOP)."""
        frames = samples // 160 + 1

        def tdnn(before: int, after: int, kernel: int, groups: int = 1) -> float:
            return frames * (before // groups * after * kernel + 2 * after)  # convolution and batch norm

        channels = self.channels
        total = tdnn(self.input_size, channels[0], self.kernel_sizes[0], self.groups[0])
        for i in range(1, len(channels) - 1):
            hidden = channels[i] // self.res2net_scale
            total += tdnn(channels[i - 1], channels[i], 1, self.groups[i])
            total += (self.res2net_scale - 1) * tdnn(hidden, hidden, self.kernel_sizes[i])
            total += tdnn(channels[i], channels[i], 1, self.groups[i])
            total += 2 * channels[i] * self.se_channels
            if channels[i - 1] != channels[i]:
                total += frames * channels[i - 1] * channels[i]
        last = channels[-1]
        total += tdnn(channels[-2] * (len(channels) - 2), last, self.kernel_sizes[-1], self.groups[-1])
        total += tdnn(last * (3 if self.global_context else 1), self.attention_channels, 1)
        total += frames * self.attention_channels * last
        return total + 2 * (2 * last) + 2 * last * self.lin_neurons


def read_shape(directory: Path) -> tuple[SpeakerShape, dict[str, Any], dict[str, Any]]:
    """Dimensions, and the arguments of the features and of their normalisation, from ``hyperparams.yaml``.

    Raises:
        ContextError: The file describes something else than ECAPA-TDNN over SpeechBrain's Fbank.
    """
    path = directory / HYPERPARAMS
    content = read_hyperparams(path)
    given = {**arguments_of(path, content, "embedding_model", _ECAPA)}
    known = {field.name for field in fields(SpeakerShape)}
    unknown = sorted(set(given) - known - _IGNORED)
    if unknown:
        raise ContextError(
            f"{path}: embedding_model has {', '.join(unknown)}, supported: {', '.join(sorted(known))}"
        )
    # SpeechBrain's class has channels of its own where the file gives none, narrower than the published model's.
    values = {"channels": [512, 512, 512, 512, 1536], **{k: v for k, v in given.items() if k in known}}
    try:
        arguments: dict[str, Any] = {
            k: tuple(int(i) for i in v) if isinstance(v, list) else type(getattr(SpeakerShape, k))(v)
            for k, v in values.items()
        }
        shape = SpeakerShape(**arguments)
    except (TypeError, ValueError) as error:
        raise ContextError(f"{path}: embedding_model has a value that cannot be ({error})") from error
    return (
        shape,
        arguments_of(path, content, "compute_features", _FBANK),
        arguments_of(path, content, "mean_var_norm", _NORM),
    )


def shape_of(source: str) -> SpeakerShape:
    """Dimensions without weights; those of `PUBLISHED` are known without a download."""
    if source == PUBLISHED:
        return SpeakerShape()
    return read_shape(_directory(source))[0]


def _directory(source: str) -> Path:
    return fetch_directory(
        _KEY, str(MINI / "speaker") if source == "mini" else source, (HYPERPARAMS, WEIGHTS)
    )


class SpeakerExtractor:
    """ECAPA-TDNN's speaker embedding as a context.

    Args:
        source: ``mini``, a directory, or a Hugging Face repository id.
        device: Where it runs.
    """

    name = "spk"
    step = None  # one vector for the utterance

    def __init__(self, source: str, device: Any = "cpu") -> None:
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
        from speechbrain.processing.features import InputNormalization

        directory = _directory(source)
        self.shape, fbank, norm = read_shape(directory)
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.shape).items()}
        try:
            self._features = Fbank(**fbank).to(device).eval()
            self._norm = InputNormalization(**norm).to(device).eval()
            network = ECAPA_TDNN(**arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ContextError(
                f"{directory / HYPERPARAMS}: SpeechBrain cannot build this ({error})"
            ) from error
        load_exactly(network, read_tensors(directory / WEIGHTS), directory / WEIGHTS)
        self.network = network.to(device).eval().requires_grad_(False)
        self.size = self.shape.size
        self.digest = digest_of(directory / WEIGHTS, _VERSION, self.shape, sorted(fbank.items()), norm)
        self._device = torch.device(device)

    def embed(self, signal_N: np.ndarray) -> Any:
        """SpeechBrain's ``encode_batch`` of one signal: (1, C), unnormalised."""

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            heard_N = lengthened(signal_N, self.shape.shortest)
            wavs = torch.from_numpy(np.ascontiguousarray(heard_N, np.float32))[None].to(self._device)
            whole = torch.ones(1, device=self._device)
            feats = self._norm(self._features(wavs), whole)
            return self.network(feats, whole)[0]

    def extract(self, signal_N: np.ndarray) -> np.ndarray:
        """(1, C) float16 of unit mean square: what identifies a speaker is an embedding's direction, and keys of
        unit scale keep the gates' unscaled attention out of saturation."""
        embedding = self.embed(signal_N).float()
        scaled = embedding / embedding.square().mean().sqrt().clamp(min=1e-6)
        return scaled.cpu().numpy().astype(np.float16)

    def flops(self, samples: int) -> float:
        return self.shape.flops(samples)
