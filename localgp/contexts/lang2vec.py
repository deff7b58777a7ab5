"""URIEL's language vectors (Littell et al., 2017) through the ``lang2vec`` package: what the decoder's gates see.

The package brings its tables along; nothing is downloaded. A value that URIEL does not know is imputed as the
package's ``*_knn`` sets do it, from the nearest languages by genealogy, geography and features.

Shape legend: Q sequences, C features of one language.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localgp.corpora.languages import to_iso_639_3
from localgp.errors import ConfigError

# "learned" is left out: the package keeps it as a pickle, which loading would run.
FEATURE_SETS = (
    "syntax_knn", "phonology_knn", "inventory_knn",
    "syntax_average", "phonology_average", "inventory_average",
    "syntax_wals", "phonology_wals", "syntax_sswl", "syntax_ethnologue", "phonology_ethnologue", "inventory_ethnologue",
    "inventory_phoible_aa", "inventory_phoible_gm", "inventory_phoible_saphon", "inventory_phoible_spa",
    "inventory_phoible_ph", "inventory_phoible_ra", "inventory_phoible_upsid",
    "fam", "id", "geo",
)  # fmt: skip
_KINDS = ("syntax", "phonology", "inventory")


@functools.cache
def _package() -> Any:
    """Imported on first use: it scans its tables for seconds."""
    with contextlib.redirect_stdout(io.StringIO()):
        from lang2vec import lang2vec

    return lang2vec


@functools.cache
def _known_languages() -> frozenset[str]:
    return frozenset(str(code) for code in _package().URIEL_LANGUAGES)


@functools.cache
def _feature_set(code: str, name: str) -> tuple[float, ...]:
    """One set of one language, ISO 639-3, without holes."""
    values = _read(code, name)
    kind = name.split("_")[0]
    if np.isnan(values).any() and kind in _KINDS:
        # All sets of a kind have the same features in the same order.
        values = np.where(np.isnan(values), _read(code, f"{kind}_knn"), values)
    if np.isnan(values).any():
        raise ConfigError(
            f"URIEL has no {name} values for {code!r} and none to impute them from; use {', '.join(FEATURE_SETS[:3])}"
        )
    return tuple(values.tolist())


def _read(code: str, name: str) -> np.ndarray:
    found = _package().get_features([code], name)[code]
    return np.array([np.nan if isinstance(value, str) else value for value in found], dtype=np.float64)


def language_vector(language: str, feature_sets: Sequence[str]) -> np.ndarray:
    """The vector of a language, (C,) float32.

    Args:
        language: ``de`` or ``deu``.
        feature_sets: Names of `FEATURE_SETS`; their features stand one set after the other.

    Raises:
        ConfigError: A feature set that does not exist, or a language that URIEL does not have.
    """
    _check_sets(feature_sets)
    code = to_iso_639_3(language)
    if code not in _known_languages():
        near = difflib.get_close_matches(code, sorted(_known_languages()), n=5, cutoff=0.4)
        raise ConfigError(
            f"URIEL has no language {language!r}; valid are two-letter codes (de, fr, it, …) and "
            f"URIEL's {len(_known_languages())} ISO 639-3 codes"
            + (f", the nearest of which are {', '.join(near)}" if near else ", such as deu, fra, ita")
        )
    return np.concatenate([_feature_set(code, name) for name in feature_sets]).astype(np.float32)


def _check_sets(feature_sets: Sequence[str]) -> None:
    unknown = [name for name in feature_sets if name not in FEATURE_SETS]
    if unknown or not feature_sets:
        raise ConfigError(
            f"contexts.lang2vec.features is {list(feature_sets)}; valid: one or more of {', '.join(FEATURE_SETS)}"
        )


class LanguageVectors:
    """The context ``lang2vec`` of a sequence: its source language's vector and its target language's.

    Both, since a decoder that writes French from German does other work than one that writes French from French.

    Args:
        feature_sets: Names of `FEATURE_SETS`.

    Attributes:
        size: 2 C.
    """

    def __init__(self, feature_sets: Sequence[str]) -> None:
        self.feature_sets = tuple(feature_sets)
        self.size = 2 * len(language_vector("deu", self.feature_sets))
        self._pairs: dict[str, Tensor] = {}

    def of(self, tasks: Sequence[str]) -> Tensor:
        """The vectors of both languages of each task.

        Args:
            tasks: Names, ``de`` for a transcript and ``de-fr`` for a translation.

        Returns:
            (Q, 1, 2 C).
        """
        return torch.stack([self._pair(task) for task in tasks]).unsqueeze(1)

    def _pair(self, task: str) -> Tensor:
        if task not in self._pairs:
            source, _, target = task.partition("-")
            vectors = [language_vector(code, self.feature_sets) for code in (source, target or source)]
            self._pairs[task] = torch.from_numpy(np.concatenate(vectors))
        return self._pairs[task]
