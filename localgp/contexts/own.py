"""A context of the user's own: what a class named by ``contexts.NAME.source=module.Class`` extracts.

    class Loudness:
        size = 1        # C, numbers a step
        step = 1600     # samples of a step at 16 kHz; None: one vector for the whole utterance

        def extract(self, signal_N): ...        # (S, C), or (C,) where step is None

Its other options, ``contexts.NAME.option=value``, are keyword arguments of its constructor, which can take ``device``
besides. ``flops(samples)`` counts what extraction costs, where the class has it.

Shape legend: N samples, S steps, C context size.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from localgp.errors import ConfigError
from localgp.extensions import make


class OwnExtractor:
    """A user's own extractor, with its options and an identity for the cache.

    Args:
        name: Of the context.
        cfg: The whole configuration.
        device: Where it may compute.

    Attributes:
        size, step: As its class says.
        digest: Of the class's source file and of its options: other code or other options have another cache.

    Raises:
        ConfigError: There is no such class, or it is no extractor.
    """

    def __init__(self, name: str, cfg: DictConfig, device: Any = "cpu") -> None:
        settings: Any = OmegaConf.to_container(cfg.contexts[name], resolve=True)
        options = dict(settings) if isinstance(settings, dict) else {}
        self.name, self._key = name, f"contexts.{name}.source"
        self._path = str(options.pop("source", None))
        self._made = make(self._path, self._key, {"device": device}, options)
        self.size, self.step = getattr(self._made, "size", None), getattr(self._made, "step", 0)
        wrong = []
        if not _is_count(self.size):
            wrong.append(f"size is {self.size!r}, valid: how many numbers a step has")
        if self.step is not None and not _is_count(self.step):
            wrong.append(
                f"step is {self.step!r}, valid: samples of a step, or None for one vector an utterance"
            )
        if not callable(getattr(self._made, "extract", None)):
            wrong.append("it has no extract(signal_N)")
        if wrong:
            raise ConfigError(f"{self._key}={self._path} is no extractor: {'; '.join(wrong)}")
        self.digest = hashlib.sha256(
            _source(type(self._made)) + repr(sorted(options.items())).encode()
        ).hexdigest()[:16]

    def extract(self, signal_N: np.ndarray) -> np.ndarray:
        """(S, C) float16, or (1, C).

        Raises:
            ConfigError: What the class gives is of another shape, or not finite.
        """
        given = self._made.extract(signal_N)
        if hasattr(given, "detach"):
            given = given.detach().cpu()
        with np.errstate(over="ignore"):
            context_SC = np.asarray(given, dtype=np.float16)
        if self.step is None and context_SC.ndim == 1:
            context_SC = context_SC[None]
        if context_SC.ndim != 2 or not len(context_SC) or context_SC.shape[1] != self.size:
            raise ConfigError(
                f"{self._key}={self._path} extracts {context_SC.shape} of {len(signal_N)} samples; valid: "
                f"({'1' if self.step is None else 'steps'}, {self.size})"
            )
        if self.step is None and len(context_SC) != 1:
            raise ConfigError(f"{self._key}={self._path} has step None and extracts {context_SC.shape}")
        if not np.isfinite(context_SC).all():
            raise ConfigError(
                f"{self._key}={self._path} extracts NaN, infinity, or what 16-bit floats do not hold (over 65504)"
            )
        return context_SC

    def flops(self, samples: int) -> float:
        counted = getattr(self._made, "flops", None)
        return float(counted(samples)) if callable(counted) else 0.0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _source(kind: type) -> bytes:
    """The class's file, or its name where it has none."""
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}".encode()
