"""The decoder benchmark on a tiny model: its rows, and that it leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from localgp.backbones.cost import DecoderCost
from localgp.bench.decoder import DecoderBench
from localgp.bench.rows import settings
from localgp.bench.step_parts import PARTS
from localgp.bench.steps import StepBench, random_gates
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import GateState
from tests.decoding_helpers import SOS, make_memory, make_model

COLUMNS = {
    "backbone",
    "dtype",
    "utterances",
    "beam",
    "steps",
    "ctc_weight",
    "skipped",
    "speedup_vs_espnet",
    "step_time_ratio_vs_dense",
    "identical_hypotheses",
    "flop_ratio",
    "peak_mib",
}


def test_rows_and_untouched_model() -> None:
    small = make_model(0)
    before = {name: value.clone() for name, value in small.decoder.state_dict().items()}
    lines: list[str] = []
    wanted = settings("decoder", utterances=[1, 2], steps=4, skipped=[0.5], dtypes=["fp32"], repeats=1)
    bench = DecoderBench(small.backbone, "tiny", wanted, lines.append)
    bench.frames = 15
    rows = bench.measure()
    assert len(lines) == len(rows)
    assert all(set(row) >= COLUMNS for row in rows)
    profile = [row for row in rows if row["measure"] == "profile"]
    assert len(profile) == 2 * len(PARTS)
    for utterances in (1, 2):
        own = [row for row in profile if row["utterances"] == utterances]
        assert [row["part"] for row in own] == list(PARTS)
        assert sum(row["flop_share"] for row in own) == pytest.approx(1, abs=1e-3)
        assert sum(row["time_share"] for row in own) == pytest.approx(1, abs=1e-3)
        assert own[PARTS.index("gates")]["gated_seconds"] > 0 == own[PARTS.index("gates")]["seconds"]
    # For two batch sizes: two CTC weights, and gates decided in two ways
    kept = [row for row in rows if row["measure"] == "kept"]
    assert [row["utterances"] for row in kept] == [1, 2]
    assert all(row["left_out"] == 0.7 and row["source_share_ratio"] > 0 for row in kept)
    rows = [row for row in rows if row["measure"] not in ("profile", "kept")]
    assert len(rows) == 2 * 2 + 2 * 2
    dense, gated = rows[:4], rows[4:]
    assert all(row["identical_hypotheses"] and row["speedup_vs_espnet"] > 0 for row in dense)
    assert all(row["step_time_ratio_vs_dense"] is not None for row in gated)
    assert all(row["speedup_vs_espnet"] is None for row in gated)
    assert [row["decided_per"] for row in gated] == ["hypothesis"] * 2 + ["utterance"] * 2
    assert all(0 < row["flop_ratio"] < 1 and row["peak_mib"] > 0 for row in gated)
    for name, value in small.decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_gated_rows_say_what_was_skipped() -> None:
    """Closed everywhere, a step is the output layer's FLOPs alone; half open, in between."""
    small = make_model(0)
    memory, _ = make_memory(0, [9, 9])
    primers = [[SOS, 5, 6, 3]] * 2
    dense = CachedDecoder(small.backbone)
    wanted = settings("decoder", beam=2, steps=3, repeats=1)
    bench = StepBench(small.backbone, dense, wanted, memory, primers)
    cost = DecoderCost(small.backbone, 9)
    whole = cost.passes(3, np.full((len(dense.layers), 3), 3.0))
    closed = bench.against_dense(random_gates(1.0, 0))
    assert (closed["skipped"], closed["agree"]) == (1.0, 1.0)
    assert closed["flop_ratio"] == pytest.approx(cost.output(3) / whole, abs=1e-4)
    assert closed["agreement"]["ffn"] == {"all_open": 0.0, "all_closed": 1.0}
    half = bench.against_dense(random_gates(0.5, 0))
    assert 0.2 < half["skipped"] < 0.8
    assert 0 < half["agree"] < 1
    assert closed["flop_ratio"] < half["flop_ratio"] < 1
    together = bench.against_dense(random_gates(0.5, 0, "utterance"))
    assert together["agree"] == 1.0
    assert 0 < together["skipped"] < 1


@pytest.mark.parametrize("pattern", ["hypothesis", "utterance"])
def test_random_gates_skip_the_share_asked_for(pattern: str) -> None:
    state = GateState(torch.arange(250).repeat_interleave(2), torch.zeros(500, dtype=torch.long))
    gates = random_gates(0.3, 0, pattern)
    opened = torch.cat([torch.stack(list(gates(0, torch.zeros(500, 1), state).values())) for _ in range(8)])
    assert abs(1 - opened.float().mean() - 0.3) < 0.03
    same = (opened[:, 0::2] == opened[:, 1::2]).float().mean()
    assert same == 1 if pattern == "utterance" else 0.5 < same < 0.65
