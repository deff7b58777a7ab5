#!/usr/bin/env python3
"""A corpus of human speech that is small enough for two cores: the telephone prompts that Debian packages.

    python recipes/whisper/prompts.py DIR

Professional speakers read the same 500-odd prompts, one in each of French, Italian, Spanish and English (CC BY-SA 3.0):
a recording has its transcript and, from the same prompt in English, its translation. Packages come from
`apt-get download` (Debian or Ubuntu; `apt-get update` first). DIR gets wav files of 16 kHz and `manifest.jsonl`, which
`corpus=manifest` reads.

Seven tenths of the prompts are for training, one for validation, two for the test; of these, prompts of fewer than four
words go to the training too, since single words say little of a recogniser.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from localgp.corpora.audio import write_audio

RATE = 16_000
FOLDERS = {"fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "es": "es_MX_f_Allison", "en": "en_US_f_Allison"}
SHORTEST = 2000  # bytes, 0.25 s
WORDS = 4  # of a prompt for validation and test, at least


def fetch(languages: list[str], folder: Path) -> None:
    """Unpacks the packages of sounds and of their texts."""
    for language in languages:
        for package in (f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-g722"):
            subprocess.run(
                ["apt-get", "download", "-q", package], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True)


def transcripts(folder: Path, language: str) -> dict[str, str]:
    """Text by the prompt's name; without those that describe a sound, or lost a letter to a wrong encoding."""
    listed = folder / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    found = {}
    with gzip.open(listed, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, colon, text = line.strip().partition(": ")
            text = " ".join(re.sub(r"\.{2,}|[…“”]", " ", text).split()).strip(" .")
            broken = re.search(r"[\[\](){}\ufffd]|\w\?(?:\w|\s[a-zà-ù])", text)
            if colon and text and not line.startswith(";") and not broken:
                found[name] = text
    return found


def samples_of(file: Path) -> np.ndarray:
    """G.722, which has no header that would say so."""
    import av

    with av.open(str(file), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 32768


def part_of(name: str, text: str) -> str:
    """train, dev or test, by the prompt's name: the same on every machine, and for all languages but where the text is
    short."""
    tenth = int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10
    if tenth < 7 or len(text.split()) < WORDS:
        return "train"
    return "dev" if tenth == 7 else "test"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", default=",".join(FOLDERS), help="spoken ones (default: %(default)s)")
    parser.add_argument("--targets", default="en", help="translated into (default: %(default)s)")
    args = parser.parse_args()
    languages, targets = args.languages.split(","), args.targets.split(",")
    unknown = sorted({*languages, *targets} - set(FOLDERS))
    if unknown:
        print(f"error: no prompts in {', '.join(unknown)}; valid: {', '.join(FOLDERS)}", file=sys.stderr)
        return 2
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        every = list(dict.fromkeys([*languages, *targets]))
        fetch(every, root)
        texts = {language: transcripts(root, language) for language in every}
        lines, seconds = [], defaultdict(float)
        for language in languages:
            (args.folder / language).mkdir(exist_ok=True)
            sounds = root / "usr/share/asterisk/sounds" / FOLDERS[language]
            for name, text in sorted(texts[language].items()):
                file = sounds / f"{name}.g722"
                if not file.is_file() or file.stat().st_size < SHORTEST:
                    continue
                samples = samples_of(file)
                audio = f"{language}/{name.replace('/', '-')}.wav"
                write_audio(args.folder / audio, samples, RATE)
                written = {
                    other: texts[other][name] for other in (language, *targets) if name in texts[other]
                }
                part = part_of(name, text)
                seconds[language, part] += len(samples) / RATE
                lines.append(
                    {
                        "audio": audio,
                        "language": language,
                        "speaker": FOLDERS[language],
                        "split": part,
                        "id": f"{language}-{name.replace('/', '-')}",
                        "text": written,
                    }
                )
    with (args.folder / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        manifest.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for (language, part), total in sorted(seconds.items()):
        count = sum(line["language"] == language and line["split"] == part for line in lines)
        print(f"{language} {part:5} {count:4} prompts {total / 60:5.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
