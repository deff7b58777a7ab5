"""Paired bootstrap: agreement with sacrebleu's, intervals, and which runs are compared."""

from __future__ import annotations

import numpy as np
import pytest

from localgp.corpora.prepared import load_prepared
from localgp.report.bootstrap import (
    RESAMPLES,
    Difference,
    Scores,
    average,
    bleu_of,
    compare_bleu,
    compare_wer,
    interval,
    score_bleu,
    score_wer,
)
from localgp.report.comparisons import QUESTIONS, base_of, paired, significance, verdict
from localgp.report.runs import collect, group
from localgp.report.utterances import Corpora
from localgp.tables import NOT_RUN
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
    ours = compare_bleu(score_bleu(references, base), score_bleu(references, system))
    assert ours.change == pytest.approx(theirs[1].score - theirs[0].score)
    assert ours.p == pytest.approx(theirs[1].p_value)
    assert np.mean(ours.resampled_R) == pytest.approx(theirs[1].mean - theirs[0].mean, abs=0.3)


def test_wer_intervals_hold_the_difference_and_know_chance(references):
    base = score_wer(references, spoilt(references, 0.2, 1))
    worse = compare_wer(base, score_wer(references, spoilt(references, 0.6, 2)))
    low, high = interval([worse])
    assert 0 < low < worse.change < high
    assert worse.p < 0.01
    chance = compare_wer(base, score_wer(references, spoilt(references, 0.2, 3)))
    low, high = interval([chance])
    assert low < 0 < high
    same = compare_wer(base, base)
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


def test_bleu_of_counts_is_sacrebleus():
    from sacrebleu.metrics import BLEU

    rng = np.random.default_rng(0)
    cases = [[0, 5, 0, 0, 0, 0, 0, 0, 0, 0], [3, 9, 1, 0, 0, 0, 3, 2, 1, 0], [9, 9, 9, 8, 7, 6, 9, 8, 7, 6]]
    for _ in range(200):
        total = rng.integers(4, 40) - np.arange(4)
        cases.append([total[0], rng.integers(1, 50), *rng.integers(0, total + 1), *total])
    for case in cases:
        theirs = BLEU.compute_bleu(case[2:6], case[6:10], case[0], case[1], smooth_method="exp").score
        assert float(bleu_of(np.array(case, dtype=float))) == pytest.approx(theirs, abs=1e-9), case


def test_a_difference_is_shown_where_its_interval_leaves_zero_out():
    noise = np.random.default_rng(0).normal(0, 0.1, RESAMPLES)
    up, none = Difference(1.0, 0.01, 1.0 + noise), Difference(0.05, 0.7, 0.05 + noise)
    down = Difference(-1.0, 0.01, -1.0 + noise)
    assert (verdict([up], 1), verdict([up], -1), verdict([down], -1)) == ("better", "worse", "better")
    assert verdict([none], 1) == verdict([up, down, none], 1) == "no difference shown"
    both = average([up, down])
    assert both.change == 0
    np.testing.assert_allclose(both.resampled_R, noise)


def test_variants_have_bases_of_their_kind():
    speaker, wrong = QUESTIONS[0], QUESTIONS[3]
    known = ["row05", "row05-cosine", "row05-target0.5", "control_shuffled_speaker"]
    assert base_of(speaker, "row06-cosine", known) == "row05-cosine"
    assert base_of(speaker, "row06-other", known) == "row05"
    assert base_of(speaker, "row06-other-target0.5", known) == "row05-target0.5"
    assert base_of(speaker, "row06-target0.7", known) == "", "another target is no control"
    assert base_of(wrong, "row06-cosine", known) == "control_shuffled_speaker"
    assert base_of(wrong, "row07", known) == ""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two seeds each; which words are wrong follows from the seed, so that all runs of one have the same scores."""
    place = shared_place(tmp_path_factory)
    rows = load_prepared(place.config())["test"]
    own = f"exp_dir={tmp_path_factory.mktemp('pair') / 'exp'}"
    for given in ("row01", "row05", "row06", "control_shuffled_speaker"):
        for seed in (1, 2):
            path = add_run(place, rows, None, f"conf={given}", f"seed={seed}", own)
    add_run(place, rows, None, "conf=row06", "name=row06-cosine", "seed=2", own)
    (groups,) = group(collect(path.parents[3])).values()
    return groups, Scores(Corpora(place.path / "data"))


def test_row06_is_compared_with_its_control(pairs):
    table = significance(*pairs)
    assert [row[0] for row in table.rows] == [
        "row05 - row01",
        "row06 - row01",
        "row06-cosine - row01",
        "control_shuffled_speaker - row01",
        "row06 - row05",
        "row06-cosine - row05",
        "control_shuffled_speaker - row05",
        "row06 - control_shuffled_speaker",
        "row06-cosine - control_shuffled_speaker",
    ]
    assert table.rows[-1][1] == "+0.0 [+0.0, +0.0] (p 1.000)"


def test_questions_have_an_answer(pairs):
    groups, scores = pairs
    table = paired(groups, scores)
    rows = {row[0]: row[1:5] for row in table.rows}
    same = ["+0.00 [+0.00, +0.00]"] * 2
    assert rows == {
        "row06 - row05": ["no difference shown", "2", *same],
        "row06-cosine - row05": ["no difference shown", "1", *same],
        "row07 - row05": [NOT_RUN, "-", "-", "-"],
        "row08 - row05": [NOT_RUN, "-", "-", "-"],
        "row06 - control_shuffled_speaker": ["no difference shown", "2", *same],
        "row06-cosine - control_shuffled_speaker": ["no difference shown", "1", *same],
        "row11 - row06": [NOT_RUN, "-", "-", "-"],
    }
    assert paired([g for g in groups if g.name in ("row01", "row05")], scores) is None


def test_a_better_system_is_called_better(tmp_path_factory):
    place = shared_place(tmp_path_factory)
    rows = load_prepared(place.config())["test"]
    own = f"exp_dir={tmp_path_factory.mktemp('better') / 'exp'}"
    add_run(place, rows, None, "conf=row05", own)
    path = add_run(place, rows, None, "conf=row07", own)
    for task in (path / "hyp").glob("*.txt"):  # row07 makes no mistake
        source, _, target = task.name.removeprefix("test.").removesuffix(".txt").partition("-")
        texts = {}
        for row in rows.remove_columns(["samples"]).with_format(None):
            known = {
                row["language"]: row["transcript"],
                **dict(zip(row["targets"], row["translations"], strict=True)),
            }
            if row["language"] == source:
                texts[row["utt_id"]] = known[target]
        task.write_text("".join(f"{u} {texts[u]}\n" for u in sorted(texts)), encoding="utf-8")
    (groups,) = group(collect(path.parents[3])).values()
    table = paired(groups, Scores(Corpora(place.path / "data")))
    (events,) = [row for row in table.rows if row[0] == "row07 - row05"]
    assert events[1:3] == ["better", "1"]
    assert events[3].startswith("-")
    assert events[4].startswith("+")
