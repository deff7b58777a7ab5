"""Speaker and event extractors: published formats, the right layer, nothing unsafe, and what they cost."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from localgp.contexts.event import LAYERS, EventExtractor, EventShape
from localgp.contexts.extract import place
from localgp.contexts.source import MINI, ContextError
from localgp.contexts.speaker import SpeakerExtractor, SpeakerShape
from localgp.encoder.align import align_frames
from tests.context_helpers import CFG, HYPERPARAMS, signal, write_event, write_speaker
from tests.test_data import TIMELINE


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    return write_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    return write_event(tmp_path_factory.mktemp("event") / "beats.pt")


def flops_of(module, *inputs):
    analysis = FlopCountAnalysis(module, inputs)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


class Evil:
    """Unpickling it would leave a trace."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


# Speaker


def test_speechbrain_loads_the_embedded_directory_and_embeds_the_same():
    from speechbrain.inference.classifiers import EncoderClassifier

    directory = MINI / "speaker"
    theirs = EncoderClassifier.from_hparams(
        source=str(directory),
        overrides={"pretrained_path": str(directory)},
    )
    expected = theirs.encode_batch(torch.from_numpy(signal()))[0]
    torch.testing.assert_close(SpeakerExtractor("mini").embed(signal()).clone(), expected)


def test_speaker_context_is_one_vector_of_unit_scale(speaker):
    extractor = SpeakerExtractor(str(speaker))
    context = extractor.extract(signal())
    assert context.shape == (1, 12) == (1, extractor.size)
    assert context.dtype == np.float16
    assert np.square(context.astype(np.float32)).mean() == pytest.approx(1, abs=1e-3)
    assert not np.allclose(context, extractor.extract(signal(seed=1)), atol=1e-2)


@pytest.mark.parametrize("samples", [0, 1, 159, 320, 639, 640, 641, 3199, 3200])
def test_however_short_a_recording_is_it_has_its_contexts(speaker, event, samples):
    """An extractor hears at least its shortest input, and what is long enough unchanged."""
    heard = signal()[:samples]
    for extractor in (SpeakerExtractor(str(speaker)), EventExtractor(str(event))):
        context = extractor.extract(heard)
        assert len(context) >= 1
        assert context.shape[1] == extractor.size
        assert np.isfinite(context).all()
    wide = SpeakerShape(kernel_sizes=(9, 5, 3, 3, 1), dilations=(1, 3, 3, 4, 1))
    assert wide.shortest == 160 * 6


def test_extractors_are_frozen(speaker, event):
    for extractor in (SpeakerExtractor(str(speaker)), EventExtractor(str(event))):
        assert not extractor.network.training
        assert not any(p.requires_grad for p in extractor.network.parameters())


@pytest.mark.parametrize("samples", [8000, 32000])
def test_speaker_cost_equals_fvcore(speaker, samples):
    extractor = SpeakerExtractor(str(speaker))
    assert extractor.flops(samples) == flops_of(extractor.network, torch.randn(1, samples // 160 + 1, 80))


def test_hyperparams_run_nothing(speaker, tmp_path):
    """HyperPyYAML would call os.mkdir here."""
    trace = tmp_path / "trace"
    hostile = HYPERPARAMS + f"trap: !apply:os.mkdir\n  - {trace}\ntrick: !new:os.mkdir {{path: {trace}}}\n"
    directory = write_speaker(tmp_path / "model")
    (directory / "hyperparams.yaml").write_text(hostile, encoding="utf-8")
    assert SpeakerExtractor(str(directory)).size == 12
    assert not trace.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "!new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN",
            "!new:os.mkdir",
            "embedding_model is !new:os",
        ),
        ("lin_neurons: 12", "lin_neurons: 12\n    surprise: 1", "has surprise, supported"),
        ("lin_neurons: 12", "lin_neurons: 13", "does not fit its configuration: .*fc.conv.weight"),
        ("n_mels: 80", "n_mels: !!python/object/apply:os.getcwd []", "not a readable hyperparams.yaml"),
    ],
)
def test_wrong_hyperparams_are_explained(tmp_path, old, new, message):
    directory = write_speaker(tmp_path / "model")
    (directory / "hyperparams.yaml").write_text(HYPERPARAMS.replace(old, new), encoding="utf-8")
    with pytest.raises(ContextError, match=message):
        SpeakerExtractor(str(directory))


def test_missing_speaker_model_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ContextError, match="lacks hyperparams.yaml and embedding_model.ckpt.*source=mini"):
        SpeakerExtractor(str(tmp_path))
    with pytest.raises(ContextError, match="no such directory, and not a Hugging Face"):
        SpeakerExtractor("nowhere/at/all")
    with pytest.raises(ContextError, match=r"hf download nobody/nothing(.|\n)*contexts.spk.source=mini"):
        SpeakerExtractor("nobody/nothing")


# Event


def test_two_layers_give_the_second_layer_of_the_whole(event):
    """ESPnet's own loader on the whole model; layer_results begins with the layers' input."""
    from espnet2.asr.encoder.beats_encoder import BeatsEncoder

    whole = BeatsEncoder(1, beats_ckpt_path=str(event), beats_config={"layer_wise_gradient_decay_ratio": 1.0})
    whole.reload_pretrained_parameters()
    whole.eval()
    assert len(whole.encoder.layers) == 4
    extractor = EventExtractor(str(event))
    assert len(extractor.network.encoder.layers) == LAYERS
    audio = torch.from_numpy(signal())[None]
    with torch.no_grad():
        results = {k: whole.extract_features(audio.clone(), None, max_layer=k)[0][0] for k in (1, 2, 3)}
    tokens = extractor.tokens(signal()).clone()
    torch.testing.assert_close(tokens, results[2])
    assert not torch.allclose(tokens, results[1], atol=1e-2)
    assert not torch.allclose(tokens, results[3], atol=1e-2)


def test_embedded_beats_loads_in_espnet():
    from espnet2.asr.encoder.beats_encoder import BeatsEncoder

    whole = BeatsEncoder(1, beats_ckpt_path=str(MINI / "event" / "BEATs_mini.pt"))
    whole.reload_pretrained_parameters()
    whole.eval()
    with torch.no_grad():
        expected = whole.extract_features(torch.from_numpy(signal())[None], None, max_layer=LAYERS)[0][0]
    torch.testing.assert_close(EventExtractor("mini").tokens(signal()).clone(), expected)


def test_event_context_has_a_vector_every_160_ms(event):
    extractor = EventExtractor(str(event))
    context = extractor.extract(signal(32000))  # 198 feature frames
    assert context.shape == (12, 24) == (12, extractor.size)
    assert context.dtype == np.float16
    tokens = extractor.tokens(signal(32000)).numpy()
    np.testing.assert_allclose(context[3], tokens[24:32].mean(0), atol=1e-2)


@pytest.mark.parametrize("samples", [8000, 32000])
def test_event_cost_equals_fvcore(event, samples):
    extractor = EventExtractor(str(event))

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.beats = extractor.network

        def forward(self, fbank):
            self.beats.preprocess = lambda source: source  # counted from the features on
            self.beats.min_input_length_at_16khz = 0
            return self.beats.extract_features(fbank, None, max_layer=LAYERS)[0]

    assert extractor.flops(samples) == flops_of(Network(), torch.randn(1, (samples - 400) // 160 + 1, 128))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "lacks 'cfg' or 'model'"),
        ({"cfg": CFG | {"encoder_layers": 1}}, "encoder_layers is 1, at least 2"),
        ({"cfg": CFG | {"encoder_embed_dim": 32}}, "does not fit its configuration"),
        ({"cfg": CFG | {"input_patch_size": 8}}, "input_patch_size is 8, supported: 16"),
    ],
)
def test_wrong_beats_checkpoints_are_explained(event, tmp_path, change, message):
    content = {**torch.load(event, weights_only=True), **change}
    torch.save({k: v for k, v in content.items() if v is not None}, tmp_path / "wrong.pt")
    with pytest.raises(ContextError, match=message):
        EventExtractor(str(tmp_path / "wrong.pt"))


def test_missing_beats_says_what_to_do(tmp_path):
    with pytest.raises(ContextError, match=r"no such file. Get BEATs_iter3.*contexts.event.source=mini"):
        EventExtractor(str(tmp_path / "BEATs_iter3_plus_AS2M.pt"))


def test_damaged_and_hostile_files_are_refused(speaker, event, tmp_path):
    directory = write_speaker(tmp_path / "model")
    trace = tmp_path / "trace"
    for content, message in [
        (pickle.dumps(Evil(trace)), "refused|damaged"),
        (event.read_bytes()[:2000], "damaged"),
        (b"", "damaged"),
    ]:
        (directory / "embedding_model.ckpt").write_bytes(content)
        with pytest.raises(ContextError, match=message):
            SpeakerExtractor(str(directory))
        (tmp_path / "beats.pt").write_bytes(content)
        with pytest.raises(ContextError, match=message):
            EventExtractor(str(tmp_path / "beats.pt"))
    torch.save({"cfg": Evil(trace), "model": {}}, tmp_path / "beats.pt")
    with pytest.raises(ContextError, match="refused"):
        EventExtractor(str(tmp_path / "beats.pt"))
    assert not trace.exists()


# Published dimensions and time


def test_published_dimensions_are_known_without_weights():
    """OWSM's 30 s: both extractors are small beside the 568 G of OWSM-v3.1 medium's encoder."""
    assert SpeakerShape().size == 192
    assert EventShape().size == 768
    assert SpeakerShape().flops(480_000) / 1e9 == pytest.approx(56.33, abs=0.01)
    assert EventShape().flops(480_000) / 1e9 == pytest.approx(35.95, abs=0.01)


@pytest.mark.parametrize(("given", "wanted"), [(2, [0, 1, 1, 1]), (4, [0, 1, 2, 3]), (6, [0, 1, 2, 3])])
def test_shorter_is_repeated_and_longer_is_trimmed(given, wanted):
    context = torch.arange(given).float().view(1, given, 1)
    assert align_frames(context, 4).flatten().tolist() == wanted


def test_one_vector_is_not_copied():
    assert align_frames(torch.zeros(2, 1, 3), 9).shape == (2, 1, 3)


def test_steps_stand_under_the_encoder_frames_that_hear_them():
    """8 s are 199 encoder frames of 40 ms; a step is four of them."""
    steps = np.arange(10, dtype=np.float16)[:, None]
    placed = place(steps, 2560, 0, 128_000, TIMELINE)[:, 0]
    assert placed.shape == (199,)
    assert placed.dtype == np.float32
    assert placed[:6].tolist() == [0, 0, 0, 0, 1, 1]  # frame t is centred at 40 t + 30 ms
    assert placed[39:].tolist() == [9] * 160  # the last step stands for the padding, as in the paper
    later = place(steps, 2560, 6400, 128_000, TIMELINE)[:, 0]  # ten frames of silence in front
    assert later[:10].tolist() == [0] * 10
    np.testing.assert_array_equal(later[10:60], placed[:50])
    long = place(np.arange(90, dtype=np.float16)[:, None], 2560, 0, 128_000, TIMELINE)[:, 0]
    assert long.shape == (199,)
    assert long[-1] == 49
    assert place(steps[:1], None, 6400, 128_000, TIMELINE).shape == (1, 1)
