"""What a command costs before it works: wrong options are refused before PyTorch is imported, and no package is
imported that the command does not need."""

from __future__ import annotations

import json
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


_PROBE = """
import json, sys
from localgp.cli import reported
from localgp.transcribe import main
try:
    with reported():
        main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps(list(sys.modules)))
"""


def imported(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=True
    )
    names = json.loads(done.stdout.splitlines()[-1])
    return {name.partition(".")[0] for name in names} | set(names)


def test_refusing_needs_no_pytorch():
    assert not imported(AUDIO, "--src", "deu", "--beam", "0") & {"torch", "espnet2", "numba", "datasets"}


def test_transcribing_imports_only_what_it_needs(tmp_path):
    import wave

    path = tmp_path / "noise.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(3200) + bytes(range(256)) * 50)
    found = imported(str(path), "--src", "deu", "--beam", "1", "--maxlenratio", "0.1", "--quiet")
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
