"""From a configuration to the contexts of prepared rows, placed in the encoder's time.

Shape legend: N samples, S steps of an extractor, T encoder frames (40 ms), C context size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from localgp.contexts.event import EventExtractor
from localgp.contexts.on_disk import ContextStore, open_store
from localgp.contexts.own import OwnExtractor
from localgp.contexts.speaker import SpeakerExtractor
from localgp.errors import ConfigError
from localgp.extensions import is_dotted, own_contexts
from localgp.precision import resolve_device
from localgp.timeline import Timeline


def needed_contexts(cfg: DictConfig) -> list[str]:
    """Names of the contexts that the encoder's gates see and that an extractor makes."""
    if cfg.pruning.encoder != "local" and not is_dotted(cfg.pruning.encoder):
        return []
    return [name for name in cfg.pruning.context if name != "front"]


def build_extractor(name: str, cfg: DictConfig, device: Any = "cpu") -> Any:
    """The frozen extractor of a context: `SpeakerExtractor`, `EventExtractor`, or one of the user's own."""

    if name in own_contexts(cfg.contexts):
        return OwnExtractor(name, cfg, device)
    kinds: dict[str, Callable[..., Any]] = {"spk": SpeakerExtractor, "event": EventExtractor}
    with torch.random.fork_rng():  # initial values are drawn and then replaced by the checkpoint's
        return kinds[name](str(cfg.contexts[name].source), device)


def place(
    steps_SC: np.ndarray, step: int | None, offset: int, samples: int, timeline: Timeline
) -> np.ndarray:
    """One entry per encoder frame: the step that is under the frame's centre; (T, C) float32.

    Where the padded input has no signal, the nearest step stands: the last one behind it, as in the paper (section
    4.2), and the first one in the random silence that training puts before it.

    Args:
        step: Samples of a step; None for a context of the whole utterance, which stays (1, C).
        offset: Samples of silence before the signal.
        samples: N of the padded input.
        timeline: Of the encoder.
    """
    if step is None:
        return steps_SC.astype(np.float32)
    centres_T = timeline.centres(timeline.frames(timeline.feature_frames(samples)))
    index_T = np.clip((centres_T - offset) // step, 0, len(steps_SC) - 1).astype(int)
    return steps_SC[index_T].astype(np.float32)


@dataclass(frozen=True)
class RowContexts:
    """Contexts of prepared rows.

    Attributes:
        stores: Context name to its store.
        steps: Context name to samples of a step; None for one vector an utterance.
        donors: Row's ``audio_sha1`` to that of the row whose speaker embedding it gets; empty for its own.
    """

    stores: dict[str, ContextStore]
    steps: dict[str, int | None]
    donors: Mapping[str, str]

    def of(
        self, row: Mapping[str, Any], offset: int, samples: int, timeline: Timeline
    ) -> dict[str, np.ndarray]:
        """Context name to (T, C), or (1, C), of a row whose signal begins at ``offset`` of ``samples``."""
        key = row["audio_sha1"]
        return {
            name: place(
                store[self.donors.get(key, key) if name == "spk" else key],
                self.steps[name],
                offset,
                samples,
                timeline,
            )
            for name, store in self.stores.items()
        }


def stack_contexts(contexts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Contexts of several utterances as tensors (B, T, C)."""

    return {name: torch.from_numpy(np.stack([c[name] for c in contexts])) for name in contexts[0]}


def batch_contexts(
    contexts: RowContexts | None,
    items: Sequence[Mapping[str, Any]],
    samples: int,
    timeline: Timeline,
    device: Any,
) -> dict[str, Any]:
    """What the encoder's gates see of a batch besides the speech, (B, T, C) or (B, 1, C) by name.

    Args:
        contexts: Of the rows, or None where they see nothing more.
    """
    if contexts is None:
        return {}
    stacked = stack_contexts([contexts.of(item, 0, samples, timeline) for item in items])
    return {name: context.to(device) for name, context in stacked.items()}


def row_contexts(cfg: DictConfig, *parts: tuple[Any, Any]) -> RowContexts | None:
    """Contexts of prepared rows, extracted where the cache lacks them; None where the gates see none.

    Args:
        cfg: The whole configuration.
        parts: Pairs of the rows needed and of the whole split they are from, which is where wrong speakers are drawn
            from, so that a part of a split gets the same ones as the whole.
    """

    names = needed_contexts(cfg)
    if not names:
        return None
    base = Path(cfg.data_dir) / "prepared" / "contexts"
    donors: dict[str, str] = {}
    if "spk" in names and cfg.contexts.spk.shuffle:
        for whole in {id(whole): whole for _, whole in parts}.values():
            donors |= wrong_speakers(whole)
    stores: dict[str, ContextStore] = {}
    steps: dict[str, int | None] = {}
    for name in names:
        extractor = build_extractor(name, cfg, resolve_device(cfg.device))
        for rows, whole in parts:
            keys = set(rows.select_columns(["audio_sha1"])["audio_sha1"])
            if name == "spk":
                keys = {donors.get(key, key) for key in keys}
            stores[name] = open_store(base, extractor, whole, keys)
        steps[name] = extractor.step
    return RowContexts(stores, steps, donors)


def wrong_speakers(rows: Any) -> dict[str, str]:
    """For the control: to each row's ``audio_sha1`` that of another speaker's row, of the same language where it has
    one, so that the embedding is wrong about the speaker and not about the language.

    Drawn anew for each row: a fixed exchange of speakers would only rename them. It follows from the audio alone.

    Raises:
        ConfigError: There is but one speaker, or speakers are not known.
    """
    table = rows.select_columns(["audio_sha1", "speaker", "language"])
    keys, speakers, languages = (list(table[c]) for c in ("audio_sha1", "speaker", "language"))
    if None in speakers or len(set(speakers)) < 2:
        raise ConfigError(
            f"contexts.spk.shuffle=true needs rows of two speakers or more, each with its speaker named; this split "
            f"names {len(set(speakers) - {None})} speakers and leaves {speakers.count(None)} of {len(speakers)} rows "
            "without one. Use a larger part of the corpus, or a corpus with speakers."
        )
    donors = {}
    # Candidates are the same for all rows of a speaker and language.
    pools: dict[tuple[str, str], list[str]] = {}
    for key, speaker, language in zip(keys, speakers, languages, strict=True):
        pool = pools.get((speaker, language))
        if pool is None:
            others = [(k, lang) for k, s, lang in zip(keys, speakers, languages, strict=True) if s != speaker]
            pool = sorted(k for k, lang in others if lang == language) or sorted(k for k, _ in others)
            pools[speaker, language] = pool
        drawn = int.from_bytes(hashlib.sha256(f"wrong speaker of {key}".encode()).digest()[:8], "big")
        donors[key] = pool[drawn % len(pool)]
    return donors
