"""A file's sound as FFmpeg decodes it: one rate, one channel, every sample at its time in the file.

What cannot be decoded is gone behind, a change of rate or channels begins a new stretch, and where time stamps
leave a gap there is silence, so that what comes after it keeps its time.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from localgp.corpora.audio_errors import MissingAudio, Remark, UnreadableAudio
from localgp.corpora.downmix import mix
from localgp.corpora.wav import check_length
from localgp.signals import heed

# Containers whose header states the true duration. Others (mp3, raw aac) have it estimated from the bit rate.
_EXACT_DURATION = {"mp4", "wav", "w64", "aiff", "flac", "caf"}

# Containers that store when their samples are to be heard. In others the time is counted from what comes before.
_TIMED = {"mp4", "matroska", "webm", "mpegts", "mpeg", "asf", "flv", "nut", "ogg", "flac"}

# Seconds that time stamps may be away from the count of samples. Rounded stamps are off by a millisecond, clocks of
# capture devices drift by some tens of parts per million; 0.1 s is heard by nobody who reads subtitles.
_JITTER = 0.1

# Seconds of silence that are believed in one file. Damaged time stamps would fill the memory.
_MOST_SILENCE = 2 * 3600.0

# libswresample's own limit.
_MOST_CHANNELS = 64

# Hz; what sound is sampled at. A damaged header's 1 Hz would make hours of one second, its gigahertz filters of them.
_RATES = range(2000, 1_536_001)


def read_sound(path: Path, rate: int) -> tuple[np.ndarray, list[Remark]]:
    """Decodes the first audio stream of a file.

    Args:
        path: The file.
        rate: Samples per second wanted.

    Returns:
        Samples (N,) at the level that the file has, and what there is to say about them.

    Raises:
        MissingAudio: No file there.
        UnreadableAudio: Not audio, no audio stream, more damage than sound, or shorter than its header says.
    """
    import av

    with open_file(path) as file:
        believed, said = check_length(file, file.seek(0, io.SEEK_END), path)
        reader = _Reader(path, rate)
        # The library is given the open file and no protocol: no name can be taken for a protocol or an option, no
        # file for a list of other files, and nothing opens the network.
        options = {"protocol_whitelist": ""} | ({} if believed else {"ignore_length": "1"})
        try:
            with av.open(file, options=options, metadata_errors="ignore") as container:
                reader.read(container)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            heed()  # PyAV swallows what is raised while it reads from the file
            where = f"after {reader.now:.1f} s" if reader.now else "at its beginning"
            raise UnreadableAudio(
                f"{path}: not an audio file, damaged or cut off; decoding stops {where} "
                f"({getattr(error, 'strerror', None) or error})"
            ) from error
    heed()
    samples_N, remarks = reader.finish(trust_length=believed)
    return samples_N, said + remarks


def open_file(path: Path) -> io.FileIO:
    """Opens a recording for reading, under a name that means nothing to FFmpeg but for its ending.

    Raises:
        MissingAudio: No file there.
        UnreadableAudio: Something else than a file is there, or it may not be read.
    """
    try:
        # A named pipe would be waited for, a device read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableAudio(f"{path}: not a file; give the path of a recording")
        file = _File(path)
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
    ):  # ValueError: a name that the system cannot have
        raise MissingAudio(f"{path}: no such audio file") from None
    except PermissionError:
        raise UnreadableAudio(
            f"{path}: this user may not read it; change its permissions (chmod u+r), or copy it"
        ) from None
    except OSError as error:
        raise UnreadableAudio(f"{path}: cannot be opened ({error.strerror})") from error
    file.name = "recording" + re.sub(r"[^.A-Za-z0-9]", "", path.suffix)
    return file


class _File(io.FileIO):
    """A damaged container may send the library before the file's beginning: an answer, not an exception."""

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return super().seek(place, whence)
        except (OSError, OverflowError):
            return -1


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    # After the last packet PyAV stumbles over streams that appeared behind the file's beginning.
    with contextlib.suppress(IndexError):
        yield from container.demux(stream)


class _Reader:
    """Frames to one mono signal, as they come.

    Attributes:
        now: Seconds of sound so far.
    """

    def __init__(self, path: Path, rate: int) -> None:
        self.path, self.rate = path, rate
        self.now = 0.0
        self.stated: float | None = None  # where the file's header says that its sound ends
        self._zero: float | None = None  # the time stamp that is the file's beginning
        self._format: tuple[Any, ...] | None = None
        self._names: list[str] = []
        self._resampler: Any = None
        self._chunks: list[np.ndarray] = []  # (N, C) each, of the same format
        self._stretches: list[np.ndarray] = []  # (N,) each, mixed
        self._mixed: list[Remark] = []
        self._changes: list[str] = []
        self._gaps: list[tuple[float, float]] = []  # seconds: where, how long
        self._jumps = 0
        self._cut = 0.0  # seconds that are missing before the file's beginning
        self._good = self._bad = 0
        self._bad_at: float | None = None

    def read(self, container: Any) -> None:
        """Decodes a container's first audio stream."""
        if not container.streams.audio:
            raise UnreadableAudio(f"{self.path}: no audio stream in this {container.format.long_name} file")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise UnreadableAudio(f"{self.path}: damaged, or of a codec that FFmpeg does not have")
        kinds = set(container.format.name.split(","))
        timed = bool(_TIMED & kinds)
        # The video's beginning, where it is first, is the beginning of the file.
        if timed and container.start_time is not None:
            self._zero = container.start_time / 1e6
            self._cut = self._zero if "ogg" in kinds else 0.0
        if stream.duration and stream.time_base and _EXACT_DURATION & kinds:
            first = (
                0.0 if self._zero is None else float((stream.start_time or 0) * stream.time_base) - self._zero
            )
            self.stated = first + float(stream.duration * stream.time_base)
        for frame in self._frames(container, stream):
            self._place(frame, frame.time if timed else None)
        self._end_stretch()

    def _frames(self, container: Any, stream: Any) -> Iterator[Any]:
        """What can be decoded; packets that cannot are counted."""
        import av

        for packet in _packets(container, stream):
            if not packet.size:
                continue  # to the decoder it would be the end of everything
            try:
                yield from packet.decode()
                self._good += 1
            except av.error.FFmpegError:
                self._bad += 1
                self._bad_at = self.now if self._bad_at is None else self._bad_at
        with contextlib.suppress(av.error.FFmpegError):
            yield from stream.codec_context.decode(None)

    def _place(self, frame: Any, time: float | None) -> None:
        """Appends a frame, and silence before it where its time stamp says so."""
        format = (frame.sample_rate, frame.layout.name, frame.format.name)
        if format != self._format:
            if self._format is not None:
                self._changes.append(f"{self.now:.1f} s")
            self._end_stretch()
            self._begin_stretch(frame, format)
        if time is not None:
            if self._zero is None:
                self._zero = time
            late = time - self._zero - self.now
            if late > _JITTER and late + sum(seconds for _, seconds in self._gaps) <= _MOST_SILENCE:
                self._silence(late)
            elif abs(late) > _JITTER:  # stamps begin anew, as in joined files, or jump beyond belief
                self._jumps += late > 0
                self._zero += late
        self._chunks += self._resampled(frame)
        self.now += frame.samples / frame.sample_rate

    def _begin_stretch(self, frame: Any, format: tuple[Any, ...]) -> None:
        self._format = format
        self._names = [channel.name for channel in frame.layout.channels]
        if len(self._names) > _MOST_CHANNELS:
            raise UnreadableAudio(
                f"{self.path}: {len(self._names)} channels; up to {_MOST_CHANNELS} are read: mix it down first"
            )
        if frame.sample_rate not in _RATES:
            raise UnreadableAudio(
                f"{self.path}: damaged; its header says {frame.sample_rate} samples a second"
            )
        self._new_resampler()

    def _new_resampler(self) -> None:
        import av

        # Channels stay apart until it is known which of them are empty or opposed. Packed: PyAV reads the planes of
        # eight and more beyond their table, which ends the process.
        self._resampler = av.AudioResampler(format="flt", layout=None, rate=self.rate)

    def _resampled(self, frame: Any) -> list[np.ndarray]:
        outs = self._resampler.resample(frame)
        return [out.to_ndarray().reshape(-1, len(self._names)) for out in outs]

    def _silence(self, seconds: float) -> None:
        self._gaps.append((self.now, seconds))
        self._chunks += self._resampled(None) if self._chunks else []
        self._new_resampler()
        there = sum(len(chunk_NC) for chunk_NC in (*self._stretches, *self._chunks))
        self.now += seconds
        missing = max(0, round(self.now * self.rate) - there)
        self._chunks.append(np.zeros((missing, len(self._names)), dtype=np.float32))

    def _end_stretch(self) -> None:
        if self._resampler is None:
            return
        self._chunks += self._resampled(None)
        if self._chunks:
            mono_N, remarks = mix(np.concatenate(self._chunks), self._names)
            self._stretches.append(mono_N)
            self._mixed += [remark for remark in remarks if remark not in self._mixed]
        self._chunks, self._resampler = [], None

    def finish(self, *, trust_length: bool) -> tuple[np.ndarray, list[Remark]]:
        """The whole signal (N,) and what there is to say.

        Raises:
            UnreadableAudio: No samples, more damage than sound, or fewer than the header says.
        """
        if self._bad > self._good:
            raise UnreadableAudio(
                f"{self.path}: damaged; {self._bad} of its {self._bad + self._good} packets cannot be decoded"
            )
        samples_N = np.concatenate(self._stretches) if self._stretches else np.zeros(0, dtype=np.float32)
        seconds = len(samples_N) / self.rate
        if not seconds:
            raise UnreadableAudio(f"{self.path}: holds no samples")
        stated = self.stated if trust_length else None
        if stated is not None:
            if seconds < stated - max(1.0, 0.01 * stated):
                raise UnreadableAudio(
                    f"{self.path}: cut off; its header says {stated:.1f} s, and {seconds:.1f} s can be decoded"
                )
            if stated < seconds <= stated + 0.2:  # the last codec frame's padding
                samples_N = samples_N[: max(1, round(stated * self.rate))]
        return samples_N, self._remarks()

    def _remarks(self) -> list[Remark]:
        remarks = list(self._mixed)
        if self._bad:
            found = f"{self._bad} of {self._bad + self._good} packets cannot be decoded and are left out"
            remarks.append(
                Remark("packets that cannot be decoded", f"{found}, the first at {self._bad_at:.1f} s")
            )
        if self._changes:
            places = ", ".join(self._changes[:5]) + (", …" if len(self._changes) > 5 else "")
            remarks.append(Remark("changes of rate or channels", f"rate or channels change at {places}"))
        gaps = [
            gap for gap in self._gaps if gap[0]
        ]  # that sound begins after the picture is nothing to report
        if gaps:
            place, seconds = max(gaps, key=lambda gap: gap[1])
            number = "a gap" if len(gaps) == 1 else f"{len(gaps)} gaps, the longest"
            detail = f"{number} of {seconds:.1f} s at {place:.1f} s by its time stamps: silence there"
            remarks.append(Remark("gaps in the time stamps", detail))
        if self._cut > _JITTER:
            detail = f"its first time stamp is {self._cut:.1f} s: what was before is not in the file"
            remarks.append(Remark("beginnings that may be missing", detail))
        if self._jumps:
            detail = f"{self._jumps} time stamps jump by hours; the sound before and behind is joined"
            remarks.append(Remark("time stamps beyond belief", detail))
        return remarks
