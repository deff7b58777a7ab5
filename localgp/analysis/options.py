"""The keys ``analyze`` and ``report`` of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from localgp.errors import ConfigError

FORMATS = ("svg", "pdf", "png")


def _read(cfg: DictConfig, key: str, names: Sequence[str]) -> dict[str, Any]:
    given = OmegaConf.select(cfg, key)
    values = {} if given is None else dict(OmegaConf.to_container(given, resolve=True))  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigError(
            f"{key}.{unknown[0]} does not exist; valid: {', '.join(f'{key}.{n}' for n in names)}"
        )
    return values


@dataclass(frozen=True)
class AnalyzeOptions:
    """Attributes:
    utterance: Id of Figure 1's utterance; None takes the one with most pause between words.
    tokens: Figure 2's tokens as in the BPE vocabulary; empty takes common ones.
    swap_utterances: On how many the gates are decided again with another voice's embedding, where they see the
        speaker; 0 leaves that out.
    format: Of the figures.
    """

    utterance: str | None = None
    tokens: tuple[str, ...] = ()
    swap_utterances: int = 32
    format: str = "svg"

    @classmethod
    def of(cls, cfg: DictConfig) -> AnalyzeOptions:
        values = _read(cfg, "analyze", [f.name for f in fields(cls)])
        if values.get("tokens") is not None:
            values["tokens"] = tuple(str(t) for t in values["tokens"])
        options = cls(**values)
        if not isinstance(options.swap_utterances, int) or options.swap_utterances < 0:
            raise ConfigError(
                f"analyze.swap_utterances is {options.swap_utterances!r}; valid: 0 or more utterances"
            )
        if options.format not in FORMATS:
            raise ConfigError(f"analyze.format is {options.format!r}; valid: {', '.join(FORMATS)}")
        return options


@dataclass(frozen=True)
class ReportOptions:
    """Attributes:
    results: Where to write the tables as Markdown besides ``<exp_dir>/RESULTS.md``.
    readme: File in which what stands between the results markers is replaced.
    utterances: In the page's mask viewer, with audio.
    """

    results: str | None = None
    readme: str | None = None
    utterances: int = 6

    @classmethod
    def of(cls, cfg: DictConfig) -> ReportOptions:
        options = cls(**_read(cfg, "report", [f.name for f in fields(cls)]))
        if not isinstance(options.utterances, int) or options.utterances < 0:
            raise ConfigError(f"report.utterances is {options.utterances!r}; valid: 0 or more utterances")
        return options
