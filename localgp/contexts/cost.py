"""What extracting contexts costs. The paper's column leaves it out; here it is reported beside the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from localgp.contexts import context_shape
from localgp.contexts.extract import needed_contexts


def context_gflops(cfg: DictConfig, samples: Sequence[int]) -> dict[str, float]:
    """GFLOPs an utterance of each context's extractor, averaged over utterances of so many samples.

    Counted from the extractor's features on, as the encoder is; ``front`` is part of the encoder and costs nothing.
    """

    shapes = {name: context_shape(name, cfg) for name in needed_contexts(cfg)}
    return {
        name: sum(shape.flops(n) for n in samples) / max(1, len(samples)) / 1e9
        for name, shape in shapes.items()
    }


def with_contexts(gflops: dict[str, Any], cfg: DictConfig, samples: Sequence[int]) -> dict[str, Any]:
    """Adds the contexts to a ``gflops`` entry: ``context`` in all, ``contexts`` by name, and to ``total``."""
    each = context_gflops(cfg, samples)
    context = sum(each.values())
    return {
        **gflops,
        "context": round(context, 6),
        "contexts": {name: round(value, 6) for name, value in each.items()},
        "total": round(gflops["total"] + context, 6),
    }
