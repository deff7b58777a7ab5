"""Long recordings by Whisper's rules: windows, trust, temperatures, and what is given of the text before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import localgp
from localgp.backbones.longform import LongForm
from localgp.errors import ConfigError
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches, Written
from localgp.settings import check
from localgp.transcribe import main
from localgp.transcription.trust import compression, repeats, unsure
from localgp.transcription.windows import TimeTokens, read_pairs
from tests.test_config import composed
from tests.whisper_helpers import save_tiny_whisper

pytest.importorskip("transformers")
TIMES = TimeTokens(1000, 2500, 0.02)
RATE = 16_000


def at(seconds):
    return TIMES.token(seconds)


@pytest.mark.parametrize(
    ("tokens", "utterances", "going_on"),
    [
        # two complete, a third cut off: again from the end of the second
        (
            [at(0), 1, 2, at(2), at(2), 3, at(5), at(6), 4],
            [(0, 2, [1, 2]), (2, 5, [3])],
            5.0,
        ),
        # a single time at the end: nothing more is said
        ([at(0), 1, at(2), at(2.5), 3, at(5)], [(0, 2, [1]), (2.5, 5, [3])], 30.0),
        # it ends where the next begins, of which nothing is heard
        ([at(0.5), 1, at(2), at(2)], [(0.5, 2, [1])], 2.0),
        ([at(0), 1, 2, at(7)], [(0, 7, [1, 2])], 30.0),  # one utterance
        ([at(3), 1, 2], [(3, 30, [1, 2])], 30.0),  # no end
        ([at(0)], [], 30.0),
        ([], [], 30.0),
    ],
)
def test_pairs_of_times_end_utterances(tokens, utterances, going_on):
    found, there = read_pairs(tokens, TIMES, 30.0)
    assert [(round(a, 2), round(b, 2), text) for a, b, text in found] == utterances
    assert there == pytest.approx(going_on)


def test_pairs_are_read_as_transformers_reads_them():
    """Random outputs that begin with a time and keep no other rule."""
    from transformers import WhisperForConditionalGeneration

    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        length = int(torch.randint(1, 12, (), generator=generator))
        kinds = torch.rand(length, generator=generator) < 0.5
        kinds[0] = True  # by the rules
        times = torch.randint(0, 1500, (length,), generator=generator).sort()[0] + TIMES.first
        texts = torch.randint(0, 900, (length,), generator=generator)
        tokens = torch.where(kinds, times, texts)
        segments, offset = WhisperForConditionalGeneration._retrieve_segment(
            seek_sequence=tokens,
            seek_outputs=[None],
            time_offset=torch.zeros(1, dtype=torch.float64),
            timestamp_begin=TIMES.first,
            seek_num_frames=torch.tensor([3000]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 3),
        )
        theirs = [[t for t in segment["tokens"].tolist() if t < TIMES.first] for segment in segments]
        found, going_on = read_pairs(tokens.tolist(), TIMES, 30.0)
        assert [t for _, _, text in found for t in text if t < TIMES.first] == [
            t for text in theirs for t in text
        ]
        assert going_on == pytest.approx(float(offset) / 100, abs=1e-6)


def test_what_repeats_itself_is_not_trusted():
    assert not repeats("Guten Tag, meine Damen und Herren, ich begrüße Sie.")
    assert repeats("und dann " * 30)
    assert compression("") == 0.0
    assert unsure(-1.01)
    assert not unsure(-0.99)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny", max_target_positions=12)
    return localgp.load(str(folder), device="cpu")


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(0, 0.1, 40 * RATE).astype(np.float32)


class Outputs:
    """In the place of the search: what it is asked for, and answers by temperature."""

    def __init__(self, monkeypatch, tokens, answers):
        self.asked, self._tokens, self._answers = [], tokens, answers
        monkeypatch.setattr(TaskSearches, "__init__", lambda *args: None)
        monkeypatch.setattr(TaskSearches, "__call__", self)

    def __call__(self, memory, lengths, owners, tasks, *, temperature, previous, **more):
        self.asked.append((list(owners), temperature, [list(before) for before in previous]))
        return [self._answers[temperature] for _ in owners]


def written(model, text, confidence):
    tokens = model.backbone.tokenizer
    ids = [tokens.first_time, *tokens.encode(text), tokens.first_time + 1000, tokens.eos]
    return Written(ids, None, confidence)


def test_a_window_is_decoded_until_it_can_be_trusted(model, noise, monkeypatch):
    answers = {
        0.0: written(model, "na " * 60, -0.2),
        0.2: written(model, "so", -1.5),
        0.4: written(model, "gut", -0.5),
    }
    outputs = Outputs(monkeypatch, model.backbone.tokenizer, answers)
    monkeypatch.setattr(type(model), "_nothing_said", lambda *args: False)
    found = model.transcribe([noise, noise[: 35 * RATE]], src="de")
    assert [t.text for t in found] == ["gut gut", "gut gut"]
    assert [s.start for s in found[0].segments] == [0.0, 30.0]
    assert [(owners, t) for owners, t, _ in outputs.asked] == 2 * [
        ([0, 1], 0.0),
        ([0, 1], 0.2),
        ([0, 1], 0.4),
    ]
    assert all(before == [[], []] for *_, before in outputs.asked)
    outputs.asked.clear()
    assert model.transcribe(noise, src="de", temperatures=[0.2]).text == "so so"
    assert [t for _, t, _ in outputs.asked] == [0.2, 0.2]


def test_a_window_in_which_nothing_is_said_is_left_out(model, noise, monkeypatch):
    outputs = Outputs(monkeypatch, model.backbone.tokenizer, {0.0: written(model, "danke", -1.5)})
    monkeypatch.setattr(type(model), "_nothing_said", lambda *args: True)
    assert model.transcribe(noise, src="de").text == ""
    assert [t for _, t, _ in outputs.asked] == [0.0, 0.0]


@pytest.mark.parametrize("sure", [True, False])
def test_text_before_is_given_unless_it_was_drawn_wildly(model, noise, monkeypatch, sure):
    tokens = model.backbone.tokenizer
    answers = {0.0: written(model, "gut", -0.5 if sure else -2.0), 0.6: written(model, "ja", -0.5)}
    outputs = Outputs(monkeypatch, tokens, answers)
    monkeypatch.setattr(type(model), "_nothing_said", lambda *args: False)
    model.transcribe(noise, src="de", previous=True, temperatures=[0.0, 0.6])
    first, last = outputs.asked[0], outputs.asked[-1]
    assert first[2] == [[]]
    expected = tokens.previous(answers[0.0].tokens[:-1], 12) if sure else []
    assert last[2] == [expected]


def test_the_search_gives_the_confidence_and_takes_what_is_before(model, noise):
    encoded = model._encode([noise[: 5 * RATE]])
    searches = TaskSearches(model.backbone, DecodeOptions(beam=1), torch.float32)
    from localgp.corpora.rows import Task

    task, tokens = Task(0, "de", "de"), model.backbone.tokenizer
    plain = searches(encoded.x, encoded.lengths, [0], [task], timestamps=True)[0]
    assert plain.confidence < 0
    assert searches(encoded.x, encoded.lengths, [0], [task])[0].confidence is None
    before = tokens.previous([65, 66], 12)
    given = searches(encoded.x, encoded.lengths, [0], [task], timestamps=True, previous=[before])[0]
    assert len(given.tokens) < len(plain.tokens)  # they share the positions
    assert 0 < model._first_logits(encoded.x[0]).softmax(-1)[tokens.long_form.no_speech] < 1


def test_real_search_of_a_long_recording(model, noise):
    """As it is, with everything that a random model distrusts itself for; drawn the same every time."""
    first, second = (model.transcribe(noise, beam=1) for _ in range(2))
    assert first.as_dict() == second.as_dict()
    assert 0 < first.language_probability < 1


def test_what_cannot_be_is_refused(model, noise, tmp_path, capsys):
    for temperatures in ([], [-1.0], [float("nan")], [float("inf")]):
        with pytest.raises(ConfigError, match="temperatures are .*valid: one or more of 0"):
            model.transcribe(noise, temperatures=temperatures)
    with pytest.raises(SystemExit):
        main(["a.wav", "--task", "translate", "--tgt", "fra"])
    assert "leave --tgt fra out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["a.wav", "--temperatures", "warm"])
    assert LongForm().temperatures == (0.0,)


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"ctc_weight": 0.3}, "ctc_weight is 0.3, but the model has no CTC; set it to 0"),
        ({"src": "xx"}, "unknown language 'xx': this model has en, zh, de"),
        ({"src": "de", "tgt": "klingon"}, "unknown language 'klingon'"),
        ({"max_window": 31.0}, "max_window is 31.0; valid: 1 to this model's 30 s"),
        ({"windows": "words"}, "windows is 'words'; valid: timestamps, pauses"),
        ({"batch": 0}, "batch is 0; valid: 1 or more"),
        ({"beam": 0}, "beam is 0; valid: a whole number, 1 or more"),
        ({"ranking": "best"}, "ranking is 'best'; valid: espnet, transformers"),
    ],
)
def test_what_others_refuse_is_refused_before_weights_are_read(asked, refused, tmp_path):
    """From Python by a model that is loaded, from the command line by one whose weights are damaged."""
    folder = save_tiny_whisper(tmp_path / "tiny")
    options = {key: value for key, value in asked.items() if key not in ("windows", "ranking")}
    arguments = [
        str(part) for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)
    ]
    loaded = localgp.load(str(folder), device="cpu")
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(ConfigError, match=refused):
        loaded.transcribe(np.zeros(RATE, np.float32), **asked)
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"")
    if options:
        with pytest.raises(ConfigError, match=refused):
            main([str(recording), "--model", str(folder), *arguments])


def test_a_configuration_asks_no_ctc_of_whisper():
    with pytest.raises(ConfigError, match=r"decode.ctc_weight is 0.3, but whisper_base has no CTC"):
        check(composed("backbone=whisper_base", "decode.ctc_weight=0.3"))
    check(composed("backbone=owsm_v3.1_base", "decode.ctc_weight=0.3"))


def test_whisper_is_searched_as_its_library_does(model):
    assert model.options.ranking == "transformers"
    assert composed("backbone=whisper_base").decode.ranking == "transformers"
    assert composed("backbone=owsm_v3.1_base").decode.ranking == "espnet"
    assert composed("backbone=whisper_base", "decode.ranking=espnet").decode.ranking == "espnet"
