"""What a command costs before it works: wrong options are refused before PyTorch is imported, and no package is
imported that the command does not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

import localgp
from localgp.backbones.owsm.files import EMBEDDED
from localgp.errors import LocalGPError
from localgp.transcribe import main

AUDIO = str(EMBEDDED / "config.yaml")  # any file: none of these is opened

WRONG = [
    (["--beam", "0"], "beam is 0"),
    (["--ctc-weight", "2"], "ctc_weight is 2.0"),
    (["--src", "xyz"], "unknown language 'xyz': this model has deu, fra, ita"),
    (["--src", "deu", "--tgt", "eng"], "unknown language 'eng'"),
    (["--batch", "0", "--max-window", "99"], "batch is 0.*\n.*max_window is 99.0"),
    (["--model", "no/such/place"], "no model at no/such/place"),
    (["--model", "~nobody-here"], "~nobody-here stands for a user's home directory"),
    (["--model", str(EMBEDDED.parent)], "not a complete ESPnet S2T model"),
    (["--threads", "0"], "--threads is 0"),
    (["--maxlenratio", "nan"], "maxlenratio is nan"),
    (["--length-bonus=-inf"], "length_bonus is -inf"),
    (["--max-window", "nan"], "max_window is nan"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_option_of_transcribe_is_refused_before_anything_is_loaded(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(localgp, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(LocalGPError, match=f"(?s){message}"):
        main([AUDIO, "--output-dir", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_from_python_are_named_all_at_once():
    with pytest.raises(
        LocalGPError, match=r"(?s)device is 'gpu'; valid: auto, cpu.*precision is 'fp16'; valid"
    ):
        localgp.load("embedded", device="gpu", precision="fp16")
    with pytest.raises(LocalGPError, match="precision is 'half'; valid: auto, fp32"):
        localgp.gate(None, precision="half")


def imported(*arguments: str) -> set[str]:
    """What a command imports, packages and modules."""
    command = [sys.executable, "-X", "importtime", "-m", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    names = {line.rpartition("|")[2].strip() for line in lines}
    return {name.partition(".")[0] for name in names} | names


@pytest.mark.parametrize(
    "arguments",
    [
        ["localgp.transcribe", AUDIO, "--src", "deu", "--beam", "0"],
        ["localgp.evaluate", "evaluate.split=tset"],
        ["localgp.evaluate", "exp_dir=no/such/exp"],
    ],
)
def test_refusing_needs_no_pytorch(arguments):
    found = imported(*arguments)
    assert "localgp" in found
    assert not found & {"torch", "espnet2", "numba", "datasets"}


def test_transcribing_imports_only_what_it_needs(tmp_path):
    import wave

    path = tmp_path / "noise.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(3200) + bytes(range(256)) * 50)
    found = imported(
        "localgp.transcribe", str(path), "--src", "deu", "--beam", "1", "--maxlenratio", "0.1", "--quiet"
    )
    assert {"torch", "espnet2"} <= found
    unneeded = {
        "espnet2.tasks",
        "nltk",
        "g2p_en",
        "inflect",
        "lightning",
        "datasets",
        "transformers",
        "speechbrain",
    }
    assert not found & (unneeded | {"matplotlib", "pandas", "sklearn", "tensorboard"})
