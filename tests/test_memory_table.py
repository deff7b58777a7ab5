"""What a training step needs, counted for every family."""

from __future__ import annotations

import pytest

from tests.scripts_as_modules import script


@pytest.mark.parametrize(("name", "millions"), [("mini", 3.4), ("whisper_tiny", 37.8)])
def test_each_option_saves_memory(name, millions):
    rows = {
        (row["precision"], row["checkpointing"], row["optimizer"]): row
        for row in script("memory_table").table(name, batch=100, sequences=100, tokens=20)
    }
    activations, total = "activations GiB", "total GiB"
    assert rows["fp32", True, "adam"][activations] < 0.8 * rows["fp32", False, "adam"][activations]
    assert rows["bf16", False, "adam"][activations] < 0.9 * rows["fp32", False, "adam"][activations]
    assert rows["fp32", False, "adam8bit"][total] <= rows["fp32", False, "adam"][total]
    states = rows["fp32", False, "adam"]["weights, gradients, states GiB"]
    assert states == pytest.approx(millions * 1e6 * 16 / 2**30, rel=0.05)
