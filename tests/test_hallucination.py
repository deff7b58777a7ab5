"""What is written that nobody said."""

from __future__ import annotations

import torch

from localgp.build import build_model
from localgp.contexts.extract import row_contexts
from localgp.evaluation.hallucination import over_twice, probes, written_on_nothing
from localgp.hub.load import base_config
from localgp.search.options import DecodeOptions


def test_outputs_over_twice_as_long():
    references, hypotheses = ["guten tag"] * 4, ["guten tag", "guten tag " * 3, "", "g u t e n " * 4]
    found = over_twice({"de": (references, hypotheses), "de-fr": (["oui"], ["oui"])})
    assert found == {"de": 0.5, "de-fr": 0.0, "average": 0.25}
    assert over_twice({"de": ([""], ["x"])})["de"] == 1.0, "a single letter where nothing is said"


def test_probes_go_through_a_model_with_contexts(tmp_path):
    cfg = base_config("conf=row06", f"data_dir={tmp_path}", "contexts.spk.shuffle=true", "device=cpu")
    rows = probes(["de", "it"], 16_000, 3.0)
    assert sorted(set(rows["seconds"])) == [1.0], "no longer than the window"
    levels = [max(abs(x) for x in samples) for samples in rows["samples"]]
    assert [level > 0 for level in levels] == [False, False, True, True]
    model = build_model(cfg).eval()
    options = DecodeOptions(beam=1, maxlenratio=-6)
    contexts = row_contexts(cfg, (rows, rows))
    found = written_on_nothing(model, rows, options, dtype=torch.float32, contexts=contexts)
    assert found.keys() == {"silence", "noise"}
    assert all(0 <= letters < 60 for letters in found.values())
