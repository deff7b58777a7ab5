"""The speakers of the mini corpus: eSpeak voice variants with a pitch and a speed of their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from localgp.corpora.mini.lexicon import LANGUAGES
from localgp.errors import ConfigError

# Variants that sound like people; robots, whispers and croaks are left out, and so are the variants with breath
# (f2, f3, f5, Alicia, ...), whose noise differs from run to run. The groups share none, so a test speaker's timbre
# was never heard in training, in any language.
_VARIANTS = {
    "pretrain": [
        "m1",
        "f1",
        "m2",
        "aunty",
        "m4",
        "Mario",
        "anika",
        "Denis",
        "shelby",
        "max",
        "steph",
        "adam",
    ],
    "train": ["m3", "steph2", "m5", "Andrea", "Gene", "Lee", "linda", "Marco", "Jacky", "robert"],
    "dev": ["m6", "Annie"],
    "test": ["m7", "f4", "Michael", "belinda"],
}
GROUPS = tuple(_VARIANTS)


@dataclass(frozen=True)
class Voice:
    """How a speaker speaks: eSpeak's voice, the rate's factor, the pitch and its range."""

    name: str
    tempo: float
    pitch: int
    pitch_range: int


def speakers(language: str, group: str) -> tuple[str, ...]:
    """Speaker identities (``de-m3``) of a group: ``pretrain``, ``train``, ``dev`` or ``test``."""
    if language not in LANGUAGES:
        raise ConfigError(
            f"language {language!r} is not in the mini corpus; valid are {', '.join(LANGUAGES)}"
        )
    if group not in _VARIANTS:
        raise ConfigError(f"speaker group {group!r} does not exist; valid are {', '.join(GROUPS)}")
    return tuple(f"{language}-{variant}" for variant in _VARIANTS[group])


def voice_of(speaker: str) -> Voice:
    """The voice of a speaker; pitch and speed follow from the name."""
    language, _, variant = speaker.partition("-")
    if not any(variant in names for names in _VARIANTS.values()) or language not in LANGUAGES:
        raise ConfigError(f"speaker {speaker!r} is not in the mini corpus; see localgp.corpora.mini.speakers")
    pace = 1.08 if language == "de" else 1.0  # eSpeak counts words, and German ones are long
    digest = hashlib.sha256(speaker.encode()).digest()
    return Voice(
        name=f"{language}+{variant}",
        tempo=pace * (0.92 + 0.16 * digest[0] / 255),
        pitch=36 + digest[1] * 28 // 255,
        pitch_range=35 + digest[2] * 40 // 255,
    )
