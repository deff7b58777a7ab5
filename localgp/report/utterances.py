"""What the figures need besides metrics: the utterances' audio and texts, the truth about them, the hypotheses.

Nothing here makes anything: a corpus that is not prepared is left out, never generated for a picture's sake.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from localgp.corpora.integrity import read_row, rows_digest
from localgp.errors import CheckpointError, CorpusError
from localgp.evaluation.gates_file import GateRecord
from localgp.failures import is_of_machine
from localgp.report.runs import Evaluated
from localgp.spectrogram import frame_levels
from localgp.stored import run_config, section, short

SAMPLE_RATE = 16_000  # of prepared samples


@dataclass(frozen=True)
class Truth:
    """What the corpus's maker knows about a segment; times are seconds from its start."""

    speech: tuple[tuple[float, float], ...]
    words: tuple[tuple[float, float, str], ...] = ()
    snr_db: float | None = None  # None: no noise was added, or it is unknown
    noise: str | None = None


@dataclass
class Utterances:
    """The rows of one prepared split by utterance id, with the truth where it is known.

    Attributes:
        rows: The prepared split; ``rows[i]["samples"]`` is int16 at 16 kHz.
        index: Utterance id to row number.
        texts: Utterance id to its other columns, without samples.
        truth: Utterance id to `Truth`; empty for a corpus that has none.
    """

    rows: Any
    index: dict[str, int]
    texts: dict[str, dict[str, Any]]
    truth: dict[str, Truth] = field(default_factory=dict)

    def samples(self, utt_id: str) -> np.ndarray:
        """(N,) float32, full scale 1."""
        return np.asarray(read_row(self.rows, self.index[utt_id])["samples"], dtype=np.float32) / 32768.0

    def references(self, utt_id: str) -> dict[str, str]:
        """Task name to reference text."""
        row = self.texts[utt_id]
        source = row["language"]
        translations = dict(zip(row["targets"], row["translations"], strict=True))
        return {source: row["transcript"]} | {f"{source}-{t}": text for t, text in translations.items()}


_TEXT_COLUMNS = [
    "utt_id", "recording", "start", "end", "speaker", "language", "seconds", "transcript", "targets", "translations",
]  # fmt: skip


def find_utterances(run: Evaluated, data_dir: Path, utt_ids: Iterable[str]) -> Utterances | None:
    """The newest prepared split under ``data_dir`` that holds all of ``utt_ids``, or None. Where the run has stored
    which data were scored, it is no other.

    Args:
        run: Says which corpus and split, and (by its config.yaml) where the corpus's truth may lie.
    """
    from localgp.corpora.prepared import PreparedCorpus

    wanted, scored = set(utt_ids), section(run.metrics, "evaluation").get("data")
    split = run.metrics["data"]["split"]
    pattern = re.compile(rf"{re.escape(run.corpus)}-[0-9a-f]{{12}}")
    folders = [p for p in (data_dir / "prepared").glob(f"{run.corpus}-*") if pattern.fullmatch(p.name)]
    for folder in sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True):
        if not (folder / split).is_dir():
            continue
        try:
            rows = PreparedCorpus(folder, {}, fresh=False).load()[split]
            if scored is not None and rows_digest(rows) != scored:
                continue
            texts = {row["utt_id"]: row for row in rows.select_columns(_TEXT_COLUMNS).with_format(None)}
        except Exception as error:  # damaged files make Arrow, JSON and datasets raise errors of all kinds
            if is_of_machine(error):
                raise
            print(f"left out: {folder}, which is damaged ({short(error)})", file=sys.stderr)
            continue
        if wanted <= texts.keys():
            index = {utt_id: number for number, utt_id in enumerate(texts)}
            return Utterances(rows, index, texts, read_truth(corpus_root(run, data_dir), split, texts))
    return None


def corpus_root(run: Evaluated, data_dir: Path) -> Path:
    """Where the run's configuration says that its corpus lies, if that is still there, else the usual place."""
    configured = section(run_config(run.path), "corpus").get("root")
    usual = data_dir / run.corpus
    return Path(configured) if isinstance(configured, str) and Path(configured).is_dir() else usual


def read_truth(root: Path, split: str, texts: dict[str, dict[str, Any]]) -> dict[str, Truth]:
    """Reads ``<root>/truth/<split>.<language>.jsonl`` and matches its segments by recording and start.

    Raises:
        CorpusError: A line that is not what the generator writes.
    """
    by_place = {(row["recording"], round(row["start"] * 100)): utt_id for utt_id, row in texts.items()}
    found = {}
    for path in sorted((root / "truth").glob(f"{split}.*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                utt_id = by_place.get((entry["speech"], round(entry["start"] * 100)))
                if utt_id is not None:
                    snr = entry.get("snr_db")
                    found[utt_id] = Truth(
                        speech=tuple((float(a), float(b)) for a, b in entry["speech_intervals"]),
                        words=tuple((float(a), float(b), str(w)) for a, b, w in entry["words"]),
                        snr_db=None if snr is None or not np.isfinite(snr) else float(snr),
                        noise=entry.get("noise"),
                    )
            except (ValueError, KeyError, TypeError) as error:
                raise CorpusError(
                    f"{path}:{number} is not the truth about a segment ({error!r}); generate the corpus again "
                    "(remove it, then python -m localgp.prepare), or remove the truth folder to go without"
                ) from error
    return found


def read_hypotheses(run: Evaluated) -> dict[str, dict[str, str]]:
    """Task name to utterance id to hypothesis, from the run's ``hyp/<split>.<src>-<tgt>.txt``."""
    split = run.metrics["data"]["split"]
    found: dict[str, dict[str, str]] = {}
    for path in sorted((run.path / "hyp").glob(f"{split}.*-*.txt")):
        source, _, target = path.name.removeprefix(f"{split}.").removesuffix(".txt").partition("-")
        try:
            written = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path}: not UTF-8 ({short(error)}), so it is not what evaluate wrote; evaluate that run again with "
                "evaluate.force=true"
            ) from error
        lines = (line.partition(" ") for line in written.split("\n") if line)
        found[source if source == target else f"{source}-{target}"] = {u: text for u, _, text in lines}
    return found


class Corpora:
    """Utterances and frame levels of the prepared splits, each read once for all runs that share it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._found: dict[tuple[str, str, str | None], list[Utterances]] = {}
        self._levels: dict[tuple[Any, ...], np.ndarray] = {}

    def of(self, run: Evaluated, utt_ids: Sequence[str]) -> Utterances | None:
        scored = section(run.metrics, "evaluation").get("data")
        known = self._found.setdefault((run.corpus, run.metrics["data"]["split"], scored), [])
        for utterances in known:
            if set(utt_ids) <= utterances.texts.keys():
                return utterances
        found = find_utterances(run, self.data_dir, utt_ids)
        if found is not None:
            known.append(found)
        return found

    def levels(self, utterances: Utterances, record: GateRecord) -> np.ndarray:
        """dB under every encoder frame, (U, T)."""
        centre_T = record.centres()
        rows = []
        for utt_id in record.utt_ids:
            key = (id(utterances), utt_id, len(centre_T), *centre_T[:2])
            if key not in self._levels:
                self._levels[key] = frame_levels(utterances.samples(utt_id), centre_T).astype(np.float32)
            rows.append(self._levels[key])
        return np.stack(rows)
