"""Batches: a pure function of seed and step."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from localgp.encoder.run import subsample
from localgp.errors import ConfigError
from localgp.timeline import frame_centres
from localgp.training.data import (
    Collate,
    StepBatches,
    TrainingExamples,
    check_enough,
    list_tasks,
    real_frames,
)
from tests.conftest import make_encoder


class Letters:
    """One id per letter, a prompt of two."""

    def encode(self, text):
        return [ord(c) - 90 for c in text]

    def prompt(self, source, target):
        return [1, 2 if source == target else 3]


@pytest.fixture
def rows():
    return datasets.Dataset.from_list(
        [
            {
                "utt_id": f"u{i}",
                "language": "de",
                "asr": i != 1,
                "transcript": "ab",
                "targets": ["fr", "it"] if i else ["fr"],
                "translations": ["c", "dd"] if i else ["c"],
                "samples": [100 * (i + 1)] * (40 + 10 * i),
            }
            for i in range(5)
        ]
    ).with_format("numpy", columns=["samples"], output_all_columns=True)


def test_tasks(rows):
    assert [t.name for t in list_tasks(rows.select([0, 1]))] == ["de", "de-fr", "de-fr", "de-it"]
    assert [t.name for t in list_tasks(rows.select([2]), ["it"])] == ["de", "de-it"]


def test_grouped_batch(rows):
    examples = TrainingExamples(rows, Letters(), 100, group_tasks=True)
    batch = Collate(na=9)([examples[0, 0], examples[0, 2]])
    assert batch["tasks"] == ["de", "de-fr", "de", "de-fr", "de-it"]
    assert batch["utterance"].tolist() == [0, 0, 1, 1, 1]
    assert batch["text"].tolist()[4] == [1, 3, 10, 10]
    assert batch["text"].tolist()[1] == [1, 3, 9, -1]
    assert batch["signal"].tolist() == [[0, 40], [0, 60]]
    assert batch["speech"][0, 39] == pytest.approx(100 / 32768)
    assert batch["speech"][0, 40:].abs().sum() == 0


def test_silence_is_a_function_of_seed_epoch_and_example(rows):
    def offset(seed, epoch):
        examples = TrainingExamples(rows, Letters(), 100, group_tasks=True, init_silence=30, seed=seed)
        return examples[epoch, 3]["signal"][0]

    assert offset(1, 0) == offset(1, 0)
    assert len({offset(seed, epoch) for seed in range(4) for epoch in range(4)}) > 4


def test_first_k_plus_rest_is_all():
    whole = list(StepBatches(23, 4, 17, seed=3))
    assert list(StepBatches(23, 4, 7, seed=3)) + list(StepBatches(23, 4, 17, start=7, seed=3)) == whole
    epoch = [index for batch in whole[:5] for _, index in batch]
    assert len(set(epoch)) == 20
    assert whole[5][0][0] == 1
    assert list(StepBatches(23, 4, 17, seed=4)) != whole


def test_ranks_share_what_one_rank_sees():
    one = list(StepBatches(40, 8, 6, seed=1))
    two = [list(StepBatches(40, 4, 6, seed=1, rank=r, ranks=2)) for r in range(2)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_real_frames():
    """Encoder frame t is centred at 40 t + 30 ms."""
    signal = torch.tensor([[0, 4 * 640 + 480], [0, 4 * 640 + 481], [481, 3 * 640]])
    mask = real_frames(signal, 11, 12 * 640)
    np.testing.assert_array_equal(mask[0], [1] * 4 + [0] * 7)
    np.testing.assert_array_equal(mask[1], [1] * 5 + [0] * 6)
    np.testing.assert_array_equal(mask[2], [0] + [1] * 2 + [0] * 8)


def test_too_few_examples_for_a_step():
    check_enough(16, 8, 2)
    with pytest.raises(
        ConfigError, match=r"15 training examples.*batch_size=8 in each of 2.*batch_size=7 or"
    ):
        check_enough(15, 8, 2)
    with pytest.raises(ConfigError, match=r"3 training examples.*batch_size=4; valid.*batch_size=3 or"):
        check_enough(3, 4, 1)


def test_frame_centres_are_the_middle_of_what_a_frame_sees():
    """The feature frames that an encoder frame's gradient reaches, through the real subsampling."""
    encoder, frames = make_encoder(), 79  # 80 hops are 19 encoder frames
    features = torch.randn(1, frames, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
    _, front, mask = subsample(encoder, features, torch.ones(1, 1, frames, dtype=torch.bool))
    centres = frame_centres(mask.shape[2], frames + 1)
    for t in (0, 7, mask.shape[2] - 1):
        (gradient,) = torch.autograd.grad(front[0, t].sum(), features, retain_graph=True)
        seen = gradient[0].abs().sum(-1).nonzero().flatten()
        assert centres[t] == pytest.approx(float(seen.float().mean()))
