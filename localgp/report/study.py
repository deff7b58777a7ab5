"""One run's gates against its corpus: everything that `localgp.analyze` and the report say about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from localgp.errors import CheckpointError
from localgp.evaluation.gates_file import GateRecord, read_gates
from localgp.report.gate_statistics import (
    Agreement,
    GateCounts,
    Relation,
    agreement,
    relation,
    speech_frames,
    word_rates,
)
from localgp.report.runs import Evaluated
from localgp.report.utterances import Corpora

PROPERTIES = {"word_rate": "words per second of speech", "snr_db": "signal-to-noise ratio, dB"}


@dataclass
class Study:
    """An evaluated run's gates beside what is known of its utterances.

    Attributes:
        languages: Of each utterance of ``record``; None where the corpus is not prepared.
        speech_UT: True speech; None where the truth is not known.
        properties: Name (`PROPERTIES`) to its value for each utterance, NaN where unknown.
        relations: Property to module (and ``all``) to the correlation of the share kept, over real frames, with it.
    """

    run: Evaluated
    record: GateRecord
    counts: GateCounts
    languages: list[str] | None = None
    speech_UT: np.ndarray | None = None
    agreement: Agreement | None = None
    properties: dict[str, np.ndarray] = field(default_factory=dict)
    relations: dict[str, dict[str, Relation | None]] = field(default_factory=dict)

    def kept_by_language(self, region: str) -> dict[str, np.ndarray]:
        """Language to the share of the region's frames that run, by module: (M,)."""
        if self.languages is None:
            return {}
        codes = np.array(self.languages)
        return {code: self.counts.kept(region, codes == code).mean(0) for code in sorted(set(self.languages))}

    def summary(self) -> dict[str, Any]:
        """Everything as JSON can hold it (docs/analysis.md); what could not be computed is null."""
        modules = self.counts.modules
        regions = ("all", "real", *self.counts.regions)
        result: dict[str, Any] = {
            "run": self.run.key,
            "commit": self.run.metrics.get("commit"),
            "split": self.run.metrics["data"]["split"],
            "utterances": len(self.record.utt_ids),
            "seconds_per_frame": self.record.seconds_per_frame,
            "frames": {
                name: int(total)
                for name, total in zip(self.counts.regions, self.counts.frames_UR.sum(0), strict=True)
            },
            "kept": {region: _by_module(modules, self.counts.kept(region)) for region in regions},
            "kept_by_language": {
                region: {
                    language: dict(zip(modules, _plain(kept_M), strict=True))
                    for language, kept_M in self.kept_by_language(region).items()
                }
                for region in regions
            },
            "agreement": None,
            "relations": {
                name: {module: None if r is None else vars(r) for module, r in found.items()}
                for name, found in self.relations.items()
            },
        }
        if self.agreement is not None:
            a = self.agreement
            result["agreement"] = {
                "speech_share": a.speech_share,
                "energy_curve_auc": _plain(a.energy_curve_auc),
                "mask": {k: _by_module(modules, getattr(a, k)) for k in ("precision", "recall", "auc")},
                "energy_at_equal_share": {
                    k: _by_module(modules, getattr(a, f"energy_{k}")) for k in ("precision", "recall", "auc")
                },
            }
        return result


def _plain(value: Any) -> Any:
    """Rounded Python numbers, NaN as None."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value]
    return None if not math.isfinite(value) else round(float(value), 5)


def _by_module(modules: Sequence[str], value_LM: np.ndarray) -> dict[str, list[float | None]]:
    return {module: _plain(value_LM[:, m]) for m, module in enumerate(modules)}


def read_record(run: Evaluated) -> GateRecord:
    """The stored gates of a run's first evaluation.

    Raises:
        CheckpointError: If the run has no gates, or they cannot be read.
    """
    if not run.gates.exists():
        raise CheckpointError(
            f"{run.path} has no stored gates ({run.gates.name}): a dense run has none to analyse; for a gated one, "
            "evaluate again"
        )
    return read_gates(run.gates)


def study(run: Evaluated, corpora: Corpora) -> Study:
    """Reads the run's gates and all that is known about its utterances; what is unknown is left out."""
    record = read_record(run)
    utterances = corpora.of(run, record.utt_ids)
    if utterances is None:
        return Study(run, record, GateCounts.of(record, None))
    speech_UT = speech_frames(record, utterances.truth)
    result = Study(run, record, GateCounts.of(record, speech_UT), speech_UT=speech_UT)
    rows = [utterances.texts[utt_id] for utt_id in record.utt_ids]
    result.languages = [row["language"] for row in rows]
    if speech_UT is not None:
        levels_UT = corpora.levels(utterances, record)
        result.agreement = agreement(record, result.counts, speech_UT, levels_UT)
        spoken = speech_UT.sum(1) * record.seconds_per_frame
    else:
        spoken = np.array([row["seconds"] for row in rows])
    snr = [utterances.truth[u].snr_db if u in utterances.truth else None for u in record.utt_ids]
    result.properties = {
        "word_rate": word_rates([row["transcript"] for row in rows], spoken),
        "snr_db": np.array([np.nan if value is None else value for value in snr]),
    }
    kept_UM = result.counts.kept_by_utterance("real")
    result.relations = {
        name: {
            "all": relation(kept_UM.mean(1), values),
            **{module: relation(kept_UM[:, m], values) for m, module in enumerate(result.counts.modules)},
        }
        for name, values in result.properties.items()
    }
    return result


def telling_utterance(study: Study, among: Sequence[int] | None = None) -> int:
    """The utterance whose mask says most about silence: most pause between its first and last speech.

    Without the truth, the one of median length.
    """
    candidates = list(range(len(study.record.utt_ids))) if among is None else list(among)
    if study.speech_UT is None:
        lengths = np.diff(study.record.real[candidates], axis=1)[:, 0]
        return candidates[int(np.argsort(lengths, kind="stable")[len(lengths) // 2])]
    return max(candidates, key=lambda u: (inner_pause(study.speech_UT[u]), -u))  # type: ignore[index]


def inner_pause(speech_T: np.ndarray) -> int:
    """Frames without speech between the first and the last one with it.

    Examples:
        >>> inner_pause(np.array([False, True, False, False, True, False]))
        2
    """
    where = np.flatnonzero(speech_T)
    return 0 if len(where) == 0 else int(where[-1] - where[0] + 1 - len(where))
