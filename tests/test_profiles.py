"""The profiles in docs/performance.md, from stored benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localgp.errors import ConfigError
from tests.scripts_as_modules import script

DOCUMENT = Path(__file__).parent.parent / "docs/performance.md"
NAMES = ("encoder-profile", "decoder-profile")
FRAME = (
    "# Mine\n" + "".join(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n" for name in NAMES) + "after\n"
)


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


def store(place: Path, rows: list[dict[str, object]], name: str = "encoder") -> None:
    machine = {
        "cpu": "A CPU",
        "cores": 2,
        "threads": 2,
        "capability": "AVX512",
        "gpu": None,
        "torch": "2.12",
    }
    bench = {"bench": name, "machine": machine, "commit": "0123456789abcdef", "rows": rows, "goals": []}
    (place / f"bench/{name}.json").write_text(json.dumps(bench))


def test_tables(place):
    rows = [
        row("subsampling", 0.1, 0.3, of_product_rate=1.2),
        row("ffn1", 0.3, 0.3),
        row("depthwise", 0.01, 0.2, of_product_rate=0.1),
        row("subsampling", 0.2, 0.5, dtype="bf16"),
        {"measure": "dense", "backbone": "owsm_v3.1_base", "dtype": "fp32"},
    ]
    store(place, rows)
    assert script("profiles").main(["--exp-dir", str(place), "--document", str(place / "doc.md")]) == 0
    text = (place / "doc.md").read_text()
    assert text.startswith(
        "# Mine\n<!-- encoder-profile:begin -->\n\n`python -m localgp.bench bench=encoder` on A CPU"
    )
    assert text.endswith("\n\n<!-- decoder-profile:end -->\nafter\n")
    assert "commit 0123456789ab." in text
    assert "| subsampling | 100.0 | 300.0 | 0.33 | 25.0% | 50.0% | 1.20 |" in text
    assert "| all | 400.0 | 600.0 | 0.67 | 100.0% | 100.0% | 0.90 |" in text  # (0.1 * 1.2 + 0.3 * 0.8) / 0.4
    assert "| of these: depthwise | 10.0 | 200.0 | 0.05 | 2.5% | 50.0% | 0.10 |" in text
    assert text.index("**owsm_v3.1_base, fp32**") < text.index("**owsm_v3.1_base, bf16**")
    assert "old" not in text


def test_a_steps_parts(place):
    setting = {
        "measure": "profile",
        "backbone": "owsm_v3.1_small",
        "dtype": "fp32",
        "utterances": 8,
        "beam": 5,
    }
    setting |= {"frames": 749, "skipped": 0.3, "decided_per": "hypothesis"}
    rates = {"of_product_rate": 0.83, "of_memory_rate": 0.19}
    output = {
        "part": "output",
        "seconds": 0.02,
        "gated_seconds": 0.02,
        "time_share": 0.4,
        "flop_share": 0.31,
    } | rates
    rest = {"part": "rest", "seconds": 0.03, "gated_seconds": 0.015, "time_share": 0.6, "flop_share": 0.0}
    gates = {"part": "gates", "seconds": 0.0, "gated_seconds": 0.001, "time_share": 0.0, "flop_share": 0.0}
    store(place, [setting | output, setting | rest, setting | gates, {"measure": "dense"}], "decoder")
    script("profiles").fill(place, place / "doc.md")
    text = (place / "doc.md").read_text()
    assert "8 utterances x beam 5, 749 encoder frames; gated: 30% of the modules skipped, decided per" in text
    assert "| output | 20.0 | 40.0% | 31.0% | 0.83 | 0.19 | 20.0 | 1.00 |" in text
    assert "| gates | 0.0 | 0.0% | 0.0% | - | - | 1.0 | - |" in text
    assert "| all | 50.0 | 100.0% | 100.0% | - | - | 36.0 | 0.72 |" in text


def test_what_was_not_measured_is_said(place):
    fill = script("profiles").fill
    fill(place, place / "doc.md")
    assert "Not measured yet: `python -m localgp.bench bench=encoder`" in (place / "doc.md").read_text()
    store(place, [{"measure": "dense"}])
    fill(place, place / "doc.md")
    assert "Not measured yet" in (place / "doc.md").read_text()


def test_a_document_without_markers_is_refused(place, capsys):
    (place / "doc.md").write_text("# Mine\n")
    with pytest.raises(ConfigError, match="doc.md has no line <!-- encoder-profile:begin -->"):
        script("profiles").fill(place, place / "doc.md")
    assert script("profiles").main(["--document", str(place / "none.md")]) == 1
    assert "none.md has no line" in capsys.readouterr().err


def test_the_documentation_has_the_section():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in NAMES:
        assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1
