"""Batches: a pure function of seed and step."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from localgp.training.data import Collate, StepBatches, TrainingExamples, list_tasks, real_frames


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
    mask = real_frames(torch.tensor([[0, 50], [20, 80]]), 10, 100)
    np.testing.assert_array_equal(mask[0], [1] * 5 + [0] * 5)
    np.testing.assert_array_equal(mask[1], [0, 0] + [1] * 6 + [0, 0])
