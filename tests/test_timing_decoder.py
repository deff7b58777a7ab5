"""The decoder benchmark on a tiny model: its rows, and that it leaves the model as it was."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from localgp.evaluation.timing_decoder import bench_decoder, random_gates
from tests.decoding_helpers import EOS, SOS, make_model

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
}


def test_rows_and_untouched_model() -> None:
    small = make_model(0)
    model = SimpleNamespace(
        decoder=small.decoder,
        ctc=small.ctc,
        sos=SOS,
        eos=EOS,
        eval=lambda: small.decoder.eval(),
        train=lambda mode: small.decoder.train(mode),
    )
    before = {name: value.clone() for name, value in small.decoder.state_dict().items()}
    lines: list[str] = []
    rows = bench_decoder(
        model,
        backbone="tiny",
        notimestamps=3,
        first_time=40,
        last_time=52,
        utterances=(1, 2),
        steps=4,
        skipped=(0.5,),
        frames=15,
        repeats=1,
        progress=lines.append,
    )
    assert all(set(row) >= COLUMNS for row in rows)
    assert len(lines) == len(rows) == 2 * 2 + 2  # two CTC weights and one gated decoder, two batch sizes
    dense, gated = rows[:4], rows[4:]
    assert all(row["identical_hypotheses"] and row["speedup_vs_espnet"] > 0 for row in dense)
    assert all(row["step_time_ratio_vs_dense"] > 0 and row["speedup_vs_espnet"] is None for row in gated)
    for name, value in small.decoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_random_gates_skip_the_share_asked_for() -> None:
    gates = random_gates(0.3, seed=0)
    opened = torch.cat([torch.stack(list(gates(0, torch.zeros(500, 1), None).values())) for _ in range(4)])
    assert abs(1 - opened.float().mean() - 0.3) < 0.03
