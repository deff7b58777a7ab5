"""eSpeak NG through ctypes: a sentence in a voice, with the times of its words and phones.

The library (from the wheel `espeakng-loader`, no system package) carries state from one utterance to the next:
oscillator phases, a flutter table's index, libc's random numbers. So that an utterance depends on nothing but its
arguments, the library is loaded afresh for each (6 ms) and the random numbers are seeded.
"""

from __future__ import annotations

import _ctypes
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

ESPEAK_RATE = 22050  # samples a second of every built-in voice

_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_WORD, _PHONEME, _LIST_END = 1, 7, 0  # espeak_EVENT_TYPE


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),  # a phoneme's mnemonic
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Speech:
    """What eSpeak made of a text.

    Attributes:
        samples: Float32 within (-1, 1), at ``ESPEAK_RATE``.
        words: ``(start sample, character offset)`` of each word event.
        phones: ``(start sample, end sample, mnemonic)`` of each phone, silences included as ``""``.
    """

    samples: np.ndarray
    words: list[tuple[int, int]]
    phones: list[tuple[int, int, str]]


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        data = espeakng_loader.get_data_path().encode()
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS) != ESPEAK_RATE:
            raise RuntimeError(
                f"eSpeak NG did not start with its data at {data.decode()}: reinstall espeakng-loader"
            )
        yield library
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def speak(text: str, voice: str, rate: int, pitch: int, pitch_range: int = 50) -> Speech:
    """Speaks ``text``.

    Args:
        voice: eSpeak's name, with a variant: ``de+f3``.
        rate: Words a minute, 80 to 450.
        pitch: 0 to 99, 50 is the voice's own.
        pitch_range: 0 (monotone) to 99.
    """
    chunks: list[bytes] = []
    words: list[tuple[int, int]] = []
    starts: list[tuple[int, str]] = []

    def receive(samples: int | None, count: int, events: ctypes.Array[_Event]) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        index = 0
        while events[index].type != _LIST_END:
            event = events[index]
            if event.type == _WORD:
                words.append((event.sample, event.text_position - 1))
            elif event.type == _PHONEME:
                starts.append((event.sample, event.id.decode("utf-8", "replace")))
            index += 1
        return 0

    callback = _CALLBACK(receive)
    encoded = text.encode() + b"\0"
    with _fresh_library() as library:
        ctypes.CDLL(None).srand(1)
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        library.espeak_Synth(encoded, len(encoded), 0, 1, 0, _UTF8, None, None)
    samples = np.frombuffer(b"".join(chunks), dtype="<i2").astype(np.float32) / 32768
    ends = [start for start, _ in starts[1:]] + [len(samples)]
    phones = [
        (start, end, _symbol(name)) for (start, name), end in zip(starts, ends, strict=True) if end > start
    ]
    return Speech(samples, words, phones)


def _symbol(mnemonic: str) -> str:
    """A phone without stress marks; the pauses (``_:`` and so on) become empty."""
    name = mnemonic.strip("'\",%=")
    return "" if name.startswith("_") or not name else name
