"""Corpora as validated, cached datasets: read, decode, cut, resample once; then memory-mapped rows.

    <data_dir>/prepared/<corpus.name>-<hash>/<split>/    a Hugging Face dataset (`datasets.load_from_disk`)
                                             report.json, dropped.jsonl, remarks.jsonl

The hash covers all that the content depends on (`localgp.corpora.identity`), so a changed option or file makes another
folder and a stale one is never read. One that is damaged is made again (`localgp.corpora.integrity`). While it is being
made, the parts that are done lie in ``<corpus.name>-<hash>.partial``; stopped at any point, the next run goes on from
them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.corpora.audio_errors import Remark
from localgp.corpora.europarl_st import read_europarl_st
from localgp.corpora.identity import audio_digests, fingerprint
from localgp.corpora.integrity import damage_of, describe_split
from localgp.corpora.languages import canonical
from localgp.corpora.manifest import read_manifest
from localgp.corpora.mini import generate_corpus
from localgp.corpora.parallel import run_jobs
from localgp.corpora.report import format_report, preparation_report
from localgp.corpora.segment import Dropped, Reading
from localgp.corpora.shards import PART_REPORT, ShardJob, features, split_jobs
from localgp.errors import AudioError, ConfigError, CorpusError
from localgp.io import naming
from localgp.locks import held

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class PreparedCorpus:
    """A prepared corpus on disk."""

    path: Path
    report: dict[str, Any]
    fresh: bool  # made by this call

    def load(self) -> dict[str, Any]:
        """Its splits by name, as memory-mapped `datasets.Dataset`s.

        A row's ``samples`` is a NumPy int16 array (divide by 32768), taken from the file without a Python
        object per sample; the other columns are plain Python values.
        """
        from datasets import load_from_disk

        return {
            split: load_from_disk(str(self.path / split)).with_format(
                "numpy", columns=["samples"], output_all_columns=True, dtype="int16"
            )
            for split in SPLITS
            if (self.path / split).is_dir()
        }


def load_prepared(cfg: DictConfig) -> dict[str, Any]:
    """The splits of the configured corpus; prepared first when they are not yet."""
    prepared = prepare(cfg)
    if prepared.fresh:
        print(format_report(prepared.report), flush=True)
    return prepared.load()


def limit_per_language(rows: Any, limit: int | None) -> Any:
    """The first ``limit`` rows of each language; all where it is None."""
    if limit is None:
        return rows
    seen: dict[str, int] = {}
    keep = []
    for index, language in enumerate(rows.select_columns(["language"])):
        name = language["language"]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= limit:
            keep.append(index)
    return rows.select(keep)


def prepare(cfg: DictConfig) -> PreparedCorpus:
    """Makes the prepared corpus, or finds it made.

    Args:
        cfg: The whole configuration; ``corpus`` and ``data_dir`` are used.

    Raises:
        ConfigError: An option that cannot be.
        CorpusError: No such corpus, nothing usable in it, or, with ``corpus.on_error=raise``, damage.
    """
    corpus = cfg.corpus
    base = Path(cfg.data_dir) / "prepared"
    base.mkdir(parents=True, exist_ok=True)
    with held(base / f".{corpus.name}.lock", f"preparing corpus {corpus.name}", wait=True), naming(base):
        reading = read_corpus(corpus)
        if not reading.segments and not reading.dropped:
            raise CorpusError(f"{corpus.get('manifest') or corpus.root} is empty: it has no segment")
        digests = audio_digests(_audio_files(reading), base / f".{corpus.name}.audio.json")
        digest = fingerprint(reading, digests, float(corpus.max_seconds), corpus.on_error)
        final = base / f"{corpus.name}-{digest}"
        report = _report_of(final)
        if report is not None:
            damage = damage_of(final, report)
            if damage is None:
                # It may have been made from elsewhere, or moved since.
                return PreparedCorpus(final, report | {"path": str(final)}, fresh=False)
            print(f"{final} is damaged ({damage}); it is prepared again", file=sys.stderr, flush=True)
        started = time.monotonic()
        work = base / f"{corpus.name}-{digest}.partial"
        jobs = split_jobs(reading.segments, work / "parts", float(corpus.max_seconds), corpus.on_error)
        run_jobs(jobs, features().arrow_schema, int(corpus.workers), corpus.name)
        for job in jobs:
            part = json.loads((job.part / PART_REPORT).read_text(encoding="utf-8"))
            reading.dropped += [Dropped(**entry) for entry in part["dropped"]]
            reading.notes.update(part["notes"])
            reading.remarks += [Remark(*entry) for entry in part["remarks"]]
        report = _assemble(work / "final", jobs, reading, digest, corpus.name, final)
        report["seconds"] = round(time.monotonic() - started, 1)
        _write_json(work / "final" / "report.json", report)
        shutil.rmtree(
            final, ignore_errors=True
        )  # one that is not whole: without a report, or with a damaged one
        os.replace(work / "final", final)
        for stale in base.glob(f"{corpus.name}-*.partial"):  # ours, and what older settings left unfinished
            if re.fullmatch(rf"{re.escape(corpus.name)}-[0-9a-f]{{12}}\.partial", stale.name):
                shutil.rmtree(stale, ignore_errors=True)
        return PreparedCorpus(final, report, fresh=True)


def read_corpus(corpus: DictConfig) -> Reading:
    """Runs the configured reader: texts and times, no audio. Generates the corpus first if it is a generated one."""

    languages = None if corpus.get("languages") is None else list(corpus.languages)
    common = {"case": corpus.case, "on_error": corpus.on_error}
    if corpus.reader == "manifest":
        return read_manifest(corpus.manifest, languages=languages, **common)
    if languages is None:
        raise ConfigError("corpus.languages is null: name the languages, such as [de, fr, it]")
    languages = [canonical(code) for code in languages]
    direction = corpus.asr_direction if corpus.asr_direction == "union" else canonical(corpus.asr_direction)
    if corpus.get("generate"):
        generate_corpus(
            Path(corpus.root),
            workers=int(corpus.workers),
            languages=tuple(languages),
            **dict(corpus.generate),
        )
    folders = tuple(corpus.get("train_folders") or ("train",))
    return read_europarl_st(
        corpus.root, languages=languages, asr_direction=direction, train_folders=folders, **common
    )


def _report_of(folder: Path) -> dict[str, Any] | None:
    """The report of a prepared corpus; None where there is none to read, so that it is made again."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    return report if isinstance(report, dict) else None


def _audio_files(reading: Reading) -> list[Path]:
    """Every recording; segments without one are dropped here."""
    there: dict[Path, bool] = {}
    told: set[Path] = set()
    kept = []
    for segment in reading.segments:
        audio = segment.audio
        if audio not in there:
            try:
                there[audio] = audio.stat() is not None
            except (OSError, ValueError):  # ValueError: a damaged list's name with a NUL in it
                there[audio] = False
        if there[audio]:
            kept.append(segment)
        elif reading.on_error == "skip" or audio not in told:  # an error names each file once
            told.add(audio)
            detail = f"{segment.source}: no audio file {audio}"
            entry = {"utt_id": segment.utt_id, "split": segment.split, "language": segment.language}
            reading.damaged("missing audio", detail, error=AudioError, **entry)
    reading.check()
    reading.segments = kept
    if not kept:
        raise CorpusError(_nothing_left(reading))
    return [audio for audio, found in there.items() if found]


def _nothing_left(reading: Reading) -> str:
    reasons: dict[str, list[Dropped]] = {}
    for dropped in reading.dropped:
        reasons.setdefault(dropped.reason, []).append(dropped)
    lines = [f"{reason}: {len(group)}, first {group[0].detail}" for reason, group in reasons.items()]
    return "no usable segment in this corpus" + "".join(f"\n  {line}" for line in lines)


def _assemble(
    folder: Path, jobs: list[ShardJob], reading: Reading, digest: str, name: str, final: Path
) -> dict[str, Any]:
    """Links the parts' Arrow files into ``folder`` as Hugging Face datasets; returns the report."""
    from datasets import load_from_disk

    shutil.rmtree(folder, ignore_errors=True)
    splits: dict[str, Any] = {}
    for split in SPLITS:
        parts = [job.part / f"{split}.arrow" for job in jobs if (job.part / f"{split}.arrow").is_file()]
        if not parts:
            continue
        (folder / split).mkdir(parents=True)
        names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
        for part, target in zip(parts, names, strict=True):
            _link(part, folder / split / target)
        _describe(folder / split, split, names, f"{digest}{split}")
        splits[split] = load_from_disk(str(folder / split))
    if not splits:
        raise CorpusError(_nothing_left(reading))
    _write_lines(folder / "dropped.jsonl", [asdict(dropped) for dropped in reading.dropped])
    _write_lines(folder / "remarks.jsonl", [remark._asdict() for remark in reading.remarks])
    stored = {split: describe_split(folder / split, rows) for split, rows in splits.items()}
    return preparation_report(name, final, splits, reading) | {"stored": stored}


def _describe(folder: Path, split: str, names: list[str], fingerprint: str) -> None:
    """The two files that make Arrow files a saved dataset, as `Dataset.save_to_disk` would write them.

    `save_to_disk` itself would copy all samples once more.
    """
    from datasets import DatasetInfo

    DatasetInfo(features=features()).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    _write_json(folder / "state.json", state)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    # A path that is no UTF-8 is written with JSON's own escapes.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
