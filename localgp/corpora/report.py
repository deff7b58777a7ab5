"""What a prepared corpus holds and what was left out, as data and as a table for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from localgp.corpora.segment import Reading

_NEEDED = {
    "train": 'training needs it; a line of a manifest belongs to it unless it says "split": "dev" or "test"',
    "dev": 'training needs it to pick its best step; "split": "dev" in a line of a manifest puts it there',
}


def preparation_report(name: str, path: Path, splits: dict[str, Any], reading: Reading) -> dict[str, Any]:
    """Counts a prepared corpus.

    Args:
        name: The corpus's.
        path: Where it lies.
        splits: Split name to prepared `datasets.Dataset`.
        reading: With ``dropped`` and ``notes`` complete.

    Returns:
        ``languages`` and ``tasks``: split to name to segments and hours (a task is ``de``, ASR, or ``de-fr``);
        languages also have ``speakers`` and ``recordings``. ``dropped``: reason to split to count. ``notes``.
        ``remarks``: kind to the number of ``recordings`` and the ``first`` one's detail.
    """
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for left_out in reading.dropped:
        dropped[left_out.reason][left_out.split or "?"] += 1
    remarks: dict[str, dict[str, Any]] = {}
    for kind, detail in reading.remarks:
        entry = remarks.setdefault(kind, {"recordings": 0, "first": detail})
        entry["recordings"] += 1
    counted = {split: _count(rows) for split, rows in splits.items()}
    return {
        "corpus": name,
        "path": str(path),
        "languages": {split: languages for split, (languages, _) in counted.items()},
        "tasks": {split: tasks for split, (_, tasks) in counted.items()},
        "dropped": {reason: dict(counts) for reason, counts in sorted(dropped.items())},
        "notes": dict(sorted(reading.notes.items())),
        "remarks": dict(sorted(remarks.items())),
    }


def _count(rows: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    columns = ["language", "seconds", "asr", "targets", "speaker", "recording"]
    table = rows.select_columns(columns).with_format(None)[:]
    languages: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    sets: dict[str, tuple[set[str], set[str]]] = {}
    for language, seconds, asr, targets, speaker, recording in zip(*(table[c] for c in columns), strict=True):
        _add(languages, language, seconds)
        speakers, recordings = sets.setdefault(language, (set(), set()))
        recordings.add(recording)
        if speaker is not None:
            speakers.add(speaker)
        for task in ([language] if asr else []) + [f"{language}-{target}" for target in targets]:
            _add(tasks, task, seconds)
    for language, (speakers, recordings) in sets.items():
        languages[language] |= {"speakers": len(speakers), "recordings": len(recordings)}
    for entry in (*languages.values(), *tasks.values()):
        entry["hours"] = round(entry["hours"], 4)
    return dict(sorted(languages.items())), dict(sorted(tasks.items()))


def _add(counts: dict[str, Any], key: str, seconds: float) -> None:
    entry = counts.setdefault(key, {"segments": 0, "hours": 0.0})
    entry["segments"] += 1
    entry["hours"] += seconds / 3600


def format_report(report: dict[str, Any]) -> str:
    """The report as a table, one column per split."""
    splits = list(report["languages"])
    columns = splits + sorted({s for counts in report["dropped"].values() for s in counts} - set(splits))
    head = "".join(f"{split:>24}" for split in splits)
    lines = [f"corpus {report['corpus']} in {report['path']}", "", f"{'spoken':<10}{head}"]
    for language in _names(report["languages"]):
        cells = [report["languages"][split].get(language) for split in splits]
        lines.append(f"{language:<10}" + "".join(_cell(c) for c in cells))
        speakers = [f"{c['speakers']} speakers" if c and c["speakers"] else "" for c in cells]
        if any(speakers):
            lines.append(" " * 10 + "".join(f"{s:>24}" for s in speakers))
    lines += ["", f"{'task':<10}{head}"]
    for task in _names(report["tasks"]):
        lines.append(f"{task:<10}" + "".join(_cell(report["tasks"][s].get(task)) for s in splits))
    if report["dropped"]:
        lines += ["", f"{'dropped':<42}" + "".join(f"{split:>8}" for split in columns)]
        for reason, counts in report["dropped"].items():
            lines.append(f"{reason:<42}" + "".join(f"{counts.get(split, 0):>8}" for split in columns))
        lines.append(f"each one with its reason in {report['path']}/dropped.jsonl")
    else:
        lines += ["", "nothing was dropped"]
    lines += [f"{count} {note}" for note, count in report["notes"].items()]
    if remarks := report.get("remarks"):
        lines += ["", f"{'mended':<42}recordings"]
        for kind, entry in remarks.items():
            lines += [f"{kind:<42}{entry['recordings']:>10}", f"  {entry['first']}"]
        lines.append(f"each one in {report['path']}/remarks.jsonl")
    lines += [f"no {split} split: {need}" for split, need in _NEEDED.items() if split not in splits]
    return "\n".join(lines)


def _names(per_split: dict[str, dict[str, Any]]) -> list[str]:
    return sorted({name for names in per_split.values() for name in names})


def _cell(entry: dict[str, Any] | None) -> str:
    return f"{'-':>24}" if entry is None else f"{entry['segments']:>13} {entry['hours']:>8.2f} h"
