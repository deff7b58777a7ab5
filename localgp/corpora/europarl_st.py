"""Reader of Europarl-ST v1.1 as it lies on disk; the generated mini corpus has the same layout.

    <root>/<src>/audios/<speech>.m4a          whole speeches
    <root>/<src>/<tgt>/<split>/segments.lst   "<speech> <start s> <end s>", one segment a line
                               segments.<src>, segments.<tgt>     its texts, line by line
                               speeches.lst, speakers.lst         who speaks in which speech, line by line

Each direction has segments of its own. Here they are merged: one row per distinct (speech, start, end), with
the translations of all directions that have it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from localgp.corpora.languages import EUROPARL_ST
from localgp.corpora.segment import Reading, Segment
from localgp.corpora.text import normalize_text, read_lines
from localgp.errors import ConfigError, CorpusError

URL = "https://www.mllp.upv.es/europarl-st/v1.1.tar.gz"
SPLITS = ("train", "dev", "test")

_Key = tuple[str, int, int]  # speech, start and end in milliseconds


def read_europarl_st(
    root: str | Path,
    *,
    languages: Sequence[str],
    asr_direction: str = "union",
    case: str = "lower",
    on_error: str = "raise",
    train_folders: Sequence[str] = ("train",),
) -> Reading:
    """Reads the texts and times of all directions among ``languages``; audio is not touched.

    Args:
        root: The folder that holds ``de/audios``.
        languages: Spoken languages, and the targets of their translations.
        asr_direction: The target whose folder's source side is the ASR set, or ``union``: all of them. For a
            source that is itself this language, which has no such folder, the union is taken.
        case: `localgp.corpora.text.normalize_text`.
        on_error: What damage does, ``raise`` or ``skip``.
        train_folders: What makes up ``train``; ``train-noisy`` can be added, which the corpus's authors left out.

    Raises:
        ConfigError: An unknown language or option.
        CorpusError: The corpus or a direction of it is not there; with ``on_error=raise``, any damaged segment.
    """
    root = Path(root)
    _check_options(languages, asr_direction)
    if not root.is_dir() or not any((root / code).is_dir() for code in EUROPARL_ST):
        raise CorpusError(_missing_root(root, languages[0]))
    reading = Reading(on_error)
    for source in languages:
        targets = [code for code in languages if code != source]
        asr = asr_direction if asr_direction not in ("union", source) else None
        # The ASR direction comes first: where directions disagree on a transcript, its version stays.
        directions = ([asr] if asr else []) + [code for code in targets if code != asr]
        for split in SPLITS:
            merged: dict[_Key, Segment] = {}
            for target in directions:
                for folder in train_folders if split == "train" else (split,):
                    direction = _Direction(root, source, target, folder, split, case, reading)
                    for key, segment in direction.read().items():
                        # An ASR direction among the targets gives translations too; else only transcripts.
                        kept = segment.translations if target in targets else {}
                        segment = replace(segment, translations=kept, asr=asr in (None, target))
                        _merge(merged, key, segment, reading)
            reading.segments += [merged[key] for key in sorted(merged)]
    reading.check()
    return reading


def _check_options(languages: Sequence[str], asr_direction: str) -> None:
    valid = ", ".join(EUROPARL_ST)
    for code in languages:
        if code not in EUROPARL_ST:
            raise ConfigError(f"corpus.languages: unknown language {code!r}; Europarl-ST has {valid}")
    if asr_direction != "union" and asr_direction not in EUROPARL_ST:
        raise ConfigError(f"corpus.asr_direction={asr_direction!r}: valid are union, {valid}")
    if (
        not languages
        or set(languages) <= {asr_direction}
        or (len(languages) == 1 and asr_direction == "union")
    ):
        raise ConfigError(
            f"corpus.languages={list(languages)} with corpus.asr_direction={asr_direction} leaves no direction to "
            "read: name two languages, or another one as asr_direction"
        )
    if len(set(languages)) != len(languages):
        raise ConfigError(f"corpus.languages={list(languages)} names a language twice")


def _missing_root(root: Path, language: str) -> str:
    there = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else None
    found = f"it holds {', '.join(there) or 'nothing'}" if there is not None else "it does not exist"
    return (
        f"no Europarl-ST corpus at {root}: {found}\n"
        f"  Expected: {root}/{language}/audios/<speech>.m4a and {root}/{language}/<target>/train/segments.lst\n"
        f"  Download: {URL} (licence CC BY-NC 4.0: not for commercial use), and unpack it\n"
        "  Then:     corpus.root=<the unpacked v1.1 folder>, or corpus=mini for generated speech"
    )


def _merge(merged: dict[_Key, Segment], key: _Key, segment: Segment, reading: Reading) -> None:
    known = merged.get(key)
    if known is None:
        merged[key] = segment
        return
    if known.transcript != segment.transcript:
        reading.notes["transcripts that differ between directions"] += 1
    merged[key] = replace(
        known,
        translations={**known.translations, **segment.translations, **known.translations},  # known ones win
        asr=known.asr or segment.asr,
        speaker=known.speaker or segment.speaker,
    )


class _Direction:
    """One folder ``<src>/<tgt>/<split>``."""

    def __init__(
        self, root: Path, source: str, target: str, folder: str, split: str, case: str, reading: Reading
    ) -> None:
        self.root, self.source, self.target, self.split, self.case = root, source, target, split, case
        self.folder = root / source / target / folder
        self.reading = reading
        if not self.folder.is_dir():
            raise CorpusError(
                f"no {source}-{target} {folder} in the corpus: {self.folder} is missing\n"
                f"  There is: {self._inventory()}\n"
                f"  Download {URL} again if it should be there, or choose other corpus.languages or "
                "corpus.asr_direction"
            )

    def _inventory(self) -> str:
        for level in (self.folder.parent, self.folder.parent.parent, self.root):
            if level.is_dir():
                names = sorted(p.name for p in level.iterdir() if p.is_dir())
                return f"{', '.join(names) or 'nothing'} (in {level})"
        return "nothing"

    def _lines(self, name: str, expected: int | None = None) -> list[str | None]:
        if not (self.folder / name).is_file():
            raise CorpusError(
                f"{self.folder / name} is missing; the folder holds "
                f"{', '.join(sorted(p.name for p in self.folder.iterdir())) or 'nothing'}\n"
                f"  Unpack the corpus again ({URL})"
            )
        return read_lines(self.folder / name, expected)

    def read(self) -> dict[_Key, Segment]:
        """The folder's good segments; the others go to the reading."""
        times = self._lines("segments.lst")
        transcripts = self._lines(f"segments.{self.source}", len(times))
        translations = self._lines(f"segments.{self.target}", len(times))
        if not len(times) == len(transcripts) == len(translations):
            self._mismatched(len(times), len(transcripts), len(translations))
            return {}
        speakers = self._speakers()
        rows: dict[_Key, Segment] = {}
        lines: dict[_Key, int] = {}
        for number, (time, transcript, translation) in enumerate(
            zip(times, transcripts, translations, strict=True), start=1
        ):
            parsed = self._parse_times(time, number)
            if parsed is None or not self._check_utf8(transcript, translation, number):
                continue
            speech, start, end = parsed
            key = (speech, round(start * 1000), round(end * 1000))
            segment = self._segment(key, start, end, transcript or "", translation or "", number)
            if key in rows:
                self._damaged(
                    "duplicate segment",
                    f"{self.folder / 'segments.lst'}:{number}: {time!r} is the same segment as line {lines[key]}",
                    number,
                )
            elif not segment.transcript:
                detail = f"{self.folder}/segments.{self.source}:{number}: no transcript"
                self.reading.left_out(
                    "empty text", detail, utt_id=segment.utt_id, split=self.split, language=self.source
                )
            else:
                rows[key] = replace(segment, speaker=speakers.get(speech))
                lines[key] = number
        return rows

    def _segment(
        self, key: _Key, start: float, end: float, transcript: str, translation: str, number: int
    ) -> Segment:
        speech = key[0]
        recording = speech if speech.startswith(f"{self.source}.") else f"{self.source}.{speech}"
        translated = normalize_text(translation, self.case)
        if not translated:
            self.reading.notes["empty translations"] += 1
        return Segment(
            utt_id=f"{recording}_{key[1]:07d}_{key[2]:07d}",
            split=self.split,
            audio=self.root / self.source / "audios" / f"{speech}.m4a",
            start=start,
            end=end,
            language=self.source,
            speaker=None,
            transcript=normalize_text(transcript, self.case),
            translations={self.target: translated} if translated else {},
            source=f"{self.folder / 'segments.lst'}:{number}",
        )

    def _parse_times(self, line: str | None, number: int) -> tuple[str, float, float] | None:
        where = f"{self.folder / 'segments.lst'}:{number}"
        if line is None:
            self._damaged("text is not UTF-8", f"{where}: not UTF-8", number)
            return None
        try:
            speech, start, end = line.split()
            parsed = speech, float(start), float(end)
        except ValueError:
            self._damaged("invalid times", f"{where}: {line!r} is not '<speech> <start> <end>'", number)
            return None
        if not (math.isfinite(parsed[1]) and math.isfinite(parsed[2])) or not 0 <= parsed[1] < parsed[2]:
            self._damaged(
                "invalid times",
                f"{where}: {line!r}: a segment starts at 0 or later and ends after it",
                number,
            )
            return None
        return parsed

    def _check_utf8(self, transcript: str | None, translation: str | None, number: int) -> bool:
        for text, language in ((transcript, self.source), (translation, self.target)):
            if text is None:
                self._damaged(
                    "text is not UTF-8",
                    f"{self.folder}/segments.{language}:{number}: not UTF-8; convert the file (iconv -t utf-8)",
                    number,
                )
                return False
        return True

    def _speakers(self) -> dict[str, str]:
        """Speech to speaker; empty where the corpus does not say."""
        if not ((self.folder / "speeches.lst").is_file() and (self.folder / "speakers.lst").is_file()):
            self.reading.notes["folders without speakers"] += 1
            return {}
        speeches = self._lines("speeches.lst")
        speakers = self._lines("speakers.lst", len(speeches))
        if len(speeches) != len(speakers):
            detail = f"{self.folder}: speeches.lst has {len(speeches)} lines, speakers.lst {len(speakers)}"
            if self.reading.on_error == "raise":
                raise CorpusError(f"{detail}\n  Unpack the corpus again ({URL}), or set corpus.on_error=skip")
            self.reading.notes["folders without speakers"] += 1
            return {}
        pairs = zip(speeches, speakers, strict=True)
        return {speech.strip(): speaker.strip() for speech, speaker in pairs if speech and speaker}

    def _mismatched(self, times: int, transcripts: int, translations: int) -> None:
        """None of the folder's segments can be trusted: from some line on, text and times are not each other's."""
        detail = (
            f"{self.folder}: line counts differ: segments.lst {times}, segments.{self.source} {transcripts}, "
            f"segments.{self.target} {translations}"
        )
        for number in range(1, max(times, 1) + 1):
            self._damaged("mismatched line counts", detail, number)

    def _damaged(self, reason: str, detail: str, number: int) -> None:
        utt_id = f"{self.source}-{self.target}.{self.folder.name}:{number}"
        self.reading.damaged(reason, detail, utt_id=utt_id, split=self.split, language=self.source)
