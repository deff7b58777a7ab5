"""Audio files to 16 kHz mono samples and back.

A recording is decoded once (`decode`) and cut as often as needed (`Recording.cut`); `read_audio` is the two in
one call. Everything goes through PyAV, whose wheel carries FFmpeg: m4a, mp3, wav, flac, ogg, webm, video files.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localgp.errors import AudioError

SAMPLE_RATE = 16_000  # of OWSM and of everything the corpora hand out

# Segment ends come from forced alignment over the decoded signal of another decoder: real corpora overshoot
# the recording by some frames. Up to this many seconds the end is moved back, beyond it the segment is wrong.
OVERSHOOT = 0.5

# A channel whose peak is this much (-60 dB) under the loudest one's was not connected: lossy codecs leave
# traces in channels that were all zero before.
_EMPTY_CHANNEL = 1e-3

# Containers whose header states the true duration. Others (mp3, raw aac) have it estimated from the bit rate.
_EXACT_DURATION = {"mp4", "wav", "w64", "aiff", "flac", "caf"}


class MissingAudio(AudioError):
    """There is no such file."""

    reason = "missing audio"


class UnreadableAudio(AudioError):
    """Not audio, damaged, or cut off."""

    reason = "unreadable audio"


class InvalidTimes(AudioError):
    """A segment without length, reversed, or before the recording."""

    reason = "invalid times"


class BeyondEnd(AudioError):
    """A segment that the recording does not contain."""

    reason = "segment beyond the end"


class NonFiniteSamples(AudioError):
    """NaN or infinity among a segment's samples."""

    reason = "NaN or infinite samples"


@dataclass(frozen=True)
class Cut:
    """A segment's samples (N,) and whether its end was moved back to the end of the recording."""

    samples: np.ndarray
    clamped: bool


@dataclass(frozen=True)
class Recording:
    """A decoded recording: samples (N,) float32, full scale 1."""

    path: Path
    samples: np.ndarray
    rate: int = SAMPLE_RATE

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
    """Decodes a whole recording, resampled and mixed down.

    Channels that are empty are left out of the mean: in some recordings one side of a stereo pair is silent,
    and averaging it in would halve the level.

    Raises:
        MissingAudio: No file there.
        UnreadableAudio: Not audio, no audio stream, damaged, or shorter than its header says.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise MissingAudio(f"{path}: no such audio file")
    _check_riff_size(path)
    chunks: list[np.ndarray] = []
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UnreadableAudio(f"{path}: no audio stream in this {container.format.long_name} file")
            stream = container.streams.audio[0]
            declared = None
            if (
                stream.duration
                and stream.time_base
                and _EXACT_DURATION & set(container.format.name.split(","))
            ):
                declared = float(stream.duration * stream.time_base)
            # Channels stay apart until it is known which of them are empty.
            resampler = av.AudioResampler(format="fltp", layout=None, rate=sample_rate)
            for frame in container.decode(stream):
                chunks += [out.to_ndarray() for out in resampler.resample(frame)]
            if chunks:
                chunks += [out.to_ndarray() for out in resampler.resample(None)]
    except (av.error.FFmpegError, ValueError) as error:
        decoded = sum(chunk.shape[1] for chunk in chunks) / sample_rate
        where = f"after {decoded:.1f} s" if decoded else "at its beginning"
        raise UnreadableAudio(
            f"{path}: not an audio file, damaged or cut off; decoding stops {where} "
            f"({getattr(error, 'strerror', None) or error})"
        ) from error
    samples_CN = np.concatenate(chunks, axis=1) if chunks else np.zeros((1, 0), dtype=np.float32)
    seconds = samples_CN.shape[1] / sample_rate
    if not seconds:
        raise UnreadableAudio(f"{path}: holds no samples")
    if declared is not None:
        if seconds < declared - max(1.0, 0.01 * declared):
            raise UnreadableAudio(
                f"{path}: cut off; its header says {declared:.1f} s, and {seconds:.1f} s can be decoded"
            )
        if declared < seconds <= declared + 0.2:  # the last codec frame's padding
            samples_CN = samples_CN[:, : max(1, round(declared * sample_rate))]
    return Recording(path, _mix(samples_CN), sample_rate)


def _check_riff_size(path: Path) -> None:
    """A wav file that was cut off: FFmpeg takes the file's size for its length and would not notice.

    Sizes from 2^31 on, and 0, are what a program writes that does not know the length, such as into a pipe.
    """
    with path.open("rb") as file:
        head = file.read(12)
    stated, actual = int.from_bytes(head[4:8], "little") + 8, path.stat().st_size
    if head[:4] == b"RIFF" and head[8:] == b"WAVE" and actual < 0.99 * stated and stated < 0x7FFF0000:
        raise UnreadableAudio(f"{path}: cut off; its header says {stated} bytes, the file has {actual}")


def _mix(samples_CN: np.ndarray) -> np.ndarray:
    """The mean over the channels that carry signal (C, N) -> (N,)."""
    if len(samples_CN) == 1:
        return np.ascontiguousarray(samples_CN[0])
    peak_C = np.maximum(samples_CN.max(axis=1), -samples_CN.min(axis=1))
    live_C = peak_C > _EMPTY_CHANNEL * peak_C.max()
    if not live_C.any():  # all silent, or NaN, which must stay to be found
        live_C[:] = True
    return samples_CN[live_C].mean(axis=0, dtype=np.float32)


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
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix in (".wav", ".flac"):
            import soundfile

            soundfile.write(temporary, samples, rate, subtype=subtype)
        else:
            _encode(temporary, np.asarray(samples, dtype=np.float32), rate, bit_rate)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
