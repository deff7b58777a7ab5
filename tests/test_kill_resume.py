"""Killed five times at random moments, also while it saves, a training ends in the weights of the unbroken one."""

from __future__ import annotations

import pytest

from tests.scripts_as_modules import script

pytestmark = pytest.mark.recipe


def test_five_kills(tmp_path):
    result = script("kill_resume").torture(tmp_path, kills=5, steps=6, seed=3, fork=True)
    assert result["kills"] == 5
    assert result["while_saving"] >= 1
    assert result["different"] == []
    assert result["equal"] is True


def test_the_comparison_sees_a_difference(tmp_path):
    import torch

    from localgp.weights import save_weights

    for name, value in (("one", 1.0), ("two", 1.0 + 2**-23)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        save_weights({"w": torch.tensor([value])}, tmp_path / name / "checkpoints" / "model.safetensors")
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1}\n' * (1 if name == "one" else 2))
    found = script("kill_resume").differences(tmp_path / "one", tmp_path / "two")
    assert found == ["w", "metrics.jsonl"]
