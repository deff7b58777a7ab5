"""Windows of a recording's own length: no utterance sees another's padding, and what is counted is what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from localgp import backbones
from localgp.backbones.cost import EncoderCost
from localgp.config_parts import Part, differences
from localgp.evaluation.decode import Batch, FrameGates
from localgp.evaluation.gates_file import GateRecord, read_gates, write_gates
from localgp.evaluation.measured import measured_gflops, measured_ratios
from localgp.gates import EnergyGates, GlobalGates, LocalGates, OpenGates, RandomGates, SimilarGates
from localgp.gates.cost import gates_cost
from localgp.hub.load import base_config
from localgp.model import GatedS2T
from localgp.run import Run
from localgp.window import Window, upgraded, window_of
from tests.conftest import make_backbone
from tests.test_model import espnet  # noqa: F401
from tests.whisper_helpers import save_tiny_whisper

OWN = Window("utterance", 0.1)
ENDS = torch.tensor([30_000, 17_000, 4_000])


def speech(longest=32_000):
    speech_BN = torch.randn(3, longest, generator=torch.Generator().manual_seed(0)) * 0.1
    for row, end in zip(speech_BN, ENDS, strict=True):
        row[end:] = 0
    return speech_BN


def policies(backbone):
    """One of each kind: by frame, once an utterance, by rank among an utterance's frames."""
    framewise, size = backbone.part_names("encoder"), backbone.shape.size
    layers = backbone.shape.encoder_layers
    framewise = [name for name in framewise if name != "cgmlp"]  # by utterance alone
    torch.manual_seed(3)
    filled = LocalGates(layers, size, framewise, {"front": size}, bias=0.1)
    similar = SimilarGates(framewise, 0.4, size)
    filled.fill = similar.fill = "pair"
    return {
        "dense": None,
        "open": OpenGates(framewise),
        "local": LocalGates(layers, size, framewise, {"front": size}, bias=0.1),
        "global": GlobalGates(layers, size, backbone.part_names("encoder"), bias=0.0),
        "vad": EnergyGates(framewise, 0.4),
        "filled": filled,
        "similar": similar,
    }


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory):
    pytest.importorskip("transformers")
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(params=["owsm", "whisper"])
def backbone(request, espnet, tiny_whisper):  # noqa: F811
    if request.param == "owsm":
        made = make_backbone(net=espnet)
        made.padded_seconds = 2.0
        return made
    made = backbones.open_backbone({"name": "tiny", "path": str(tiny_whisper), "weights": "pretrained"})
    made.net.eval()
    return made


@pytest.fixture
def without_noise(monkeypatch):
    """Gates are drawn as they are decided."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.fill_(1.0))


def gradients(model, encoded_of):
    """Of a loss that weighs every frame differently, summed over what ``encoded_of`` yields."""
    model.zero_grad()
    for encoded, frames in encoded_of:
        total = sum(
            (x[:count] * torch.linspace(-1, 1, count).unsqueeze(1)).square().sum()
            for x, count in zip(encoded.x, frames, strict=True)
        )
        opened = [
            gate.decision.expand(encoded.x.shape[:2])[row, :count].sum()
            for layer in encoded.gates
            for gate in layer.values()
            for row, count in enumerate(frames)
        ]
        (total + sum(opened)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", ["masked", "gathered"])
@pytest.mark.parametrize("kind", ["dense", "local", "global", "vad", "open", "filled", "similar"])
def test_a_ragged_batch_trains_as_its_utterances_alone(backbone, without_noise, kind, path):
    model = GatedS2T(backbone, policies(backbone)[kind], window=OWN)
    if model.policy is not None:
        model.policy.train()
    speech_BN = speech()
    together = model.encode(speech_BN, ENDS, path=path)
    counts = together.lengths.tolist()
    assert counts == [
        backbone.timeline.frames(backbone.timeline.feature_frames(int(n))) for n in model.heard(ENDS)
    ]
    assert len(set(counts)) == 3
    alone = [
        (model.encode(speech_BN[b : b + 1, : ENDS[b]], ENDS[b : b + 1], path=path), [counts[b]])
        for b in range(3)
    ]
    for b, (encoded, _) in enumerate(alone):
        torch.testing.assert_close(together.x[b, : counts[b]], encoded.x[0], rtol=1e-5, atol=1e-5)
    if kind == "local":
        shares = [float(g.decision.mean()) for layer in together.gates for g in layer.values()]
        assert 0.1 < np.mean(shares) < 0.9
    both = gradients(model, [(together, counts)]), gradients(model, alone)
    assert both[0].keys() == both[1].keys()
    scale = max(float(g.abs().max()) for g in both[1].values())
    for name, gradient in both[0].items():
        difference = float((gradient - both[1][name]).abs().max())
        assert difference <= 1e-5 * max(scale, 1.0), name


@pytest.mark.parametrize("kind", ["dense", "local", "global", "vad", "filled", "similar"])
def test_training_and_inference_agree_on_ragged_batches(backbone, kind):
    model = GatedS2T(backbone, policies(backbone)[kind], window=OWN).eval()
    with torch.inference_mode():
        trained, packed = model.encode(speech(), ENDS), model.packed().encode(speech(), ENDS)
    assert torch.equal(trained.lengths, packed.lengths)
    own_BT1 = packed.own().unsqueeze(-1)
    torch.testing.assert_close(trained.x * own_BT1, packed.x * own_BT1, rtol=1e-4, atol=1e-4)
    for one, other in zip(trained.gates, packed.gates, strict=True):
        for name, gate in one.items():
            assert torch.equal(
                gate.mask.expand(packed.own().shape) & packed.own(), other[name].mask & packed.own()
            )


def test_the_mask_of_a_stem_is_as_long_as_its_utterance_alone(backbone):
    feats = torch.randn(2, 60, 80)
    for short in range(7, 30):
        found = backbone.front(feats, torch.tensor([60, short])).mask.sum(2).squeeze(1)
        alone = backbone.front(feats[1:, :short], torch.tensor([short])).x.shape[1]
        assert found.tolist() == [backbone.timeline.frames(60), alone]


def test_a_windows_features_are_the_padded_ones_cut_off(backbone):
    padded, _ = GatedS2T(backbone).features(speech(), ENDS)
    cut, lengths = GatedS2T(backbone, window=OWN).features(speech(), ENDS)
    assert cut.shape[1] == lengths.max() < padded.shape[1] or lengths.max() == padded.shape[1]
    for b, count in enumerate(lengths.tolist()):
        torch.testing.assert_close(cut[b, :count], padded[b, :count])


def test_one_shorter_length_for_all(backbone):
    model = GatedS2T(backbone, window=Window(1.5)).eval()
    assert (model.samples, model.window_seconds) == (24_000, 1.5)
    encoded = model.encode(speech()[:, :24_000], ENDS.clamp(max=24_000))
    assert (
        encoded.lengths.tolist() == [backbone.timeline.frames(backbone.timeline.feature_frames(24_000))] * 3
    )
    assert GatedS2T(backbone, window=Window(60.0)).samples == backbone.samples, "no more than the model has"


@pytest.mark.parametrize("kind", ["dense", "local", "vad", "similar"])
def test_flops_count_the_frames_that_there_are(backbone, kind):
    model = GatedS2T(backbone, policies(backbone)[kind], window=OWN).eval()
    with torch.inference_mode():
        encoded = model.packed().encode(speech(), ENDS)
    heard = model.heard(ENDS).tolist()
    record = None
    costs = [EncoderCost(backbone, backbone.timeline.feature_frames(n)) for n in heard]
    expected = [cost.encoder() for cost in costs]
    if encoded.gates:
        modules = list(encoded.gates[0])
        open_ULMT = np.stack(
            [np.stack([layer[name].mask.numpy() for name in modules], 1) for layer in encoded.gates], 1
        )
        real = np.stack([np.zeros(3, int), encoded.lengths.numpy()], 1)
        record = GateRecord(["a", "b", "c"], modules, open_ULMT, real, 0.04, encoded.lengths.numpy())
        expected = [
            cost.encoder([dict(zip(modules, row, strict=True)) for row in kept])
            + gates_cost(model.policy, cost.frames)
            for cost, kept in zip(costs, open_ULMT.sum(-1), strict=True)
        ]
        kept = measured_ratios(record)
        assert kept["kept"] == kept["kept_real"], "all that there is has signal here"
        assert kept["sparsity"]["padding"] == 0
        if kind in ("vad", "similar"):
            skipped = sum(round(0.4 * cost.frames) for cost in costs) / sum(cost.frames for cost in costs)
            assert kept["sparsity"]["all_frames"] == pytest.approx(skipped, abs=1e-3)
    found = measured_gflops(model, record, samples=heard)
    assert found["encoder"] * 1e9 == pytest.approx(np.mean(expected), rel=1e-4, abs=1e3)  # stored to 1e3
    assert found["encoder"] < found["dense"]


def test_gates_of_different_lengths_are_stored(tmp_path):
    opened = np.random.default_rng(0).random((2, 3, 2, 21)) < 0.6
    opened[1, ..., 9:] = False
    record = GateRecord(["a", "b"], ["x", "y"], opened, np.array([[0, 18], [2, 9]]), 0.04, np.array([21, 9]))
    write_gates(tmp_path / "test.npz", record)
    back = read_gates(tmp_path / "test.npz")
    assert back.counts().tolist() == [21, 9]
    np.testing.assert_allclose(back.kept()[0], opened.sum((0, 3)) / 30)


@pytest.mark.parametrize("kind", ["open", "global"])
def test_what_is_counted_is_an_utterances_own(backbone, kind):
    """A decision for a whole utterance reaches no frame behind its end, where longer ones have frames."""
    model = GatedS2T(backbone, policies(backbone)[kind], window=OWN).eval()
    rows = list(range(len(ENDS)))
    batch = Batch(rows, [{"utt_id": str(row)} for row in rows], speech(), ENDS, {}, None, [], [])
    gathered = FrameGates(model)
    encoded = model.packed().encode(speech(), ENDS)
    gathered.add(batch, encoded)
    record = gathered.record()
    assert not (record.open & ~record.own_mask()[:, None, None]).any()
    samples = [int(count) for count in model.heard(ENDS)]
    gflops = measured_gflops(model, record, samples=samples)
    dense = measured_gflops(GatedS2T(backbone, None, window=OWN), None, samples=samples)
    assert gflops["encoder"] <= dense["encoder"] + gflops["gates"]
    assert 0 <= measured_ratios(record)["sparsity"]["all_frames"] < 1


# --- one model from training to transcription


@pytest.mark.parametrize("family", ["owsm", "toy"])
def test_own_windows_decode(monkeypatch, tmp_path, family):
    """Hypotheses of a batch are those of its utterances alone."""
    if family == "toy":
        monkeypatch.setitem(backbones.FAMILIES, "toy", "tests.toy_family")
        torch.manual_seed(0)
        backbone = backbones.open_backbone({"name": "toy", "path": "published/toy", "weights": "random"})
    else:
        backbone = backbones.open_backbone(base_config().backbone)
    parts = ["attention", "ffn" if family == "toy" else "ffn1"]
    model = GatedS2T(backbone, RandomGates(parts, 0.3), window=Window("utterance", 0.1)).eval()
    encoder = model.packed()
    with torch.inference_mode():
        together = encoder.encode(speech(), ENDS)
        for b, end in enumerate(ENDS.tolist()):
            alone = encoder.encode(speech()[b : b + 1, :end], ENDS[b : b + 1])
            assert alone.x.shape[1] == together.lengths[b]
            torch.testing.assert_close(together.x[b, : together.lengths[b]], alone.x[0], rtol=1e-4, atol=1e-4)


def test_a_transcriber_hears_what_its_model_was_trained_for():
    import localgp

    model = localgp.load("embedded", device="cpu")
    signal = speech()[0, :16_000].numpy()
    full = model._encode([signal]).x.shape[1]
    model.model.window = Window("utterance", 0.2)
    assert model._encode([signal]).x.shape[1] == model.backbone.timeline.frames(121) < full


# --- configurations, of now and of before


@pytest.mark.parametrize(
    ("given", "window"),
    [
        ([], Window()),
        (["window=utterance"], Window("utterance")),
        (["window=utterance", "window.margin=0.5"], Window("utterance", 0.5)),
        (["window=12.5"], Window(12.5)),
        (["padding=none"], Window("utterance", 0.0)),
        (["padding=full"], Window()),
        (["conf=control_trim"], Window("utterance", 0.0)),
        (["conf=row05", "padding=none"], Window("utterance", 0.0)),
    ],
)
def test_windows_of_a_command_line(given, window):
    assert window_of(base_config(*given)) == window


@pytest.mark.parametrize(("padding", "window"), [("none", "conf=control_trim"), ("full", "conf=row01")])
def test_a_run_with_padding_is_the_run_with_its_window(tmp_path, padding, window):
    cfg = base_config(window, f"exp_dir={tmp_path}")
    old = OmegaConf.to_container(cfg, resolve=True)
    del old["window"]
    old["padding"] = padding
    assert not list(differences(old, OmegaConf.to_container(cfg, resolve=True), Part.MODEL))
    run = Run(cfg)
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    run.check()
    assert upgraded(old).get("window", {}).get("length", "full") == cfg.window.length
