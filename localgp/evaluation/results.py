"""A run's evaluations, each kept beside the others, and which of them leads.

    <run>/evaluations/<tag>/    metrics.json, hyp/<split>.<src>-<tgt>.txt, gates/<split>.npz
    <run>/metrics.json          the leading evaluation's
    <run>/hyp/, <run>/gates/    of each split's leading evaluation

The tag says in what an evaluation differs from the plain one of its split, by the options that the run has stored:
``test``, ``dev``, ``test-first3``, ``test-beam1``. The whole of a split leads before a part of one, the test set before
the others, then the run's own weights before a checkpoint and the run's own options before others; of equals the one
made last. An evaluation made with weights that the run has no more leads before none.
"""

from __future__ import annotations

import filecmp
import glob
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from localgp.errors import CheckpointError
from localgp.evaluation.decoder_gates_file import write_decoder_gates
from localgp.evaluation.gates_file import write_gates
from localgp.io import file_digest, filled, staging, write_atomically
from localgp.locks import held
from localgp.search.options import DecodeOptions
from localgp.stored import read_metrics, run_config, section

_SPLITS = ("train", "dev", "test")  # the last one leads
_OF_NO_EFFECT = ("batch",)  # on what is written


@dataclass(frozen=True)
class Identity:
    """What decides whether two evaluations are one, but for the options.

    Attributes:
        weights: Digest of what was decoded with.
        own: Digest of the run's own weights at that time; None where it had none.
        data: Digest of the prepared split.
    """

    weights: str | None = None
    own: str | None = None
    data: str | None = None

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Identity:
        """As stored; what older evaluations have not stored is None."""
        stored = metrics.get("evaluation") or {}
        return cls(**{name: stored.get(name) for name in cls.__dataclass_fields__})

    def of_other_weights(self, now: Identity) -> bool:
        """Whether the run has changed its weights since."""
        return None not in (self.own, now.own) and self.own != now.own

    def of_other_data(self, now: Identity) -> bool:
        """Whether the data have changed since; both are of one split."""
        return None not in (self.data, now.data) and self.data != now.data


def asked_of(cfg: DictConfig) -> dict[str, Any]:
    """The options of a configuration that an evaluation depends on."""
    return {
        "decode": OmegaConf.to_container(cfg.decode, resolve=True),
        **{name: cfg.evaluate[name] for name in ("split", "limit", "normalizer", "checkpoint")},
    }


def deciding(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes nothing that is written; an option that is not stored is as it was before there was one."""
    decode = asked.get("decode")
    known = {"precision": "fp32", **asdict(DecodeOptions())}
    given = decode if isinstance(decode, dict) else {}
    return {**asked, "decode": {k: v for k, v in {**known, **given}.items() if k not in _OF_NO_EFFECT}}


def tag_of(asked: Mapping[str, Any], run: Path, identity: Identity) -> str:
    """A readable name for an evaluation, which no other of the run has.

    Args:
        asked: `asked_of` its configuration.
        run: The run's directory, whose config.yaml has the plain options; without one, these are plain.
        identity: Of the evaluation.
    """
    stored = run_config(run)
    plain = deciding({"decode": section(stored, "decode") or asked["decode"]})["decode"]
    parts = [str(asked["split"])]
    if asked.get("limit"):
        parts.append(f"first{asked['limit']}")
    parts += [f"{k}{v}" for k, v in deciding(asked)["decode"].items() if v != plain.get(k)]
    normalizer = asked.get("normalizer")
    if normalizer not in (None, section(stored, "evaluate").get("normalizer", "none")):
        parts.append(f"normalizer_{normalizer}")
    if identity.weights != identity.own and asked.get("checkpoint"):
        parts.append(f"{Path(str(asked['checkpoint'])).stem}_{str(identity.weights)[:8]}")
    return "-".join(re.sub(r"[^\w.+]", "_", part) for part in parts)


def find_evaluation(
    run: Path, tag: str, asked: Mapping[str, Any], identity: Identity
) -> dict[str, Any] | None:
    """The stored evaluation of that tag, if it was made of the same weights and data with these options."""
    try:
        metrics = read_metrics(run / "evaluations" / tag / "metrics.json")
    except (FileNotFoundError, CheckpointError):  # none, or a damaged one: it is made again
        return None
    same = deciding(metrics.get("asked") or {}) | {"checkpoint": None} == deciding(asked) | {
        "checkpoint": None
    }
    found = Identity.of(metrics)
    return metrics if same and (found.weights, found.data) == (identity.weights, identity.data) else None


def save(
    run: Path, metrics: dict[str, Any], texts: Mapping[str, str], gates: Any, decoder_gates: Any
) -> None:
    """Stores an evaluation whole or not at all, and lets it lead where it is its turn.

    Args:
        run: The run's directory.
        metrics: With ``evaluation``, its tag and `Identity`.
        texts: Content by name of the hypotheses' files.
        gates: `localgp.evaluation.gates_file.GateRecord`, or None.
        decoder_gates: `localgp.evaluation.decoder_gates_file.DecoderGateRecord`, or None.
    """

    split, tag = metrics["data"]["split"], metrics["evaluation"]["tag"]
    folder = run / "evaluations" / tag
    with filled(folder) as staging:
        for name, text in texts.items():
            write_atomically(staging / "hyp" / name, text)
        if gates is not None:
            write_gates(staging / "gates" / f"{split}.npz", gates)
        if decoder_gates is not None:
            write_decoder_gates(staging / "gates" / f"{split}.decoder.npz", decoder_gates)
        _write(staging / "metrics.json", metrics)
    settle(run, metrics)


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")


def stored_evaluations(run: Path) -> list[dict[str, Any]]:
    """The metrics of all evaluations of a run, in the order of their tags; damaged ones are left out."""
    found = []
    for path in sorted((run / "evaluations").glob("[!.]*/metrics.json")):
        try:
            metrics = read_metrics(path)
        except (FileNotFoundError, CheckpointError):
            continue
        found.append(metrics | {"evaluation": {**(metrics.get("evaluation") or {}), "tag": path.parent.name}})
    return found


def at_budgets(run: Path) -> dict[float, dict[str, Any]]:
    """The evaluations that differ from the leading one in ``decode.budget`` alone, by that."""
    try:
        lead = read_metrics(run / "metrics.json")
    except (FileNotFoundError, CheckpointError):
        return {}

    def but_budget(metrics: Mapping[str, Any]) -> Any:
        asked = deciding(metrics.get("asked") or {})
        return {**asked, "decode": {**asked["decode"], "budget": None}}, Identity.of(metrics)

    found = {}
    for metrics in stored_evaluations(run):
        budget = (metrics["decode"] or {}).get("budget")
        if budget is not None and but_budget(metrics) == but_budget(lead):
            found[float(budget)] = metrics
    return found


def comparable(run: Path, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The run's evaluations of the same weights and the same utterances, which differ in how they were decoded."""

    def scored(m: Mapping[str, Any]) -> tuple[Any, ...]:
        identity, data = Identity.of(m), m["data"]
        return identity.weights, identity.data, data["split"], data["utterances"]

    return [other for other in stored_evaluations(run) if scored(other) == scored(metrics)]


def scores_of(run: Path, weights: Path, lead: dict[str, Any]) -> dict[str, Any]:
    """The leading one of a run's evaluations of certain weights; empty where there is none.

    Args:
        lead: The run's metrics.json, which may be of other weights, as a checkpoint's or those of before.
    """
    digest = file_digest(weights)

    def fits(metrics: Mapping[str, Any]) -> bool:
        found = Identity.of(metrics).weights
        return found == digest or (found is None and not (metrics.get("asked") or {}).get("checkpoint"))

    if not lead or fits(lead):
        return lead
    others = [metrics for metrics in stored_evaluations(run) if fits(metrics)]
    return max(others, key=lambda m: _rank(m, Identity(own=digest), stale=False), default={})


def settle(run: Path, newest: Mapping[str, Any]) -> None:
    """Puts the leading evaluations where the run's readers look for them.

    Args:
        newest: The one that was asked for last, which is stored already.
    """
    with held(run / "evaluations" / ".lock", f"evaluating {run}", wait=True):
        _file_older(run)
        tag, now = newest["evaluation"]["tag"], Identity.of(newest)
        try:
            shown = (read_metrics(run / "metrics.json").get("evaluation") or {}).get("tag")
        except (FileNotFoundError, CheckpointError):
            shown = None

        def place(metrics: Mapping[str, Any]) -> tuple[Any, ...]:
            own = metrics["evaluation"]["tag"]
            stale = metrics["data"]["split"] == newest["data"]["split"]
            stale = stale and Identity.of(metrics).of_other_data(now)
            return *_rank(metrics, now, stale), own == tag, own == shown

        ranked = sorted(stored_evaluations(run), key=place, reverse=True)
        lead = ranked[0]
        if lead["evaluation"]["tag"] != shown or lead["evaluation"]["tag"] == tag:
            # Without it while its hypotheses are exchanged, so that it never stands beside another's.
            (run / "metrics.json").unlink(missing_ok=True)
        for split in {metrics["data"]["split"] for metrics in ranked}:
            first = next(metrics for metrics in ranked if metrics["data"]["split"] == split)
            for kind, pattern in _files_of(split):
                _exchange(run / "evaluations" / first["evaluation"]["tag"] / kind, run / kind, pattern)
        if not (run / "metrics.json").exists():
            _write(run / "metrics.json", lead)


def _rank(metrics: Mapping[str, Any], now: Identity, stale: bool) -> tuple[bool, bool, bool, int, bool, bool]:
    data, identity = metrics["data"], Identity.of(metrics)
    asked = metrics.get("asked") or {}
    plain = data["split"] + (f"-first{asked['limit']}" if asked.get("limit") else "")
    return (
        not identity.of_other_weights(now),
        data["whole_split"],
        not stale,
        _SPLITS.index(data["split"]) if data["split"] in _SPLITS else -1,
        identity.weights == identity.own if identity.weights else not asked.get("checkpoint"),
        metrics["evaluation"]["tag"] == plain,
    )


def _files_of(split: str) -> tuple[tuple[str, str], ...]:
    """Folders and patterns of what an evaluation writes besides its metrics."""
    name = glob.escape(split)
    return ("hyp", f"{name}.*.txt"), ("gates", f"{name}.*npz")


def _exchange(source: Path, target: Path, pattern: str) -> None:
    """Makes the target's files of a pattern those of the source, by hard links where there are any."""
    wanted = {path.name: path for path in source.glob(pattern)}
    for path in target.glob(pattern):
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        place = target / name
        if place.exists() and filecmp.cmp(path, place, shallow=False):
            continue
        with staging(place) as folder:
            try:
                os.link(path, folder / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, folder / name)
            os.replace(folder / name, place)


def _file_older(run: Path) -> None:
    """Puts an evaluation from before there were several among them, so that a new one does not replace it."""
    try:
        metrics = read_metrics(run / "metrics.json")
    except (FileNotFoundError, CheckpointError):
        return
    if metrics.get("evaluation"):
        return
    data = metrics["data"]
    asked = metrics.get("asked") or {"split": data["split"], "decode": metrics["decode"]}
    trained = (run / "checkpoints" / "model.safetensors").exists()
    weights = "older" if asked.get("checkpoint") and trained else None
    tag = tag_of({"limit": None, **asked}, run, Identity(weights=weights))
    if not data["whole_split"] and not asked.get("limit"):
        tag += "-part"
    folder = run / "evaluations" / tag
    if not folder.exists():
        for kind, pattern in _files_of(data["split"]):
            (folder / kind).mkdir(parents=True)
            _exchange(run / kind, folder / kind, pattern)
        _write(folder / "metrics.json", metrics | {"evaluation": {"tag": tag}})
