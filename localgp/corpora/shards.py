"""From segments to Arrow files: what one preparation process does with its share of the recordings.

A part is a folder with one Arrow stream per split and ``part.json`` (what was dropped); it appears under its
final name only when complete, so whatever is there after a crash can be kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from localgp.corpora.audio import Recording, Remark, decode, to_int16
from localgp.corpora.integrity import samples_digest
from localgp.corpora.segment import Reading, Segment
from localgp.errors import AudioError
from localgp.io import filled

PART_REPORT = "part.json"

# Rows per Arrow record batch: an Arrow list array counts its values in 32 bits, and 64 segments of 30 s are
# 31 million samples. Smaller batches only cost metadata.
_BATCH_ROWS = 64

# A job's seconds of segments: seconds of work, so that little is lost when stopped, and a small file.
JOB_SECONDS = 600.0


@dataclass(frozen=True)
class ShardJob:
    """One process's unit of work: some recordings with all of their segments."""

    index: int
    segments: tuple[Segment, ...]
    folder: Path  # of all parts
    max_seconds: float
    on_error: str

    @property
    def part(self) -> Path:
        return self.folder / f"{self.index:05d}"

    def is_done(self) -> bool:
        """Whether the part is there, and its files as long as they were written."""
        try:
            report = json.loads((self.part / PART_REPORT).read_text(encoding="utf-8"))
            return all((self.part / name).stat().st_size == size for name, size in report["files"].items())
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return False


def features() -> Any:
    """The columns of a prepared split."""
    from datasets import Features, List, Value

    return Features(
        {
            "utt_id": Value("string"),
            "recording": Value("string"),  # file name without its ending
            "start": Value("float64"),  # seconds into the recording
            "end": Value("float64"),
            "speaker": Value("string"),  # null where unknown
            "language": Value("string"),  # spoken, two letters
            "seconds": Value("float64"),
            "transcript": Value("string"),
            "asr": Value("bool"),  # belongs to the corpus's ASR set
            "targets": List(Value("string")),  # languages of `translations`, in the same order
            "translations": List(Value("string")),
            "audio_sha1": Value("string"),  # of the samples, first 16 hex digits
            "samples": List(Value("int16")),  # 16 kHz mono
        }
    )


def split_jobs(
    segments: Sequence[Segment], folder: Path, max_seconds: float, on_error: str
) -> list[ShardJob]:
    """Groups segments by recording and recordings to jobs, in the corpus's order.

    A job has `JOB_SECONDS` of segments, and more in a large corpus, since every part stays an open memory-mapped
    file while the data is used.
    """
    recordings: dict[Path, list[Segment]] = {}
    for segment in segments:
        recordings.setdefault(segment.audio, []).append(segment)
    seconds = {
        # A whole file's length is not known before it is decoded; 30 s is the usual most.
        audio: sum(30.0 if s.end is None else s.end - (s.start or 0.0) for s in group)
        for audio, group in recordings.items()
    }
    limit = max(JOB_SECONDS, sum(seconds.values()) / 200)
    groups: list[list[Segment]] = []
    filled = limit
    for audio, group in recordings.items():
        if filled >= limit:
            groups.append([])
            filled = 0.0
        groups[-1] += group
        filled += seconds[audio]
    return [ShardJob(i, tuple(group), folder, max_seconds, on_error) for i, group in enumerate(groups)]


def run_job(job: ShardJob, schema: Any) -> int:
    """Decodes, cuts and writes one part; returns its number of segments.

    Raises:
        AudioError: With ``on_error=raise``, the first recording or segment that cannot be read.
    """
    with filled(job.part) as temporary:
        _write_part(job, schema, temporary)
    return len(job.segments)


def _write_part(job: ShardJob, schema: Any, folder: Path) -> None:
    import pyarrow as pa

    reading = Reading(job.on_error)
    pending: dict[str, list[dict[str, Any]]] = {}
    writers: dict[str, Any] = {}

    def flush(split: str) -> None:
        if split not in writers:
            writers[split] = pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)
        writers[split].write_batch(_record_batch(pending.pop(split), schema))

    for segment, row in _rows(job, reading):
        pending.setdefault(segment.split, []).append(row)
        if len(pending[segment.split]) == _BATCH_ROWS:
            flush(segment.split)
    for split in list(pending):
        flush(split)
    for writer in writers.values():
        writer.close()
    report = {
        "dropped": [asdict(d) for d in reading.dropped],
        "notes": dict(reading.notes),
        "remarks": reading.remarks,
        "files": {path.name: path.stat().st_size for path in folder.glob("*.arrow")},
    }
    (folder / PART_REPORT).write_text(json.dumps(report), encoding="utf-8")


def _rows(job: ShardJob, reading: Reading) -> Iterator[tuple[Segment, dict[str, Any]]]:
    """The job's good segments as rows; each recording is decoded once."""
    recording: Recording | None = None
    audio: Path | None = None
    failure: AudioError | None = None
    for segment in job.segments:
        entry = {"utt_id": segment.utt_id, "split": segment.split, "language": segment.language}
        try:
            if segment.audio != audio:
                audio, recording, failure = segment.audio, None, None
                try:
                    recording = decode(segment.audio)
                    for kind, text in recording.remarks:
                        reading.remarks.append(Remark(kind, f"{segment.audio}: {text}"))
                except AudioError as error:
                    failure = error
            if recording is None:
                assert failure is not None
                raise failure
            cut = recording.cut(segment.start, segment.end)
        except AudioError as error:
            detail = f"{segment.source}: {error}" if segment.source else str(error)
            reason = getattr(error, "reason", "unreadable audio")
            reading.damaged(reason, detail, error=AudioError, **entry)
            reading.check()  # at once: the rest may take hours
            continue
        seconds = len(cut.samples) / recording.rate
        if seconds > job.max_seconds + 1e-6:
            detail = f"{segment.source}: {seconds:.2f} s; corpus.max_seconds is {job.max_seconds:g}"
            reading.left_out(f"over {job.max_seconds:g} s", detail, **entry)
            continue
        if cut.clamped:
            reading.notes["ends moved back to the end of the recording"] += 1
        yield segment, _row(segment, to_int16(cut.samples), recording.rate)


def _row(segment: Segment, samples: np.ndarray, rate: int) -> dict[str, Any]:
    start, seconds = segment.start or 0.0, len(samples) / rate
    return {
        "utt_id": segment.utt_id,
        "recording": segment.audio.stem,
        "start": start,
        "end": start + seconds,
        "speaker": segment.speaker,
        "language": segment.language,
        "seconds": seconds,
        "transcript": segment.transcript,
        "asr": segment.asr,
        "targets": list(segment.translations),
        "translations": list(segment.translations.values()),
        "audio_sha1": samples_digest(samples),
        "samples": samples,
    }


def _record_batch(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for name in schema.names:
        values = [row[name] for row in rows]
        if name == "samples":  # by whole arrays, not by sample
            offsets = np.concatenate([[0], np.cumsum([len(v) for v in values])]).astype(np.int32)
            columns.append(
                pa.ListArray.from_arrays(offsets, np.concatenate(values), type=schema.field(name).type)
            )
        else:
            columns.append(pa.array(values, type=schema.field(name).type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
