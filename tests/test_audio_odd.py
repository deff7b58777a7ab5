"""Recordings that are not as they should be: read as far as they can be, with a remark on what was mended."""

from __future__ import annotations

import shutil
import socket
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from localgp.corpora import stream
from localgp.corpora.audio import MissingAudio, UnreadableAudio, decode
from localgp.corpora.downmix import mix

RATE = 16_000
SIGNAL = (0.3 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 440 / RATE)).astype(np.float32)


def kinds(recording) -> list[str]:
    return [remark.kind for remark in recording.remarks]


def encode(
    path: Path, samples_CN: np.ndarray, codec: str, layout: str, rate: int = RATE, **options: str
) -> Path:
    """Writes with any codec, layout and rate."""
    with av.open(str(path), "w", options=options) as container:
        out = container.add_stream(codec, rate=rate, layout=layout)
        packed = np.ascontiguousarray(samples_CN.T, dtype=np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(out.codec_context.format.name, layout, rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(out.encode(piece))
        container.mux(out.encode(None))
    return path


# --- channels


@pytest.mark.parametrize("channels", [3, 7, 8, 9, 24, 64])
def test_any_number_of_channels(tmp_path, channels):
    soundfile.write(tmp_path / "a.wav", np.stack([SIGNAL] * channels, axis=1), RATE)
    assert np.abs(decode(tmp_path / "a.wav").samples - SIGNAL).max() < 1e-3


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.flac", "flac"), ("a.ogg", "libopus")])
def test_eight_channels_of_compressed_formats(tmp_path, name, codec):
    rate = 48_000 if codec == "libopus" else RATE
    encode(tmp_path / name, np.stack([SIGNAL] * 8), codec, "7.1", rate)
    recording = decode(tmp_path / name)
    assert recording.seconds == pytest.approx(2.0, abs=0.05)
    assert np.abs(recording.samples).max() == pytest.approx(np.abs(SIGNAL).max(), rel=0.2)


def test_more_channels_than_can_be_read(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 65)), RATE)
    with pytest.raises(UnreadableAudio, match=r"65 channels; up to 64 are read"):
        decode(tmp_path / "a.wav")


@pytest.mark.parametrize("other", [-SIGNAL, -0.5 * SIGNAL, -SIGNAL + 0.05])
def test_a_channel_with_its_sign_turned_does_not_cancel_the_other(tmp_path, other):
    soundfile.write(tmp_path / "a.wav", np.stack([SIGNAL, other], axis=1), RATE)
    recording = decode(tmp_path / "a.wav")
    assert np.abs(recording.samples).max() > 0.9 * np.abs(SIGNAL).max()
    assert kinds(recording) == ["channels of opposed phases"]
    assert "channel 2 of 2" in recording.remarks[0].detail


def test_independent_channels_are_averaged():
    generator = np.random.default_rng(0)
    samples_NC = generator.standard_normal((RATE, 2), dtype=np.float32)
    mono_N, remarks = mix(samples_NC, ["FL", "FR"])
    assert np.allclose(mono_N, samples_NC.mean(axis=1), atol=1e-6)
    assert remarks == []


@pytest.mark.parametrize(
    ("names", "channels", "expected"),
    [
        # Front left and right, centre, low-frequency effects, back left and right.
        (["FL", "FR", "FC", "LFE", "BL", "BR"], "1.1.1.", (0.5**0.5 + 1 + 0.5) / (0.5**0.5 + 1 + 0.5)),
        (["FL", "FR", "FC", "LFE", "BL", "BR"], "..1L..", 1.0),  # nothing but the centre, and rumble
        (["FL", "FR", "FC", "LFE", "BL", "BR"], "ii1L..", 1.0 / (1 + 2 * 0.5**0.5)),
        (["FL", "FR", "FC", "LFE", "SL", "SR"], "..1Lii", 0.5),
        (["NONE"] * 6, "..1L..", 1.0),  # unnamed: the same by convention
        (["NONE"] * 4, "1111", 1.0),
        (["FL", "FR", "FC", "LFE"], "...L", None),  # rumble alone is all there is
    ],
)
def test_surround_is_mixed_by_weight_and_without_rumble(names, channels, expected):
    generator = np.random.default_rng(1)
    other = generator.standard_normal(len(SIGNAL)).astype(np.float32)
    rumble = 0.9 * np.sin(np.arange(len(SIGNAL)) * 2 * np.pi * 30 / RATE).astype(np.float32)
    kept = {".": 0 * SIGNAL, "1": SIGNAL, "L": rumble, "i": other}
    mono_N, _ = mix(np.stack([kept[name] for name in channels], axis=1), names)
    wanted = rumble if expected is None else SIGNAL
    share = np.dot(mono_N, wanted) / np.dot(wanted, wanted)
    assert share == pytest.approx(1.0 if expected is None else expected, abs=0.05)


# --- names, and what is not a file


@pytest.mark.parametrize(
    "name",
    [
        "2026-01-01T12:30:00.wav",
        "concat:x.wav",
        "http:x.wav",
        "data:,x.wav",
        "été.wav",
        "日.wav",
        "a\\$HOME %d.wav",
    ],
)
def test_no_name_means_anything_to_the_library(tmp_path, monkeypatch, name):
    soundfile.write(tmp_path / "a.wav", SIGNAL, RATE)
    shutil.move(tmp_path / "a.wav", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert decode(name).seconds == 2.0


def test_a_name_that_is_not_utf_8(tmp_path):
    soundfile.write(tmp_path / "a.wav", SIGNAL, RATE)
    name = tmp_path / "caf\udce9.wav"
    shutil.move(tmp_path / "a.wav", name)
    assert decode(name).seconds == 2.0


def test_no_file_opens_other_files_or_the_network(tmp_path):
    soundfile.write(tmp_path / "a.wav", SIGNAL, RATE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.wav"
        for target in (address, tmp_path / "a.wav"):
            playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
            for name, text in {
                "list.m3u8": playlist,
                "list.wav": playlist,
                "list.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
            }.items():
                (tmp_path / name).write_text(text)
                with pytest.raises(UnreadableAudio, match="not an audio file"):
                    decode(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


def test_what_is_not_a_file_or_cannot_be_opened(tmp_path, monkeypatch):
    for place in (tmp_path, "/dev/zero"):
        with pytest.raises(UnreadableAudio, match="not a file"):
            decode(place)
    for name in ("none.wav", "a\0b.wav", "\ud83d.wav"):
        with pytest.raises(MissingAudio, match="no such audio file"):
            decode(tmp_path / name)
    with pytest.raises(UnreadableAudio, match="cannot be opened"):
        decode(tmp_path / ("x" * 300))

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    soundfile.write(tmp_path / "a.wav", SIGNAL, RATE)
    monkeypatch.setattr(stream, "_File", refused)
    with pytest.raises(UnreadableAudio, match=r"a\.wav: this user may not read it"):
        decode(tmp_path / "a.wav")


# --- times


def film(path: Path, *, late: float = 0.0, gap: float = 0.0, jitter: float = 0.0) -> Path:
    """A picture of 6 s and 2 s of sound, which begins late, has a gap after 1 s, or stamps that are not exact."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", format={".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix)) as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        packets = []
        for number in range(30):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts = number
            packets += picture.encode(frame)
        packets += picture.encode(None)
        for first in range(0, len(SIGNAL), 1024):
            piece = av.AudioFrame.from_ndarray(SIGNAL[None, first : first + 1024].copy(), "fltp", "mono")
            piece.sample_rate, piece.pts = RATE, first + round(late * RATE)
            packets += sound.encode(piece)
        packets += sound.encode(None)
        for packet in packets:
            if packet.stream is sound and packet.pts * packet.time_base > 1.0:
                shift = round((gap + jitter * generator.uniform(-1, 1)) / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".ts"])
def test_sound_is_where_its_time_stamps_say(tmp_path, ending):
    late = decode(film(tmp_path / f"late{ending}", late=3.0))
    loud = np.flatnonzero(np.abs(late.samples) > 0.1)
    assert loud[0] / RATE == pytest.approx(3.0, abs=0.08)
    assert loud[-1] / RATE == pytest.approx(5.0, abs=0.08)
    assert kinds(late) == []

    broken = decode(film(tmp_path / f"gap{ending}", gap=2.5))
    loud = np.abs(broken.samples) > 0.1
    assert broken.seconds == pytest.approx(4.5, abs=0.15)
    assert not loud[round(1.3 * RATE) : round(3.4 * RATE)].any()
    assert loud[round(3.6 * RATE) : round(4.4 * RATE)].any()
    assert kinds(broken) == ["gaps in the time stamps"]
    assert broken.remarks[0].detail.startswith("a gap of 2.5 s at 1.")


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_small_errors_of_time_stamps_are_no_gaps(tmp_path, ending):
    exact = decode(film(tmp_path / f"a{ending}"))
    shaken = decode(film(tmp_path / f"b{ending}", jitter=0.03))
    assert shaken.remarks == ()
    length = min(len(exact.samples), len(shaken.samples)) - 2048
    assert np.array_equal(exact.samples[:length], shaken.samples[:length])


def test_a_gap_beyond_belief_is_no_silence(tmp_path):
    recording = decode(film(tmp_path / "a.mkv", gap=9000.0))
    assert recording.seconds == pytest.approx(2.0, abs=0.15)
    assert kinds(recording) == ["time stamps beyond belief"]


# --- damage that leaves the rest sound


def joined(tmp_path: Path, name: str, *parts: bytes) -> Path:
    (tmp_path / name).write_bytes(b"".join(parts))
    return tmp_path / name


@pytest.mark.parametrize("between", [b"ID3\4" + bytes(3000), bytes(5000), b"the words of the song\n" * 200])
def test_what_is_no_sound_in_an_mp3_is_left_out(tmp_path, between):
    part = encode(tmp_path / "part.mp3", SIGNAL[None], "libmp3lame", "mono").read_bytes()
    recording = decode(joined(tmp_path, "a.mp3", part, between, part))
    assert recording.seconds == pytest.approx(4.0, abs=0.2)
    assert kinds(recording) == ["packets that cannot be decoded"]
    assert " packets cannot be decoded and are left out, the first at 2." in recording.remarks[0].detail
    assert decode(joined(tmp_path, "b.mp3", part, between)).seconds == pytest.approx(2.0, abs=0.1)


def test_rate_and_channels_may_change(tmp_path):
    plain = {"id3v2_version": "0", "write_xing": "0"}
    rates = [
        encode(tmp_path / f"{rate}.mp3", SIGNAL[None], "libmp3lame", "mono", rate, **plain).read_bytes()
        for rate in (44_100, 48_000)
    ]
    stereo = np.stack([SIGNAL, SIGNAL])
    layouts = [
        encode(tmp_path / "m.aac", SIGNAL[None], "aac", "mono").read_bytes(),
        encode(tmp_path / "s.aac", stereo, "aac", "stereo").read_bytes(),
    ]
    for path in (joined(tmp_path, "a.mp3", *rates), joined(tmp_path, "a.aac", *layouts)):
        recording = decode(path)
        assert recording.seconds == pytest.approx(4.0, abs=0.3)
        assert kinds(recording) == ["changes of rate or channels"]
        level = np.abs(recording.samples).max()
        assert level == pytest.approx(np.abs(SIGNAL).max(), rel=0.2)


def test_an_ogg_file_that_lost_a_page_says_so(tmp_path):
    content = encode(tmp_path / "a.ogg", np.tile(SIGNAL, 2)[None], "libopus", "mono", 48_000).read_bytes()
    pages = [b"OggS" + page for page in content.split(b"OggS")[1:]]
    assert kinds(decode(joined(tmp_path, "b.ogg", *pages[:2], *pages[3:]))) == [
        "beginnings that may be missing"
    ]
    recording = decode(joined(tmp_path, "c.ogg", *pages[:3], *pages[4:]))
    assert kinds(recording) == ["gaps in the time stamps"]
    assert recording.seconds == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("rate", [1, 800_000_000])
def test_a_rate_that_cannot_be_is_refused(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", SIGNAL, rate)
    with pytest.raises(UnreadableAudio, match=f" {rate} samples a second"):
        decode(tmp_path / "a.wav")


def test_more_damage_than_sound_is_refused(tmp_path):
    content = bytearray(encode(tmp_path / "a.m4a", SIGNAL[None], "aac", "mono").read_bytes())
    first = content.index(b"mdat") + 4
    content[first : first + 20_000] = b"\xff" * len(content[first : first + 20_000])
    with pytest.raises(UnreadableAudio):
        decode(joined(tmp_path, "b.m4a", content))


def test_random_damage_ends_in_a_recording_or_an_error(tmp_path):
    """Bytes changed, taken out and put in, half of them in the header: no crash, no other error, no endless sound."""
    generator = np.random.default_rng(7)
    short = SIGNAL[: RATE // 2]
    soundfile.write(tmp_path / "a.wav", short, RATE)
    soundfile.write(tmp_path / "f.wav", short, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "a.flac", short, RATE)
    for name, codec in (("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.mkv", "aac"), ("a.aac", "aac")):
        encode(tmp_path / name, short[None], codec, "mono")
    encode(tmp_path / "a.ogg", short[None], "libopus", "mono", 48_000)
    encode(tmp_path / "c8.m4a", np.stack([short] * 8), "aac", "7.1")
    originals = sorted(tmp_path.iterdir())
    ended = {"read": 0, "refused": 0}
    for case in range(180):
        original = originals[case % len(originals)]
        content = bytearray(original.read_bytes())
        for _ in range(generator.choice([1, 2, 10])):
            place = generator.integers(generator.choice([60, 600, len(content)]))
            size = int(generator.choice([1, 4, 100]))
            noise = [generator.bytes(size), b"", bytes(size), b"\xff" * size][generator.integers(4)]
            content[place : place + size * generator.integers(2)] = noise
        path = joined(tmp_path, f"case{original.suffix}", content)
        try:
            recording = decode(path)
        except UnreadableAudio:
            ended["refused"] += 1
        else:
            ended["read"] += 1
            assert 0 < len(recording.samples) < 3600 * RATE
            assert not np.abs(recording.samples[np.isfinite(recording.samples)]).max(initial=0.0) > 1.0
    assert min(ended.values()) > 20


# --- wav headers and float samples


def header(path: Path, stated: int, tail: bytes = b"") -> Path:
    """A wav file of 2 s whose header says another number of bytes."""
    soundfile.write(path, SIGNAL, RATE)
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", stated)
    content[4:8] = struct.pack("<I", min(stated + 36, 0xFFFFFFFF))
    path.write_bytes(content + tail)
    return path


@pytest.mark.parametrize("stated", [0, 0xFFFFFFFF, 0x7FFFFFDB, 0x80000000, 2_000_000_000])
def test_a_length_that_was_left_open(tmp_path, stated):
    recording = decode(header(tmp_path / "a.wav", stated))
    assert (recording.seconds, recording.remarks) == (2.0, ())


def test_a_length_that_is_too_small_or_too_large(tmp_path):
    recording = decode(header(tmp_path / "a.wav", 16_000))
    assert recording.seconds == 2.0
    assert kinds(recording) == ["wav headers that state too little"]
    with pytest.raises(UnreadableAudio, match="cut off; its header says 128044 bytes, the file has 64044"):
        decode(header(tmp_path / "a.wav", 128_000))


@pytest.mark.parametrize(
    "tail", [b"LIST\4\0\0\0INFO", b"id3 " + struct.pack("<I", 9000) + bytes(9000), bytes(100)]
)
def test_chunks_behind_the_samples_are_not_sound(tmp_path, tail):
    recording = decode(header(tmp_path / "a.wav", 64_000, tail))
    assert (recording.seconds, recording.remarks) == (2.0, ())


@pytest.mark.parametrize("bits", [15, 23, 31])
def test_whole_numbers_stored_as_floats_are_scaled(tmp_path, bits):
    soundfile.write(tmp_path / "a.wav", SIGNAL * 2.0**bits, RATE, subtype="FLOAT")
    recording = decode(tmp_path / "a.wav")
    assert np.allclose(recording.samples, SIGNAL, atol=1e-6)
    assert kinds(recording) == ["whole numbers stored as floats"]


def test_loud_floats_are_scaled_and_damaged_ones_cut(tmp_path):
    loud = SIGNAL / np.abs(SIGNAL).max() * 1.8
    soundfile.write(tmp_path / "a.wav", loud, RATE, subtype="FLOAT")
    recording = decode(tmp_path / "a.wav")
    assert np.allclose(recording.samples, loud / 1.8, atol=1e-5)
    damaged = SIGNAL.copy()
    damaged[100] = 1e30
    soundfile.write(tmp_path / "a.wav", damaged, RATE, subtype="FLOAT")
    recording = decode(tmp_path / "a.wav")
    assert kinds(recording) == ["samples far over full scale"]
    assert np.allclose(recording.samples[200:], SIGNAL[200:] / 2, atol=1e-6)
    soundfile.write(tmp_path / "a.wav", SIGNAL * 1e20, RATE, subtype="FLOAT")
    with pytest.raises(UnreadableAudio, match=r"its samples go up to .*e\+19"):
        decode(tmp_path / "a.wav")
