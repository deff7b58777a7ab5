"""A small corpus in Europarl-ST's layout, and configurations for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from localgp.cli import CONF_DIR
from localgp.corpora.audio import write_audio

RATE = 22_050
Row = tuple[str, float, float, str, str]  # speech, start, end, transcript, translation


def tone(seconds: float, hertz: float = 220.0, rate: int = RATE) -> np.ndarray:
    """A tone (N,) whose level rises with time, so that a stretch of it can be told from another."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * time / seconds * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write_direction(
    root: Path, source: str, target: str, split: str, rows: list[Row], suffix: str = "\n"
) -> Path:
    """Writes one <src>/<tgt>/<split> folder; speakers are "Speaker <speech>"."""
    folder = root / source / target / split
    folder.mkdir(parents=True, exist_ok=True)
    speeches = list(dict.fromkeys(row[0] for row in rows))
    files = {
        "segments.lst": [f"{speech} {start} {end}" for speech, start, end, _, _ in rows],
        f"segments.{source}": [row[3] for row in rows],
        f"segments.{target}": [row[4] for row in rows],
        "speeches.lst": speeches,
        "speakers.lst": [f"Speaker {speech}" for speech in speeches],
    }
    for name, lines in files.items():
        (folder / name).write_bytes("".join(line + suffix for line in lines).encode())
    return folder


def write_corpus(root: Path, languages: tuple[str, ...] = ("de", "fr", "it"), audio: bool = True) -> Path:
    """All directions; per language and split one speech of 6 s with the segments 0.5-2 s and 2.5-5 s."""
    for source in languages:
        for split in ("train", "dev", "test"):
            speech = f"{source}.{split}"
            if audio:
                (root / source / "audios").mkdir(parents=True, exist_ok=True)
                write_audio(root / source / "audios" / f"{speech}.m4a", tone(6.0), RATE)
            for target in languages:
                if target != source:
                    rows = [
                        (speech, 0.5, 2.0, f"Erster Satz, {source}.", f"First {target}."),
                        (speech, 2.5, 5.0, f"Zweiter Satz, {source}!", f"Second {target}."),
                    ]
                    write_direction(root, source, target, split, rows)
    return root


def corpus_config(tmp_path: Path, *overrides: str, corpus: str = "europarl_st"):
    """The composed configuration with its data below ``tmp_path``."""
    base = [f"corpus={corpus}", f"data_dir={tmp_path / 'data'}", "corpus.workers=1"]
    if corpus == "europarl_st":
        base += [f"corpus.root={tmp_path / 'corpus'}", "corpus.asr_direction=union", "corpus.on_error=raise"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=[*base, *overrides])
