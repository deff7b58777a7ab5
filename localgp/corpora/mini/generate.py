"""Writes the mini corpus in the layout of Europarl-ST v1.1.

<root>/<src>/audios/<speech>.m4a            one speaker, about ten sentences
<root>/<src>/<tgt>/<split>/segments.lst     and the other lists that `localgp.corpora.europarl_st` reads
<root>/truth/<split>.<src>.jsonl            what the reader does not see: one object a segment with its
                                            speech, start, end, speaker, noise, snr_db, and, in seconds from
                                            the segment's start, words [start, end, word] and
                                            speech_intervals [start, end]
<root>/mini.json                            what it was made from; written last
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from localgp.corpora.mini.lexicon import LANGUAGES
from localgp.corpora.mini.recording import SpeechJob, Spoken, make_speech
from localgp.corpora.mini.speakers import speakers
from localgp.corpora.mini.utterance import generator, map_in_processes
from localgp.errors import ConfigError, CorpusError
from localgp.io import filled, sweep

VERSION = 2  # another number makes every generated corpus out of date
SPEC_FILE = "mini.json"
_SEGMENTS_PER_SPEECH = (8, 12)
_LEFT_OUT = 0.04  # share of the segments that a direction lacks, each its own


@dataclass(frozen=True)
class MiniSpec:
    """What a generated corpus is made from; the segments are per language."""

    seed: int
    train_segments: int
    dev_segments: int
    test_segments: int
    languages: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        problems = []
        if not set(self.languages) <= set(LANGUAGES) or len(set(self.languages)) != len(self.languages):
            problems.append(f"languages={list(self.languages)}: distinct ones of {', '.join(LANGUAGES)}")
        if len(self.languages) < 2:
            problems.append(
                f"languages={list(self.languages)}: two or more, since every folder is a translation"
            )
        if problems:
            raise ConfigError("corpus.generate: " + "; ".join(problems))

    def describe(self) -> dict[str, Any]:
        """The contents of ``mini.json``."""
        words = hashlib.sha256()
        for file in ("lexicon.yaml", "phrases.yaml"):
            words.update(resources.files(__package__).joinpath(file).read_bytes())
        fields = {**asdict(self), "languages": list(self.languages)}
        return {"corpus": "mini", "version": VERSION, "words": words.hexdigest()[:16], **fields}


def generate_corpus(
    root: Path,
    *,
    seed: int,
    train_segments: int,
    dev_segments: int,
    test_segments: int,
    workers: int,
    languages: Sequence[str] = LANGUAGES,
) -> None:
    """Generates the corpus at ``root``, unless the same one is there already.

    Args:
        seed: Everything follows from it; the number of workers changes nothing.
        train_segments: Per language, as are those of dev and test.
        workers: Processes.

    Raises:
        ConfigError: A count or a language that cannot be.
        CorpusError: ``root`` holds something that is not a generated corpus; it is left as it is.
    """
    root = Path(root)
    spec = MiniSpec(seed, train_segments, dev_segments, test_segments, tuple(languages))
    described = json.dumps(spec.describe(), indent=2) + "\n"
    if (root / SPEC_FILE).is_file():
        if (root / SPEC_FILE).read_text(encoding="utf-8") == described:
            return
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CorpusError(
            f"{root} holds something that is not a generated corpus (no {SPEC_FILE}): it is not overwritten\n"
            "  Set corpus.root to a folder that is empty or not there yet, or remove this one yourself."
        )
    sweep(root.parent, root.name)
    with filled(root) as partial:
        _write(partial, spec, workers)
        (partial / SPEC_FILE).write_text(described, encoding="utf-8")


def _write(root: Path, spec: MiniSpec, workers: int) -> None:
    jobs = plan_speeches(spec, root)
    for language in spec.languages:
        (root / language / "audios").mkdir(parents=True)
    made = _run(jobs, workers)
    (root / "truth").mkdir()
    for language in spec.languages:
        for split in ("train", "dev", "test"):
            speeches = [
                (j, m) for j, m in zip(jobs, made, strict=True) if (j.language, j.split) == (language, split)
            ]
            segments = [segment for _, spoken in speeches for segment in spoken]
            _write_truth(root / "truth" / f"{split}.{language}.jsonl", segments)
            targets = [target for target in spec.languages if target != language]
            for target in targets:
                chosen = [segment for segment in segments if target in segment.targets]
                _write_direction(root / language / target / split, language, target, chosen)


def plan_speeches(spec: MiniSpec, root: Path) -> list[SpeechJob]:
    """Which speeches there are, who gives them, how many segments each has."""
    jobs: list[SpeechJob] = []
    for language in spec.languages:
        targets = tuple(target for target in spec.languages if target != language)
        for split in ("train", "dev", "test"):
            rng = generator(f"{spec.seed}/plan/{language}/{split}")
            left, voices = getattr(spec, f"{split}_segments"), speakers(language, split)
            while left > 0:
                count = min(left, int(rng.integers(_SEGMENTS_PER_SPEECH[0], _SEGMENTS_PER_SPEECH[1] + 1)))
                left -= count
                number = len(jobs)
                date = f"{rng.integers(2008, 2013)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}"
                name = f"{language}.{date}.{rng.integers(2, 40)}.{rng.integers(1, 5)}-{number:03d}"
                speaker = voices[number % len(voices)]
                jobs.append(
                    SpeechJob(
                        root,
                        name,
                        f"{spec.seed}/{split}/{name}",
                        language,
                        split,
                        speaker,
                        count,
                        targets,
                        _LEFT_OUT,
                    )
                )
    return jobs


def _run(jobs: Sequence[SpeechJob], workers: int) -> list[list[Spoken]]:
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file gets few lines
    made = []
    with tqdm(
        total=sum(job.count for job in jobs), desc="generate mini", unit="segment", mininterval=interval
    ) as bar:
        for spoken in map_in_processes(make_speech, jobs, workers) if workers > 1 else map(make_speech, jobs):
            made.append(spoken)
            bar.update(len(spoken))
    return made


def _write_truth(path: Path, segments: Sequence[Spoken]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for segment in segments:
            file.write(json.dumps(segment.truth, ensure_ascii=False) + "\n")


def _write_direction(folder: Path, source: str, target: str, segments: Sequence[Spoken]) -> None:
    """The eight lists of one direction and split."""
    folder.mkdir(parents=True)
    speeches: dict[str, list[Spoken]] = {}
    for segment in segments:
        speeches.setdefault(segment.speech, []).append(segment)
    lists = {
        "segments.lst": [f"{segment.speech} {segment.start:.2f} {segment.end:.2f}" for segment in segments],
        "speeches.lst": list(speeches),
        "speakers.lst": [parts[0].truth["speaker"] for parts in speeches.values()],
        "url.lst": [f"https://mini.invalid/{name}" for name in speeches],
    }
    for language in (source, target):
        lists[f"segments.{language}"] = [segment.texts[language] for segment in segments]
        lists[f"speeches.{language}"] = [
            " ".join(part.texts[language] for part in parts) for parts in speeches.values()
        ]
    for name, lines in lists.items():
        (folder / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
