"""Paired bootstrap: agreement with sacrebleu's, intervals, and which runs are compared."""

from __future__ import annotations

import numpy as np
import pytest

from localgp.analysis.collect import collect, group
from localgp.analysis.significance import (
    RESAMPLES,
    Difference,
    compare_bleu,
    compare_wer,
    interval,
    significance,
)
from localgp.analysis.study import Corpora
from tests.analysis_helpers import add_run, shared_place


def spoilt(texts: list[str], share: float, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join("x" if rng.random() < share else w for w in text.split()) for text in texts]


@pytest.fixture(scope="module")
def references():
    rng = np.random.default_rng(0)
    words = ["der", "Haus,", "ein", "grosses", "Tier;", "läuft", "nach", "und", "(viel)", "Brot."]
    return [" ".join(rng.choice(words, size=rng.integers(1, 14))) for _ in range(40)]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_bleu_is_sacrebleus_paired_bootstrap(references, share):
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    base, system = spoilt(references, 0.2, 1), spoilt(references, share, 2)
    test = PairedTest(
        [("base", base), ("system", system)], {"BLEU": BLEU()}, [references], "bs", n_samples=RESAMPLES
    )
    _, found = test()
    theirs = found["BLEU"]
    ours = compare_bleu(references, base, {"system": system})["system"]
    assert ours.change == pytest.approx(theirs[1].score - theirs[0].score)
    assert ours.p == pytest.approx(theirs[1].p_value)
    assert np.mean(ours.resampled_R) == pytest.approx(theirs[1].mean - theirs[0].mean, abs=0.3)


def test_wer_intervals_hold_the_difference_and_know_chance(references):
    base = spoilt(references, 0.2, 1)
    worse = compare_wer(references, base, spoilt(references, 0.6, 2))
    low, high = interval([worse])
    assert 0 < low < worse.change < high
    assert worse.p < 0.01
    chance = compare_wer(references, base, spoilt(references, 0.2, 3))
    low, high = interval([chance])
    assert low < 0 < high
    same = compare_wer(references, base, base)
    assert (same.change, same.p, interval([same])) == (0.0, 1.0, (0.0, 0.0))


def test_interval_covers_what_seeds_differ_in():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, RESAMPLES)
    agreeing = [Difference(2.0, 0.01, 2.0 + noise)] * 3
    apart = [Difference(c, 0.01, c + noise) for c in (1.0, 2.0, 3.0)]
    low, high = interval(agreeing)
    assert (low, high) == pytest.approx(np.percentile(2.0 + noise, [2.5, 97.5]))
    wide_low, wide_high = interval(apart)
    assert wide_low == pytest.approx(1.0, abs=0.4)
    assert wide_high == pytest.approx(3.0, abs=0.4)


def test_row06_is_compared_with_its_control(tmp_path_factory):
    from localgp.corpora.prepared import load_prepared

    place = shared_place(tmp_path_factory)
    rows = load_prepared(place.config())["test"]
    own = f"exp_dir={tmp_path_factory.mktemp('pair') / 'exp'}"
    for name in ("row01", "row06", "control_shuffled_speaker"):
        path = add_run(place, rows, None, f"conf={name}", own)
    (groups,) = group(collect(path.parents[3])).values()
    table = significance(groups, Corpora(place.path / "data"))
    assert [row[0] for row in table.rows] == [
        "row06 - row01",
        "control_shuffled_speaker - row01",
        "row06 - control_shuffled_speaker",
    ]
    assert table.rows[-1][1] == "+0.0 [+0.0, +0.0] (p 1.000)"
