"""The profile in docs/performance.md, from a stored benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localgp.errors import ConfigError
from tests.scripts_as_modules import script

DOCUMENT = Path(__file__).parent.parent / "docs/performance.md"
FRAME = "# Mine\n<!-- profile:begin -->\nold\n<!-- profile:end -->\nafter\n"


def row(part: str, seconds: float, theirs: float, **more: object) -> dict[str, object]:
    return {
        "measure": "profile",
        "backbone": "owsm_v3.1_base",
        "dtype": "fp32",
        "padded_to": 30.0,
        "part": part,
        "seconds": seconds,
        "against_seconds": theirs,
        "time_ratio_vs_espnet": seconds / theirs,
        "time_share": seconds / 0.4,
        "flop_share": 0.5,
        "of_product_rate": 0.8,
    } | more


@pytest.fixture
def place(tmp_path):
    """An experiment directory and a document."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "doc.md").write_text(FRAME)
    return tmp_path


def store(place: Path, rows: list[dict[str, object]]) -> None:
    machine = {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "capability": "AVX512",
        "gpu": None,
        "torch": "2.12",
    }
    bench = {"bench": "encoder", "machine": machine, "commit": "0123456789abcdef", "rows": rows, "goals": []}
    (place / "bench/encoder.json").write_text(json.dumps(bench))


def test_tables(place):
    rows = [
        row("subsampling", 0.1, 0.3, of_product_rate=1.2),
        row("ffn1", 0.3, 0.3),
        row("depthwise", 0.01, 0.2, of_product_rate=0.1),
        row("subsampling", 0.2, 0.5, dtype="bf16"),
        {"measure": "dense", "backbone": "owsm_v3.1_base", "dtype": "fp32"},
    ]
    store(place, rows)
    assert script("encoder_profile").main(["--exp-dir", str(place), "--document", str(place / "doc.md")]) == 0
    text = (place / "doc.md").read_text()
    assert text.startswith(
        "# Mine\n<!-- profile:begin -->\n\n`python -m localgp.bench bench=encoder` on A CPU"
    )
    assert text.endswith("\n\n<!-- profile:end -->\nafter\n")
    assert "commit 0123456789ab." in text
    assert "| subsampling | 100.0 | 300.0 | 0.33 | 25.0% | 50.0% | 1.20 |" in text
    assert "| all | 400.0 | 600.0 | 0.67 | 100.0% | 100.0% | 0.90 |" in text  # (0.1 * 1.2 + 0.3 * 0.8) / 0.4
    assert "| of these: depthwise | 10.0 | 200.0 | 0.05 | 2.5% | 50.0% | 0.10 |" in text
    assert text.index("**owsm_v3.1_base, fp32**") < text.index("**owsm_v3.1_base, bf16**")
    assert "old" not in text


def test_what_was_not_measured_is_said(place):
    fill = script("encoder_profile").fill
    fill(place, place / "doc.md")
    assert "Not measured yet: `python -m localgp.bench bench=encoder`" in (place / "doc.md").read_text()
    store(place, [{"measure": "dense"}])
    fill(place, place / "doc.md")
    assert "Not measured yet" in (place / "doc.md").read_text()


def test_a_document_without_markers_is_refused(place, capsys):
    (place / "doc.md").write_text("# Mine\n")
    with pytest.raises(ConfigError, match="doc.md has no line <!-- profile:begin -->"):
        script("encoder_profile").fill(place, place / "doc.md")
    assert script("encoder_profile").main(["--document", str(place / "none.md")]) == 1
    assert "none.md has no line" in capsys.readouterr().err


def test_the_documentation_has_the_section():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("<!-- profile:begin -->") == text.count("<!-- profile:end -->") == 1
