"""Acoustic-event context: the second layer of BEATs, one vector every 160 ms.

The checkpoint is in the published format (``BEATs_iter3_plus_AS2M.pt``): ``cfg``, a dictionary, and ``model``, a state
dictionary. Only the first two layers are built, from ESPnet's class.

Two traps on the way. ESPnet's ``max_layer`` indexes a list that begins with the layers' input, so that
``max_layer=1`` returns the first layer's output; the second layer's is ``max_layer=2``. And DeepNorm's residual
factor depends on how many layers the model was trained with, so a model of two layers has to be given that of
the whole one.

Shape legend: N samples, S steps (160 ms), K frequency bands of a step, C size of BEATs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from localgp.backbones.owsm.components import quiet_espnet
from localgp.contexts.source import MINI, ContextError, digest_of, lengthened, load_exactly, read_tensors
from localgp.paths import expanded

PUBLISHED = "BEATs_iter3_plus_AS2M.pt"
MINI_FILE = "BEATs_mini.pt"
LAYERS = 2  # of the paper, section 4.2
BANDS = 8  # 128 mel bins in patches of 16
_KEY = "contexts.event.source"
_MIN_SAMPLES = 3200  # ESPnet's class repeats a shorter signal
_VERSION = 1  # raise it when the same weights give other numbers: caches are then made again


@dataclass(frozen=True)
class EventShape:
    """Dimensions of BEATs; the defaults are those of the published models."""

    embed_dim: int = 512
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_layers: int = 12
    conv_pos: int = 128
    conv_pos_groups: int = 16
    gru_rel_pos: bool = True
    activation_fn: str = "gelu"

    @property
    def size(self) -> int:
        return self.encoder_embed_dim

    def flops(self, samples: int) -> float:
        """Of the first two layers on one utterance from its features on, as fvcore counts."""
        tokens = ((max(samples, _MIN_SAMPLES) - 400) // 160 + 1) // 16 * BANDS
        embed, size, hidden = self.embed_dim, self.encoder_embed_dim, self.encoder_ffn_embed_dim
        total = tokens * embed * (16 * 16 + 5)
        if embed != size:
            total += tokens * embed * size
        positions = tokens + 1 - self.conv_pos % 2  # an even kernel makes one more, which is cut off
        total += positions * size * (size // self.conv_pos_groups) * self.conv_pos + 5 * tokens * size
        up = 2 * hidden if self.activation_fn == "glu" else hidden
        layer = tokens * (4 * size**2 + size * up + hidden * size + 10 * size) + 2 * tokens**2 * size
        if self.gru_rel_pos:
            layer += 8 * tokens * size
        return float(total + LAYERS * layer)


def _path(source: str) -> Path:
    path = MINI / "event" / MINI_FILE if source == "mini" else expanded(source)
    if not path.is_file():
        raise ContextError(
            f"{_KEY}={source}: no such file. Get {PUBLISHED} from the BEATs page "
            "(https://github.com/microsoft/unilm/tree/master/beats) and give its path, or use the small embedded "
            f"extractor: {_KEY}=mini"
        )
    return path


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``cfg`` and ``model`` of a BEATs checkpoint.

    Raises:
        ContextError: Unsafe, damaged, of another kind, or without the two layers.
    """
    content = read_tensors(path)
    if not isinstance(content, dict) or not {"cfg", "model"} <= set(content):
        raise ContextError(
            f"{path}: not a BEATs checkpoint (it lacks 'cfg' or 'model'); {PUBLISHED} is one that works"
        )
    cfg, model = content["cfg"], content["model"]
    problems = []
    if not isinstance(cfg, dict):
        problems.append(f"cfg is {type(cfg).__name__}, expected a dictionary")
    elif int(cfg.get("encoder_layers", 12)) < LAYERS:
        problems.append(f"encoder_layers is {cfg['encoder_layers']}, at least {LAYERS} are used")
    elif int(cfg.get("input_patch_size", 16)) != 16:
        problems.append(f"input_patch_size is {cfg['input_patch_size']}, supported: 16")
    if not isinstance(model, dict):
        problems.append(f"model is {type(model).__name__}, expected a state dictionary")
    if problems:
        raise ContextError(f"{path}: {'; '.join(problems)}")
    return cfg, model


def _shape(cfg: dict[str, Any]) -> EventShape:
    """What a ``cfg`` leaves out is as in ESPnet's ``BeatsConfig``."""
    defaults = {field.name: field.default for field in fields(EventShape)} | {"gru_rel_pos": False}
    return EventShape(**{name: cfg.get(name, default) for name, default in defaults.items()})


def shape_of(source: str) -> EventShape:
    """Dimensions without running anything; those of the published file are known without having it."""
    if Path(source).name == PUBLISHED and not expanded(source).is_file():
        return EventShape()
    return _shape(read_checkpoint(_path(source))[0])


def build(cfg: dict[str, Any], layers: int | None = None) -> Any:
    """ESPnet's BEATs of a ``cfg``, randomly initialised, in eval mode.

    Args:
        layers: Build only so many; the result of those is as in the whole model.
    """

    with quiet_espnet():
        from espnet2.asr.encoder.beats_encoder import BeatsConfig, BeatsEncoder
    known = vars(BeatsConfig())
    # The gradient's decay by layer is for training; in the forward pass it is a copy.
    values = {k: v for k, v in cfg.items() if k in known} | {"layer_wise_gradient_decay_ratio": 1.0}
    whole = int(values.get("encoder_layers", known["encoder_layers"]))
    beats = BeatsEncoder(input_size=1, beats_config={**values, "encoder_layers": layers or whole})
    for layer in beats.encoder.layers:
        if layer.deep_norm:
            layer.deep_norm_alpha = math.pow(2 * whole, 1 / 4)
    return beats.eval()


class EventExtractor:
    """BEATs' event features as a context.

    Args:
        source: ``mini``, or the path of a checkpoint.
        device: Where it runs.
    """

    name = "event"
    step = 2560  # samples: 16 feature frames of 10 ms

    def __init__(self, source: str, device: Any = "cpu") -> None:

        path = _path(source)
        cfg, model = read_checkpoint(path)
        self.shape = _shape(cfg)
        try:
            network = build(cfg, LAYERS)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ContextError(f"{path}: ESPnet cannot build this cfg ({error})") from error
        deeper = [f"encoder.layers.{i}." for i in range(LAYERS, self.shape.encoder_layers)]
        load_exactly(network, model, path, unused=(*deeper, "predictor"))
        self.network = network.to(device).requires_grad_(False)
        self.size = self.shape.size
        self.digest = digest_of(path, _VERSION, LAYERS)
        self._device = torch.device(device)

    def tokens(self, signal_N: np.ndarray) -> Any:
        """The second layer's output, (S K, C): the bands of a step lie beside each other."""

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            heard_N = lengthened(
                signal_N, 1
            )  # ESPnet's class repeats what is short and cannot repeat nothing
            source = torch.from_numpy(np.ascontiguousarray(heard_N, np.float32))[None].to(self._device)
            return self.network.extract_features(source, None, max_layer=LAYERS)[0][0]

    def extract(self, signal_N: np.ndarray) -> np.ndarray:
        """(S, C) float16: the mean over the bands of each step."""
        tokens = self.tokens(signal_N)
        return tokens.unflatten(0, (-1, BANDS)).mean(1).cpu().numpy().astype(np.float16)

    def flops(self, samples: int) -> float:
        return self.shape.flops(samples)
