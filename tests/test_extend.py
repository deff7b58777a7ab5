"""docs/extend.md: its policy, context and corpus train, are scored, found again, and no foreign model imports any."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import localgp
from localgp.build import build_policy
from localgp.cli import CONF_DIR
from localgp.contexts.extract import build_extractor, needed_contexts
from localgp.corpora.audio import write_audio
from localgp.errors import CheckpointError, ConfigError
from localgp.extensions import permit
from localgp.gates import Gate, RandomGates
from localgp.model import GatedS2T
from localgp.transcription.transcriber import Transcriber

PAGE = Path(__file__).parent.parent / "docs" / "extend.md"
NOISE = (np.random.default_rng(0).normal(size=19 * 16_000) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder on Python's path with the page's three modules, and one of classes that are wrong."""
    place = tmp_path_factory.mktemp("path")
    blocks = re.findall(
        r'^```python title="(\w+\.py)"\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert [name for name, _ in blocks] == ["my_gates.py", "my_context.py", "my_corpus.py"]
    for name, body in blocks:
        (place / name).write_text(body, encoding="utf-8")
    (place / "my_errors.py").write_text(WRONG, encoding="utf-8")
    (place / "my_broken.py").write_text("import no_such_library\n")
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


WRONG = """
import numpy as np
from torch import nn
from localgp.gates import LocalGates, RandomGates

class Plain:
    pass

class Sleeping(RandomGates):
    def __init__(self):
        super().__init__(["ffn3"], 0.3)

class Curious(RandomGates):
    needs = ("face",)

class Demanding(RandomGates):
    def __init__(self, modules, target, mood):
        super().__init__(modules, target)

class Narrow:
    size, step = 0, 1600
    def extract(self, signal_N): ...

class Wide:
    size, step = 2, 1600
    def extract(self, signal_N): return np.ones((3, 1))

class Loud:
    size, step = 1, None
    def extract(self, signal_N): return [1e9]

class Own(LocalGates):
    "Algorithm 1 under another name."
"""


def composed(*overrides):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=["device=cpu", *overrides])


# --- through the whole product


@pytest.fixture(scope="module")
def trained(modules, tmp_path_factory):
    """A run with the page's policy on the page's context and corpus, trained and scored; its directory."""
    import importlib

    from localgp.evaluation.evaluate_run import evaluate_run
    from localgp.training.fit import fit

    place = tmp_path_factory.mktemp("extended")
    for number in range(12):
        write_audio(place / f"{number:02}.wav", NOISE[: 16_000 + 800 * number], 16_000)
        (place / f"{number:02}.txt").write_text("guten tag")
    importlib.import_module("my_corpus").write_manifest(place, "de")
    cfg = composed(
        *("conf=row05", "name=mine", "pruning.encoder=my_gates.LinearGates", "pruning.context=[front,loud]"),
        *("+contexts.loud.source=my_context.Loudness", "corpus=manifest", "corpus.name=mine"),
        *(
            f"corpus.manifest={place / 'manifest.jsonl'}",
            f"data_dir={place / 'data'}",
            f"exp_dir={place / 'exp'}",
        ),
        *("training.batch_size=2", "training.max_steps=2", "training.val_every=2", "training.val_decode=0"),
        *("training.logger=none", "decode.beam=1", "decode.maxlenratio=0.1", "threads=1"),
    )
    fit(cfg)
    _, objects = evaluate_run(cfg)
    assert set(objects["run"].path.parts) >= {"mine", "seed1"}
    assert list((place / "data" / "prepared" / "contexts").glob("loud-*"))
    return objects["run"].path


@pytest.mark.recipe
def test_a_run_finds_its_classes_again(trained):
    model = localgp.load(str(trained), device="cpu")
    assert type(model.model.policy).__name__ == "LinearGates"
    assert list(model.extractors) == ["loud"]
    weights = model.model.policy.heads[0]["ffn1"].weight
    assert weights.equal(localgp.load(str(trained), device="cpu").model.policy.heads[0]["ffn1"].weight)
    masks = model.gates(NOISE[:16_000])
    assert set(masks.modules) == {"ffn1", "attention", "ffn2"}
    assert model.transcribe(NOISE[:16_000], src="de", beam=1, maxlenratio=0.1).language == "deu"


@pytest.mark.recipe
def test_a_packed_model_is_asked_about_before_its_classes_are_imported(trained, tmp_path):
    from localgp.hub.pack import pack

    packed = pack(trained, tmp_path, name="m", licence="mit")
    card = (packed["huggingface"] / "README.md").read_text(encoding="utf-8")
    names = ["my_gates.LinearGates", "my_context.Loudness"]
    assert f"extensions={names}" in card
    for path in packed.values():
        for allowed in ([], names[:1], ["my_gates.Other"]):
            with pytest.raises(CheckpointError, match=r"refused.*--extension my_"):
                localgp.load(str(path), device="cpu", extensions=allowed)
        assert localgp.load(str(path), device="cpu", extensions=names).model.policy is not None
        assert localgp.load(str(path), device="cpu", gates="open").model.policy is None
    from my_context import Loudness
    from my_gates import LinearGates

    localgp.load(str(packed["huggingface"]), device="cpu", extensions=[LinearGates, Loudness])


# --- trust


def test_a_run_of_elsewhere_brings_no_code(tmp_path, monkeypatch):
    """From a folder above a copied run, what lies in the run would be importable."""
    run = tmp_path / "copied"
    run.mkdir()
    (run / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = {"pruning": {"encoder": "copied.evil.Gates"}, "contexts": {}}
    for own in (True, False):
        with pytest.raises(CheckpointError, match="would import code"):
            permit(cfg, run, [], own=own)
    permit({"pruning": {"encoder": "elsewhere.Gates"}}, run, [], own=True)
    with pytest.raises(CheckpointError, match="elsewhere.Gates"):
        permit({"pruning": {"encoder": "elsewhere.Gates"}}, run, [])
    permit(
        {"pruning": {"encoder": "local", "context": ["front"]}, "contexts": {"x": {"source": "a.B"}}}, run, []
    )


# --- what is wrong is said


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_module_that_is_not.Gates", "there is no module my_module_that_is_not; start from the folder"),
        ("my_gates.Linear", "my_gates has no class Linear; it has LinearGates"),
        ("my_broken.Gates", "my_broken imports no_such_library, which is not there"),
        (
            "my_errors.Plain",
            r"no gate policy: it is no torch.nn.Module; it has no begin\(...\); it has no gate",
        ),
        ("my_errors.Sleeping", r"modules_gated is \('ffn3',\), valid: some of ffn1"),
        ("my_errors.Curious", r"needs is \('face',\), valid: some of front, energy"),
        ("my_errors.Demanding", r"cannot be made \(TypeError.*'mood'.*what it is given: layers, size"),
    ],
)
def test_policies_that_cannot_be(modules, backbone, path, message):
    with pytest.raises(ConfigError, match=message):
        build_policy(composed("conf=row05", f"pruning.encoder={path}"), backbone)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "'nothing'; valid: a class on Python's path as module.Class"),
        ("my_context.Louder", "my_context has no class Louder"),
        ("my_errors.Plain", "size is None.*; step is 0.*; it has no extract"),
        ("my_errors.Narrow", "size is 0, valid: how many numbers"),
        ("my_errors.Wide", r"extracts \(3, 1\) of 16000 samples; valid: \(steps, 2\)"),
        ("my_errors.Loud", "16-bit floats do not hold"),
    ],
)
def test_extractors_that_cannot_be(modules, path, message):
    cfg = composed("conf=row05", "pruning.context=[front,my]", f"+contexts.my.source={path}")
    with pytest.raises(ConfigError, match=message):
        build_extractor("my", cfg).extract(NOISE[:16_000])


def test_an_option_that_an_extractor_does_not_take(modules):
    cfg = composed("conf=row05", "+contexts.my.source=my_context.Loudness", "+contexts.my.floor=1")
    with pytest.raises(ConfigError, match=r"cannot be made.*what it is given: device, floor"):
        build_extractor("my", cfg)


def test_another_source_file_is_another_extractor(modules, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for number, more in enumerate(("", "", "# edited")):
        text = (modules / "my_context.py").read_text(encoding="utf-8") + more
        (tmp_path / f"my_copy{number}.py").write_text(text, encoding="utf-8")
        cfg = composed("conf=row05", f"+contexts.my.source=my_copy{number}.Loudness")
        digests.append(build_extractor("my", cfg).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_subclass_of_ours_needs_no_constructor(modules, backbone):
    cfg = composed(
        "conf=row05",
        "pruning.encoder=my_errors.Own",
        "pruning.context=[front,my]",
        "+contexts.my.source=my_context.Loudness",
    )
    assert needed_contexts(cfg) == ["my"]
    policy = build_policy(cfg, backbone)
    assert policy.needs == ("front", "my")
    assert OmegaConf.to_container(cfg.contexts)["my"] == {"source": "my_context.Loudness"}


@pytest.mark.parametrize("path", ["masked", "gathered", "packed"])
def test_a_gate_of_nothing_is_refused(backbone, feats, path):
    """A policy that is handed to the model in Python, where no configuration is checked."""
    from localgp.encoder.packed import PackedEncoder, PackedGates
    from localgp.encoder.run import encode

    class Sleeping(RandomGates):
        def gate(self, layer, x_BTD, state):
            return {"fnn1": Gate(torch.ones(x_BTD.shape[:2]), torch.ones(x_BTD.shape[:2]))}

    policy = Sleeping(["ffn1"], 0.3).eval()
    run = partial(encode, backbone, *feats, policy, path=path)
    if path == "packed":
        run = partial(PackedEncoder(backbone).encode, *feats, PackedGates(policy))
    with pytest.raises(ConfigError, match="gates fnn1; valid: ffn1, attention"), torch.no_grad():
        run()


# --- the masks of a recording


@pytest.fixture(scope="module")
def dense():
    return localgp.load("embedded", device="cpu")


def test_masks_are_those_of_the_frames_and_have_times(dense):
    gated = GatedS2T(dense.backbone, RandomGates(["ffn1", "ffn2"], 0.3)).eval()
    masks = Transcriber(gated, dense.options).gates(NOISE)
    layers = dense.backbone.shape.encoder_layers
    assert set(masks.modules) == {"ffn1", "ffn2"}
    assert all(
        mask.shape == (layers, len(masks.times)) and mask.dtype == torch.bool
        for mask in masks.modules.values()
    )
    assert masks.times[0] == pytest.approx(0.03, abs=0.005)
    assert masks.times[-1] == pytest.approx(19.0, abs=0.1)
    assert (masks.times.diff() > 0).all()  # over three windows
    assert len(masks.times) == pytest.approx(19 * 25, abs=6)
    assert masks.kept() == pytest.approx({"ffn1": 0.7, "ffn2": 0.7}, abs=0.03)
    alone = Transcriber(gated, dense.options).gates(NOISE[: 7 * 16_000])
    encoded = gated.encode(
        torch.from_numpy(np.pad(NOISE[: 7 * 16_000], (0, 16_000)))[None], torch.tensor([8 * 16_000])
    )
    assert alone.modules["ffn1"][0].equal(encoded.gates[0]["ffn1"].mask[0, : len(alone.times)])


def test_a_dense_model_has_no_masks(dense):
    with pytest.raises(ConfigError, match="no gates; load one that was trained with them"):
        dense.gates(NOISE)
