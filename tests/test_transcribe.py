"""Long recordings, subtitles, language detection, and the command around them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import localgp
from localgp.cli import reported
from localgp.corpora.audio import write_audio
from localgp.errors import AudioError, ConfigError
from localgp.transcribe import main
from localgp.transcription.detection import detection_warnings
from localgp.transcription.formats import TimedText, Transcript, cue
from localgp.transcription.jobs import PauseJob, TimestampJob
from localgp.transcription.transcriber import Transcriber
from localgp.transcription.windows import (
    Stretch,
    TimeTokens,
    cut_at_pauses,
    read_timed,
    speech_bounds,
    step_after,
)

RATE = 100  # samples a second of the made-up recordings
FIRST, LAST = 1000, 1400  # timestamps 0.00 to 8.00
TIMES = TimeTokens(FIRST, LAST, 0.02)


def stamp(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


# --- windows


@pytest.mark.parametrize(
    ("tokens", "utterances", "going_on"),
    [
        ([], [], 0.0),
        ([stamp(1), 5, 6, stamp(3)], [(1, 3, [5, 6])], 3.0),
        ([stamp(1), 5], [(1, 8, [5])], 8.0),  # a beginning alone goes to the end
        ([stamp(1), 5, stamp(3), stamp(4), 6], [(1, 3, [5])], 4.0),  # the last has no end: again from there
        (
            [stamp(1), 5, stamp(3), stamp(4), 6, stamp(7.5)],
            [(1, 3, [5])],
            4.0,
        ),  # it may go on behind the window
        ([stamp(1), 5, stamp(7.5)], [(1, 7.5, [5])], 7.5),  # the only one is kept whatever its end
    ],
)
def test_a_window_yields_its_complete_utterances(tokens, utterances, going_on):
    found, there = read_timed(tokens, TIMES)
    assert [(round(a, 2), round(b, 2), text) for a, b, text in found] == utterances
    assert there == pytest.approx(going_on)


class ScriptedESPnet:
    """ESPnet's Speech2Text whose every window decodes to the next entry of a script."""

    def __init__(self, outputs):
        from espnet2.bin.s2t_inference import Speech2Text

        scripted = iter(outputs)

        class Scripted(Speech2Text):
            def __init__(self):
                self.lang_sym, self.task_sym = "<deu>", "<asr>"
                self.preprocessor_conf = {
                    "speech_length": 8,
                    "fs": RATE,
                    "speech_resolution": 0.02,
                    "first_time_symbol": "<0.00>",
                    "last_time_symbol": "<8.00>",
                }
                self.converter = self.tokenizer = self
                self.token2id = {"<0.00>": FIRST, "<8.00>": LAST, "<7.00>": stamp(7)}

            def ids2tokens(self, ids):
                return [str(i) for i in ids]

            def tokens2text(self, tokens):
                return " ".join(tokens)

            def __call__(self, **_):
                return [("", [], [1, 2, *next(scripted)], "", None)]

        self.decode_long = lambda samples: Scripted().decode_long(samples, end_time_threshold="<7.00>")


@pytest.mark.parametrize("seed", range(6))
def test_walks_through_a_recording_as_espnet_does(seed):
    """Random well-formed outputs: the same windows, utterances and times as ``decode_long``."""
    generator = np.random.default_rng(seed)
    outputs = []
    for _ in range(60):
        marks = np.sort(generator.choice(np.arange(50, 401), size=generator.integers(1, 7), replace=False))
        tokens = []
        for number, mark in enumerate(marks):
            tokens.append(FIRST + int(mark))
            if number % 2 == 0:
                tokens += generator.integers(5, 500, size=2).tolist()
        outputs.append(tokens)
    samples = generator.normal(size=47 * RATE).astype(np.float32)
    theirs = ScriptedESPnet(outputs).decode_long(samples)
    job = TimestampJob(samples, RATE, lambda ids: " ".join(map(str, ids)), TIMES, 8.0)
    scripted = iter(outputs)
    while job.ready():
        job.accept(job.ready()[0], next(scripted))
    ours = [(s.start, s.end, s.text) for s in job.segments]
    # ESPnet's times may lie behind the recording; ours end with it.
    theirs = [(start, min(end, 47.0), text) for start, end, text in theirs if start < 47.0]
    assert ours == theirs
    assert len(ours) > 5


def test_a_model_that_writes_nonsense_still_comes_to_an_end():
    """ESPnet's loop never ends on <0.00> text <0.00>, and takes 50 windows a second on <0.00> <0.02>."""
    noise = np.random.default_rng(0).normal(size=40 * RATE).astype(np.float32)
    for tokens in ([], [FIRST, 5, FIRST], [FIRST, 5, FIRST + 1]):
        job = TimestampJob(noise, RATE, lambda ids: "x", TIMES, 8.0)
        windows = 0
        while job.ready():
            job.accept(job.ready()[0], tokens)
            windows += 1
        assert windows <= 41
    assert step_after(0.0, 8.0) == 8.0


def test_pieces_are_cut_in_pauses_and_cover_the_recording():
    samples = np.random.default_rng(0).normal(size=100 * RATE).astype(np.float32)
    for pause in (7.0, 14.2, 21.0):
        samples[round((pause - 0.4) * RATE) : round((pause + 0.4) * RATE)] = 0.0
    windows = cut_at_pauses(samples, RATE, 8.0)
    assert windows[0].first == 0
    assert windows[-1].last == len(samples)
    assert all(a.last == b.first for a, b in itertools.pairwise(windows))
    assert all(0 < w.last - w.first <= 8 * RATE for w in windows)
    cuts = [w.last / RATE for w in windows[:3]]
    assert cuts == pytest.approx([7.0, 14.2, 21.0], abs=0.4)


def test_silence_is_not_decoded_and_segments_follow_the_sound():
    samples = np.zeros(30 * RATE, dtype=np.float32)
    assert PauseJob(samples, RATE, str, 8.0).ready() == []
    assert TimestampJob(samples, RATE, str, TIMES, 8.0).ready() == []
    samples[1700:1900] = 0.5
    job = TimestampJob(samples, RATE, str, TIMES, 8.0)
    assert job.ready() == [Stretch(1600, 2400)]
    assert speech_bounds(samples[1600:2400], RATE) == pytest.approx((1.0, 3.0), abs=0.06)


# --- formats


def test_subtitles():
    segments = [TimedText(0.5, 2.0, "a --> b"), TimedText(2.0, 2.5, ""), TimedText(3599.999, 3600.5, "zwei")]
    transcript = Transcript("x", 3601.0, "deu", "deu", None, segments)
    assert transcript.format("srt") == (
        "1\n00:00:00,500 --> 00:00:02,000\na → b\n\n2\n00:59:59,999 --> 01:00:00,500\nzwei\n"
    )
    assert transcript.format("vtt").startswith("WEBVTT\n\n00:00:00.500 --> 00:00:02.000\n")
    marked = Transcript("m", 3.0, "deu", "deu", None, [TimedText(0.5, 2.0, "R&D <b> --> 1")])
    assert marked.format("vtt").endswith("R&amp;D &lt;b&gt; → 1\n")
    assert marked.format("srt").endswith("R&D <b> → 1\n")
    assert json.loads(transcript.format("json"))["segments"][2]["text"] == "zwei"
    assert all(len(line) <= 42 for line in cue("wort " * 30).splitlines())
    with pytest.raises(ConfigError, match="valid: text, json, srt, vtt"):
        transcript.format("pdf")


# --- the model


@pytest.fixture(scope="module")
def model():
    return localgp.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """19 s (longer than two windows), 3 s, and something that is no audio."""
    place = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    envelope = np.repeat(generator.uniform(0.0, 0.3, size=19 * 4), 4000)
    long = (generator.normal(size=19 * 16_000) * envelope).astype(np.float32)
    write_audio(place / "long.m4a", long, 16_000)
    write_audio(place / "short.wav", long[: 3 * 16_000], 16_000)
    (place / "broken.wav").write_bytes(b"not audio")
    return place


QUICK = {"beam": 1, "ctc_weight": 0.0, "maxlenratio": 0.1}


def test_batching_does_not_change_what_a_file_yields(model, recordings):
    files = [str(recordings / "long.m4a"), str(recordings / "short.wav")]
    for windows in ("timestamps", "pauses"):
        together = model.transcribe(files, src="de", windows=windows, batch=4, **QUICK)
        alone = [model.transcribe(f, src="deu", windows=windows, batch=1, **QUICK) for f in files]
        assert together == alone
        assert together[0].seconds == pytest.approx(19.0, abs=0.1)
        assert all(0 <= s.start < s.end <= 19.1 for s in together[0].segments)


def test_language_is_the_most_probable_language_token(model, recordings):
    found = model.transcribe(str(recordings / "short.wav"), **QUICK)
    assert found.language in model.languages
    assert 1 / 3 <= found.language_probability <= 1
    assert found.target == found.language
    given = model.transcribe(str(recordings / "short.wav"), src=found.language, **QUICK)
    assert given.text == found.text
    assert given.language_probability is None
    assert given.warnings == []
    assert "knows deu, fra, ita and takes every recording for one of them" in found.warnings[0]


@pytest.mark.parametrize(
    ("probabilities", "told"),
    [
        ([0.9, 0.05, 0.05], []),
        ([0.45, 0.05, 0.5], ["hard to tell: l2 0.50, l0 0.45"]),
        ([0.34, 0.33, 0.33], ["hard to tell: l0 0.34"]),
    ],
)
@pytest.mark.parametrize("count", [3, 100])
def test_a_language_that_may_be_wrong_is_said(probabilities, told, count):
    languages = [f"l{number}" for number in range(count)]
    found = detection_warnings(languages, probabilities + [0.0] * (count - 3))
    if count == 3:
        assert "this model knows l0, l1, l2" in found.pop(0)
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True))


def test_what_holds_for_every_file_is_said_once(loaded, recordings, capsys):
    assert command(*[str(recordings / name) for name in ("short.wav", "long.m4a")]) == 0
    assert capsys.readouterr().err.count("takes every recording for one of them") == 1


def test_what_was_mended_is_said_of_each_recording(loaded, tmp_path, capsys):
    speech_N = (0.1 * np.sin(np.arange(16_000) / 10)).astype(np.float32)
    for name in ("a.wav", "b.wav"):
        write_audio(tmp_path / name, np.stack([speech_N, -speech_N], axis=1), 16_000)
    names = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    assert command(*names, "--src", "FR", "--beam", "1", "--maxlenratio", "0.1", "--format", "json") == 0
    printed = capsys.readouterr()
    for name in names:
        assert f"warning: {name}: channel 2 of 2 is left out" in printed.err
    assert printed.out.count("channel 2 of 2 is left out") == 2


def test_models_that_know_no_times_are_not_asked_for_them(model, recordings):
    file = str(recordings / "long.m4a")
    assert model.windows == "pauses"
    by_default = model.transcribe(file, src="de", timestamps=True, **QUICK)
    assert by_default == model.transcribe(file, src="de", windows="pauses", **QUICK)
    assert Transcriber(model.model, model.options).windows == "timestamps"


def test_an_array_is_a_recording(model):
    noise = np.random.default_rng(1).normal(size=16_000).astype(np.float32)
    assert model.transcribe(noise, src="fr", tgt="it", **QUICK).target == "ita"
    assert model.transcribe(np.zeros(16_000, dtype=np.float32), src="fr").segments == []
    with pytest.raises(AudioError, match="finite samples"):
        model.transcribe(np.full(100, np.nan), src="fr")
    with pytest.raises(AudioError, match="float is no recording; give a file's path"):
        model.transcribe([0.5], src="fr")


def test_integers_and_tensors_are_the_recording_that_floats_are(model):
    noise = (np.random.default_rng(2).normal(size=16_000) * 3000).astype(np.int16)
    same = [noise, torch.from_numpy(noise), noise / 32768, torch.from_numpy(noise)[None] / 32768]
    one, *others = (model.transcribe(given, src="fr", **QUICK) for given in same)
    assert others == [one] * 3


def test_a_pipe_is_a_recording(model, recordings, tmp_path):
    import os
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    given = (recordings / "short.wav").read_bytes()
    for content, message in ((given, ""), (b"not audio", f"{pipe}: not an audio file")):
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        if message:
            with pytest.raises(AudioError, match=message):
                model.transcribe(pipe, src="de", **QUICK)
        else:
            assert model.transcribe(pipe, src="de", **QUICK).seconds == 3.0
        writer.join()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"src": "en"}, "this model has de, fr, it"),
        ({"src": "eng"}, "this model has deu, fra, ita"),
        ({"tgt": "xx"}, "unknown language 'xx'"),
        ({"batch": 0}, "batch is 0; valid: 1 or more"),
        ({"windows": "words"}, "valid: timestamps, pauses"),
        ({"max_window": 30}, "this model's 8 s"),
        ({"beam": 0}, "beam is 0"),
    ],
)
def test_wrong_settings_are_explained(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        model.transcribe(np.ones(1000, dtype=np.float32), **settings)


# --- the command


def command(*arguments):
    quick = ["--beam", "1", "--ctc-weight", "0", "--maxlenratio", "0.1", "--quiet", "--device", "cpu"]
    return main([*arguments, *quick])


@pytest.fixture
def loaded(model, monkeypatch):
    monkeypatch.setattr(localgp, "load", lambda *_, **__: model)


def test_srt_of_a_long_recording(loaded, recordings, tmp_path):
    status = command(
        str(recordings / "long.m4a"), "--src", "deu", "--format", "srt", "--output-dir", str(tmp_path)
    )
    assert status == 0
    text = (tmp_path / "long.srt").read_text(encoding="utf-8")
    assert text == "" or text.startswith("1\n00:00:")


def test_keep_going_and_exit_status(loaded, recordings, capsys):
    files = [str(recordings / name) for name in ("broken.wav", "short.wav")]
    with pytest.raises(AudioError, match="not an audio file"):
        command(*files, "--src", "deu")
    assert command(*files, "--src", "deu", "--keep-going", "--format", "json") == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["source"] == files[1]
    assert "broken.wav: not an audio file" in err
    assert command(files[0], "--src", "deu", "--keep-going") == 1


def test_wrong_command_lines(recordings, capsys):
    files = [str(recordings / name) for name in ("long.m4a", "short.wav")]
    with pytest.raises(SystemExit) as status:
        command(*files, "--format", "srt")
    assert status.value.code == 2
    assert "needs --output-dir" in capsys.readouterr().err
    with pytest.raises(SystemExit) as status, reported():
        command("no/such.wav")
    assert status.value.code == 1
    assert "error: no/such.wav: no such audio file\n  --keep-going" in capsys.readouterr().err
