"""Whether a wav file's header states the length that the file has.

FFmpeg believes the header where it states too little, and the file where it states too much, without a word in
either case. Recorders that crashed and programs that write into a pipe leave lengths that were never filled in.
"""

from __future__ import annotations

from typing import BinaryIO

from localgp.corpora.audio_errors import Remark, UnreadableAudio

# From here on no length is believed: 2^31 - 1, 2^32 - 1 and their neighbours stand for "not known".
_UNKNOWN = 0x7FFF0000

_LEAST_REST = 4096  # bytes; a shorter rest behind the samples is a tag that is no chunk, not sound


def check_length(file: BinaryIO, size: int, path: object) -> tuple[bool, list[Remark]]:
    """Compares the length of a wav file's samples in its header with the file.

    Args:
        file: Open for reading; it is left at its beginning.
        size: The file's, in bytes.
        path: For messages.

    Returns:
        Whether the header's length can be believed (else the samples reach to the end of the file), and what there is
        to say; of a length that was left open, nothing.

    Raises:
        UnreadableAudio: The file was cut off.
    """
    file.seek(0)
    head = file.read(12)
    place = 12
    stated = None
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        while place + 8 <= size:
            file.seek(place)
            name, length = _chunk(file)
            place += 8
            if name == b"data":
                stated = length
                break
            place += length + length % 2
    if stated is None:
        file.seek(0)
        return True, []
    there = size - place
    whole = stated <= there and _is_chunks(file, place + stated + stated % 2, size)
    file.seek(0)
    if whole or (stated > there >= 0.99 * stated and there):
        return True, []
    if _is_placeholder(stated):
        return False, []
    if stated > there:
        raise UnreadableAudio(f"{path}: cut off; its header says {place + stated} bytes, the file has {size}")
    detail = f"its header says {stated} bytes of samples, and it has {there}: read to its end"
    return False, [Remark("wav headers that state too little", detail)]


def _chunk(file: BinaryIO) -> tuple[bytes, int]:
    head = file.read(8)
    return head[:4], int.from_bytes(head[4:], "little")


def _is_chunks(file: BinaryIO, place: int, size: int) -> bool:
    """Whether what follows the samples is chunks up to the end of the file, as it should be, or next to nothing."""
    if size - place < _LEAST_REST:
        return True
    while place + 8 <= size:
        file.seek(place)
        name, length = _chunk(file)
        if name == b"RIFF" or not (name.isascii() and name.decode("ascii").isprintable()):
            return False
        place += 8 + length + length % 2
    return place <= size + 1


def _is_placeholder(stated: int) -> bool:
    """0, about 2^31 and above, and the round numbers that some programs write for "very long"."""
    return not stated or stated >= _UNKNOWN or (stated >= 10**9 and stated % 10**6 == 0)
