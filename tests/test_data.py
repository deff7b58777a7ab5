"""Batches: a pure function of seed and step."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from localgp.backbones.owsm.stem import CONVOLUTIONS, subsample
from localgp.corpora.rows import list_tasks
from localgp.errors import ConfigError
from localgp.timeline import Convolution, Timeline, frame_centres
from localgp.training.data import (
    Collate,
    StepBatches,
    TrainingExamples,
    check_enough,
)
from tests.conftest import make_encoder

TIMELINE = Timeline(160, CONVOLUTIONS)


class Letters:
    """One id per letter, a prompt of two."""

    def encode(self, text):
        return [ord(c) - 90 for c in text]

    def prompt(self, source, target):
        return [1, 2 if source == target else 3]


LETTERS = SimpleNamespace(tokenizer=Letters(), samples=100, timeline=TIMELINE)


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


def test_grouped_batch(rows):
    examples = TrainingExamples(rows, LETTERS, group_tasks=True)
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
        examples = TrainingExamples(rows, LETTERS, group_tasks=True, init_silence=30, seed=seed)
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
    mask = TIMELINE.real(signal, 11)
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
    _, front, mask = subsample(encoder.embed, TIMELINE, features, torch.tensor([frames]))
    centres = TIMELINE.centres(mask.shape[2]) / 160
    np.testing.assert_allclose(frame_centres(mask.shape[2], frames + 1), centres)
    for t in (0, 7, mask.shape[2] - 1):
        (gradient,) = torch.autograd.grad(front[0, t].sum(), features, retain_graph=True)
        seen = gradient[0].abs().sum(-1).nonzero().flatten()
        assert centres[t] == pytest.approx(float(seen.float().mean()))


@pytest.mark.parametrize(
    "stem",
    [
        CONVOLUTIONS,
        (Convolution(3, 2),) * 3,  # conv2d8
        (Convolution(3, 2), Convolution(5, 3)),  # conv2d6
        (Convolution(3, 1, 1), Convolution(3, 2, 1)),  # Whisper's
    ],
)
def test_a_timeline_is_that_of_its_convolutions(stem):
    """Frames, stride, reach and centres against PyTorch's convolutions, by what a frame's gradient reaches."""
    layers = [torch.nn.Conv1d(1, 1, width, stride, padding) for width, stride, padding in stem]
    for layer in layers:
        torch.nn.init.ones_(layer.weight)
    timeline = Timeline(160, stem)
    for count in (timeline.shortest - 1, timeline.shortest, 41, 60, 61):
        x = torch.ones(1, 1, count, requires_grad=True)
        frames = timeline.frames(count)
        if frames < 1:
            continue
        y = torch.nn.Sequential(*layers)(x)
        assert y.shape[2] == frames
        for t in range(frames):
            (gradient,) = torch.autograd.grad(y[0, 0, t], x, retain_graph=True)
            seen = gradient[0, 0].nonzero().flatten().tolist()
            begin = timeline.first + timeline.stride * t
            assert seen == [s for s in range(begin, begin + timeline.reach) if 0 <= s < count]
        middle = timeline.first + (timeline.reach - 1) / 2
        assert timeline.centres(1)[0] == 160 * middle
    assert timeline.frames(timeline.shortest - 1) == 0 < timeline.frames(timeline.shortest)
