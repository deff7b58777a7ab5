"""Audio files to 16 kHz mono samples and back.

A recording is decoded once (`decode`) and cut as often as needed (`Recording.cut`); `read_audio` is the two in
one call. Everything goes through PyAV, whose wheel carries FFmpeg (`localgp.corpora.stream`): m4a, mp3, wav, flac,
ogg, webm, video files.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localgp.corpora.audio_errors import (
    BeyondEnd,
    InvalidTimes,
    MissingAudio,
    NonFiniteSamples,
    Remark,
    UnreadableAudio,
)
from localgp.corpora.stream import read_sound
from localgp.io import written

__all__ = [
    "SAMPLE_RATE",
    "BeyondEnd",
    "Cut",
    "InvalidTimes",
    "MissingAudio",
    "NonFiniteSamples",
    "Recording",
    "Remark",
    "UnreadableAudio",
    "decode",
    "read_audio",
    "to_int16",
    "write_audio",
]

SAMPLE_RATE = 16_000  # of OWSM and of everything the corpora hand out

# Segment ends come from forced alignment over the decoded signal of another decoder: real corpora overshoot
# the recording by some frames. Up to this many seconds the end is moved back, beyond it the segment is wrong.
OVERSHOOT = 0.5

# Peaks: what a decoder may make of loud sound, and what no sound with full scale 1 reaches.
_LOUDEST, _MOST_OVER = 2.0, 16.0

# The share of samples over full scale from which on it is not full scale.
_MANY = 0.05


@dataclass(frozen=True)
class Cut:
    """A segment's samples (N,) and whether its end was moved back to the end of the recording."""

    samples: np.ndarray
    clamped: bool


@dataclass(frozen=True)
class Recording:
    """A decoded recording.

    Attributes:
        path: Its file.
        samples: (N,) float32, full scale 1.
        rate: Samples per second.
        remarks: What was found wrong with it and could be mended.
    """

    path: Path
    samples: np.ndarray
    rate: int = SAMPLE_RATE
    remarks: tuple[Remark, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def cut(self, start: float | None = None, end: float | None = None) -> Cut:
        """The stretch from ``start`` to ``end`` (seconds; None is the recording's beginning or end).

        Raises:
            InvalidTimes: Negative or non-finite times, no length, or the end before the start.
            BeyondEnd: The start is not inside the recording, or the end lies over `OVERSHOOT` behind it.
            NonFiniteSamples: The stretch holds NaN or infinity.
        """
        begin, finish = 0.0 if start is None else start, self.seconds if end is None else end
        if not (math.isfinite(begin) and math.isfinite(finish)) or begin < 0:
            raise InvalidTimes(
                f"{self.path}: segment {begin} s to {finish} s: times are finite and not negative"
            )
        if begin >= self.seconds:
            raise BeyondEnd(
                f"{self.path}: segment starts at {begin:.3f} s, the recording has {self.seconds:.3f} s"
            )
        first, last = round(begin * self.rate), min(round(finish * self.rate), len(self.samples))
        if last <= first:
            raise InvalidTimes(f"{self.path}: segment {begin:.3f} s to {finish:.3f} s has no length")
        if finish > self.seconds + OVERSHOOT:
            raise BeyondEnd(
                f"{self.path}: segment ends at {finish:.3f} s, the recording has {self.seconds:.3f} s"
            )
        samples = self.samples[first:last]
        if not np.isfinite(samples).all():
            bad = begin + int(np.argmin(np.isfinite(samples))) / self.rate
            raise NonFiniteSamples(f"{self.path}: NaN or infinite samples at {bad:.3f} s")
        return Cut(samples, clamped=finish > self.seconds)


def read_audio(
    path: str | Path, start: float | None = None, end: float | None = None, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """Reads a file, or the stretch of it between two times in seconds, as mono float32 (N,).

    Raises:
        AudioError: `decode` and `Recording.cut` say which one and when.
    """
    return decode(path, sample_rate).cut(start, end).samples


def decode(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Recording:
    """Decodes a whole recording, resampled, mixed down, and never over full scale.

    Raises:
        MissingAudio: No file there.
        UnreadableAudio: Not audio, no audio stream, more damage than sound, or shorter than its header says.
    """
    path = Path(path)
    samples_N, remarks = read_sound(path, sample_rate)
    samples_N, over = _to_full_scale(samples_N, path)
    return Recording(path, samples_N, sample_rate, tuple(remarks + over))


def _to_full_scale(samples_N: np.ndarray, path: Path) -> tuple[np.ndarray, list[Remark]]:
    """Scales down what is over full scale, which would be clipped later.

    Lossy codecs and resampling go over it by a little, and nobody needs to be told. A few samples far over it are
    damage, and are cut. Where there are many, the file holds whole numbers as floats.

    Raises:
        UnreadableAudio: No scale makes sound of these samples.
    """
    peak = max(-float(samples_N.min()), float(samples_N.max()))
    if peak <= 1.0:
        return samples_N, []
    size_N = np.abs(samples_N[np.isfinite(samples_N)])
    peak = float(size_N.max(initial=0.0))
    if peak > _MOST_OVER and (size_N > 1.0).mean() > _MANY:
        scale = next((2.0**bits for bits in (15, 23, 31) if peak <= 2.0**bits), None)
        if scale is None:
            raise UnreadableAudio(
                f"{path}: damaged; its samples go up to {peak:.3g}, where full scale is 1, or 2^31 in whole numbers"
            )
        detail = f"its samples go up to {peak:.6g}, where full scale is 1: divided by {scale:.0f}"
        return samples_N / np.float32(scale), [Remark("whole numbers stored as floats", detail)]
    remarks = []
    if peak > _LOUDEST:
        detail = f"{int((size_N > _LOUDEST).sum())} samples up to {peak:.3g} were cut at twice the full scale"
        remarks.append(Remark("samples far over full scale", detail))
        # Infinity is no loud sample and stays to be found.
        samples_N = np.where(np.isinf(samples_N), samples_N, samples_N.clip(-_LOUDEST, _LOUDEST))
    with np.errstate(invalid="ignore"):
        return samples_N / np.float32(max(1.0, min(peak, _LOUDEST))), remarks


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples, full scale 1, to int16, clipped; divide by 32768 to come back."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def write_audio(
    path: str | Path,
    samples: np.ndarray,
    rate: int = SAMPLE_RATE,
    *,
    bit_rate: int = 64_000,
    subtype: str | None = None,
) -> None:
    """Writes samples, (N,) or (N, C), in the format that the file name's ending says.

    Args:
        path: wav and flac go through soundfile, everything else (m4a, mp3, ogg …) through PyAV.
        samples: Float, full scale 1.
        rate: Samples per second.
        bit_rate: Of the lossy formats.
        subtype: soundfile's, for wav and flac (``FLOAT`` keeps samples exactly).
    """
    path = Path(path)
    with written(path, path.suffix) as temporary:
        if path.suffix in (".wav", ".flac"):
            import soundfile

            soundfile.write(temporary, samples, rate, subtype=subtype)
        else:
            _encode(temporary, np.asarray(samples, dtype=np.float32), rate, bit_rate)


def _encode(path: Path, samples: np.ndarray, rate: int, bit_rate: int) -> None:
    import av
    from av.audio.stream import AudioStream

    samples_CN = np.ascontiguousarray(np.atleast_2d(samples.T))
    layout = "mono" if len(samples_CN) == 1 else "stereo"
    with av.open(str(path), "w") as container:
        codec = "aac" if path.suffix in (".m4a", ".mp4") else container.default_audio_codec
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples_CN, format="fltp", layout=layout)
        frame.sample_rate = rate
        # Without a time stamp on the first frame the container gets no edit list, and a reader cannot tell the
        # encoder's priming samples (1024 for AAC) from the signal: everything would come back late.
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
