"""Audio in and out: levels, times and channels come back; every way to be damaged has its own message."""

from __future__ import annotations

import pickle

import av
import numpy as np
import pytest
import soundfile

from localgp.corpora.audio import (
    BeyondEnd,
    InvalidTimes,
    MissingAudio,
    NonFiniteSamples,
    Recording,
    UnreadableAudio,
    decode,
    read_audio,
    to_int16,
    write_audio,
)
from tests.corpus_helpers import tone


def burst(rate: int, seconds: float = 3.0, at: float = 1.0) -> np.ndarray:
    """Silence (N,) with a loud 0.1 s burst at one time."""
    samples = np.zeros(round(seconds * rate), dtype=np.float32)
    first = round(at * rate)
    samples[first : first + rate // 10] = 0.5 * np.sin(np.arange(rate // 10) * 2 * np.pi * 500 / rate)
    return samples


@pytest.mark.parametrize("name", ["a.m4a", "a.mp3", "a.ogg", "a.flac", "a.wav"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_round_trip_keeps_length_time_and_level(tmp_path, name, rate):
    write_audio(tmp_path / name, burst(rate), rate)
    samples = read_audio(tmp_path / name)
    assert samples.dtype == np.float32
    assert len(samples) / 16_000 == pytest.approx(3.0, abs=0.06)
    loud = np.flatnonzero(np.abs(samples) > 0.2)
    # mp3 has no edit list that says how many samples the encoder put in front
    assert loud[0] / 16_000 == pytest.approx(1.0, abs=0.06 if name == "a.mp3" else 0.005)
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.12)


def test_m4a_length_is_exact(tmp_path):
    write_audio(tmp_path / "a.m4a", tone(2.0, rate=16_000), 16_000)
    assert len(read_audio(tmp_path / "a.m4a")) == 32_000


def test_wav_at_16_khz_is_exact(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32767, 1000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    assert np.array_equal(to_int16(read_audio(tmp_path / "a.wav")), samples)


@pytest.mark.parametrize("name", ["a.m4a", "a.wav"])
def test_an_empty_channel_is_left_out_and_a_full_one_is_averaged(tmp_path, name):
    mono = burst(16_000)
    write_audio(tmp_path / f"l{name}", np.stack([mono, 0 * mono], axis=1), 16_000, bit_rate=128_000)
    write_audio(tmp_path / f"b{name}", np.stack([mono, mono / 2], axis=1), 16_000, bit_rate=128_000)
    assert np.abs(read_audio(tmp_path / f"l{name}")).max() == pytest.approx(0.5, abs=0.05)
    assert np.abs(read_audio(tmp_path / f"b{name}")).max() == pytest.approx(0.375, abs=0.05)


def test_silence_on_both_channels_stays_silence(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros((1600, 2)), 16_000)
    assert np.array_equal(read_audio(tmp_path / "a.wav"), np.zeros(1600))


def test_a_cut_is_the_stretch_of_the_whole(tmp_path):
    write_audio(tmp_path / "a.m4a", tone(4.0), 22_050)
    whole = read_audio(tmp_path / "a.m4a")
    assert np.array_equal(read_audio(tmp_path / "a.m4a", 1.25, 2.5), whole[20_000:40_000])
    assert np.array_equal(read_audio(tmp_path / "a.m4a", end=1.0), whole[:16_000])
    assert np.array_equal(read_audio(tmp_path / "a.m4a", start=3.0), whole[48_000:])
    assert len(read_audio(tmp_path / "a.m4a", 1.0, 2.0, sample_rate=8_000)) == 8_000


RECORDING = Recording(path=None, samples=np.zeros(16_000, dtype=np.float32))  # type: ignore[arg-type]


def test_an_end_just_beyond_the_recording_is_moved_back():
    cut = RECORDING.cut(0.5, 1.4)
    assert cut.clamped
    assert len(cut.samples) == 8_000
    assert not RECORDING.cut(0.5, 1.0).clamped


@pytest.mark.parametrize(
    ("start", "end", "error", "message"),
    [
        (0.5, 0.5, InvalidTimes, "no length"),
        (0.6, 0.5, InvalidTimes, "no length"),
        (-0.1, 0.5, InvalidTimes, "not negative"),
        (0.0, float("nan"), InvalidTimes, "finite"),
        (0.5, 1.6, BeyondEnd, "ends at 1.600 s, the recording has 1.000 s"),
        (1.0, 1.2, BeyondEnd, "starts at 1.000 s, the recording has 1.000 s"),
    ],
)
def test_times_that_cannot_be(start, end, error, message):
    with pytest.raises(error, match=message):
        RECORDING.cut(start, end)


def test_nan_is_found_where_it_is(tmp_path):
    samples = tone(2.0, rate=16_000)
    samples[8_000] = np.nan
    write_audio(
        tmp_path / "a.wav", np.stack([samples, tone(2.0, rate=16_000)], axis=1), 16_000, subtype="FLOAT"
    )
    with pytest.raises(NonFiniteSamples, match=r"a\.wav: NaN or infinite samples at 0\.500 s"):
        read_audio(tmp_path / "a.wav")
    assert len(read_audio(tmp_path / "a.wav", 1.0, 1.5)) == 8_000  # the rest of the file is sound


def damage(path, kind):
    if kind == "text":
        path.write_bytes(b"this is not audio\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        write_audio(path, tone(5.0), 22_050)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "cut off between packets":  # index in front, so that only the length gives it away
        write_audio(path.with_stem("whole"), tone(5.0), 22_050)
        with (
            av.open(str(path.with_stem("whole"))) as whole,
            av.open(str(path), "w", options={"movflags": "faststart"}) as container,
        ):
            stream = container.add_stream_from_template(whole.streams.audio[0])
            for packet in whole.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = stream
                    container.mux(packet)
        with av.open(str(path)) as container:
            packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
        path.write_bytes(path.read_bytes()[: sum(packets[len(packets) // 2])])
    elif kind == "no samples":
        write_audio(path, np.zeros(0), 16_000)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a.m4a", "text", "not an audio file, damaged or cut off"),
        ("a.wav", "text", "not an audio file, damaged or cut off"),
        ("a.m4a", "empty", "not an audio file, damaged or cut off"),
        ("a.m4a", "cut off", "not an audio file, damaged or cut off"),
        ("a.wav", "cut off", r"cut off; its header says 220544 bytes, the file has 110272"),
        ("a.flac", "cut off", r"cut off; its header says 5\.0 s, and 2\.\d s can be decoded"),
        ("a.m4a", "cut off between packets", r"cut off; its header says 5\.\d s, and 2\.\d s can be decoded"),
        ("a.wav", "no samples", "holds no samples"),
    ],
)
def test_unreadable_files(tmp_path, name, kind, message):
    damage(tmp_path / name, kind)
    with pytest.raises(UnreadableAudio, match=message) as caught:
        decode(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == "unreadable audio"  # it crosses processes


def test_a_video_without_sound_and_a_missing_file(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(UnreadableAudio, match="no audio stream"):
        decode(tmp_path / "a.mp4")
    with pytest.raises(MissingAudio, match="no such audio file"):
        decode(tmp_path / "b.m4a")


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"(?i)format|guess|output"):
        write_audio(tmp_path / "a.nosuchformat", tone(0.1), 16_000)
    assert list(tmp_path.iterdir()) == []
