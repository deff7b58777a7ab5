"""Corpora: audio files, segment lists in Europarl-ST's layout, manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mutate.damage import damage_json_line, damage_lines
from mutate.target import Target

AUDIO = ("a.wav", "a.flac", "a.m4a", "a.mp3")


def make_audio(directory: Path) -> None:
    from localgp.corpora.audio import write_audio

    time = np.arange(3 * 16_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    for name in AUDIO:
        write_audio(directory / name, tone, 16_000)


def read_recordings(directory: Path) -> int:
    from localgp.corpora.audio import decode

    for name in AUDIO:
        decode(directory / name).cut()
    return 0


def make_segments(directory: Path) -> None:
    for source in ("de", "fr", "it"):
        (directory / source / "audios").mkdir(parents=True)
        for split in ("train", "dev", "test"):
            speech = f"{source}.{split}"
            (directory / source / "audios" / f"{speech}.m4a").write_bytes(b"only its name is read here")
            for target in {"de", "fr", "it"} - {source}:
                folder = directory / source / target / split
                folder.mkdir(parents=True)
                for name, lines in {
                    "segments.lst": [f"{speech} 0.5 2.0", f"{speech} 2.5 5.0"],
                    f"segments.{source}": ["erster satz", "zweiter satz"],
                    f"segments.{target}": ["premier", "second"],
                    "speeches.lst": [speech],
                    "speakers.lst": ["Somebody"],
                }.items():
                    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_segments(directory: Path) -> int:
    from localgp.corpora.prepared import _audio_files, read_corpus
    from localgp.hub.load import base_config

    union = "corpus.asr_direction=union"
    cfg = base_config("corpus=europarl_st", f"corpus.root={directory}", union, "corpus.on_error=raise")
    reading = read_corpus(cfg.corpus)
    _audio_files(reading)
    return len(reading.dropped) + sum(reading.notes.values())


def make_manifest(directory: Path) -> None:
    rows = [
        {
            "audio": "a.wav",
            "split": split,
            "language": "de",
            "start": 0.5,
            "end": 2.0,
            "text": {"de": "ja", "fr": "oui"},
        }
        for split in ("train", "dev", "test")
    ]
    text = "".join(json.dumps({**row, "id": f"u{i}", "speaker": "s"}) + "\n" for i, row in enumerate(rows))
    (directory / "m.jsonl").write_text(text, encoding="utf-8")
    (directory / "a.wav").write_bytes(b"only its name is read here")


def read_lines(directory: Path) -> int:
    from localgp.corpora.prepared import _audio_files, read_corpus
    from localgp.hub.load import base_config

    cfg = base_config("corpus=manifest", f"corpus.manifest={directory / 'm.jsonl'}", "corpus.name=mine")
    reading = read_corpus(cfg.corpus)
    _audio_files(reading)
    return len(reading.dropped) + sum(reading.notes.values())


TARGETS = {
    "audio": Target(make_audio, read_recordings, ("a.*",), {}),
    "segments": Target(
        make_segments, read_segments, ("*/*/*/segments.*",), {"*/*/*/segments.*": damage_lines}
    ),
    "manifest": Target(make_manifest, read_lines, ("m.jsonl",), {"m.jsonl": damage_json_line}),
}
