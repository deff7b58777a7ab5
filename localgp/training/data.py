"""From prepared rows to batches, in an order that is a pure function of the seed and the step.

Nothing here has state to save: step k of a run is the same batch with the same random silence whether the run
came to it in one go or after ten restarts.

Shape legend: B utterances, N samples, Q sequences, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from localgp.backbones.base import Backbone
from localgp.contexts.extract import RowContexts, stack_contexts
from localgp.corpora.integrity import read_row
from localgp.corpora.rows import Task, list_tasks
from localgp.errors import ConfigError

OF_UTTERANCES = (
    "speech",
    "speech_lengths",
    "signal",
    "text_ctc",
    "text_ctc_lengths",
    "contexts",
)  # not sequences
IGNORE = -1  # ESPnet's padding of token sequences


class TrainingExamples(Dataset):
    """Utterances with the tasks that share their encoder pass.

    Args:
        rows: A prepared split (`localgp.corpora.prepared`).
        backbone: Whose tokens and frames they are for.
        samples: N, of the longest input; None: the backbone's.
        group_tasks: One example per utterance with all of its tasks, or one per task.
        init_silence: Up to this many samples of silence are put on the left, drawn per (seed, epoch, example)
            as OWSM's preprocessor does; 0 for none.
        contexts: What the gates see besides the speech, moved by the silence as the speech is.

    Attributes:
        texts: Task name to utterance id to text, in place of the rows' own; None for those.
    """

    def __init__(
        self,
        rows: Any,
        backbone: Backbone,
        samples: int | None = None,
        *,
        group_tasks: bool,
        init_silence: int = 0,
        seed: int = 0,
        contexts: RowContexts | None = None,
    ) -> None:
        self.contexts = contexts
        self.texts: dict[str, dict[str, str]] | None = None
        self.rows, self.samples = rows, samples or backbone.samples
        self.tokenizer, self.timeline = backbone.tokenizer, backbone.timeline
        self.init_silence, self.seed = init_silence, seed
        tasks = list_tasks(rows)
        if group_tasks:
            grouped: dict[int, list[Task]] = {}
            for task in tasks:
                grouped.setdefault(task.row, []).append(task)
            self.examples = list(grouped.values())
        else:
            self.examples = [[task] for task in tasks]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        tasks = self.examples[index]
        row = read_row(self.rows, tasks[0].row)
        signal = np.asarray(row["samples"], dtype=np.float32)[: self.samples] / 32768.0
        offset = 0
        room = min(self.init_silence, self.samples - len(signal))
        if room > 0:
            offset = int(np.random.default_rng([self.seed, epoch, index]).integers(room + 1))
        speech = np.zeros(self.samples, dtype=np.float32)
        speech[offset : offset + len(signal)] = signal
        texts = self._texts(row, tasks)
        return {
            "utt_id": row["utt_id"],
            "speech": speech,
            "signal": (offset, offset + len(signal)),
            "text_ctc": self.tokenizer.encode(texts.get(row["language"], row["transcript"])),
            "texts": [
                self.tokenizer.prompt(task.source, task.target) + self.tokenizer.encode(texts[task.target])
                for task in tasks
            ],
            "tasks": [task.name for task in tasks],
            "contexts": self.contexts.of(row, offset, self.samples, self.timeline) if self.contexts else {},
        }

    def _texts(self, row: Any, tasks: Sequence[Task]) -> dict[str, str]:
        """By the language that they are in."""
        if self.texts is not None:
            return {task.target: self.texts[task.name][row["utt_id"]] for task in tasks}
        translated = zip(row["targets"], row["translations"], strict=True)
        return dict(translated) | {row["language"]: row["transcript"]}


def check_enough(examples: int, batch_size: int, ranks: int) -> None:
    """Refuses a corpus that does not fill one step.

    Raises:
        ConfigError: There are fewer examples than a step takes.
    """
    if examples < batch_size * ranks:
        processes = f" in each of {ranks} processes" if ranks > 1 else ""
        raise ConfigError(
            f"there are {examples} training examples, and a step takes training.batch_size={batch_size}{processes}; "
            f"valid: training.batch_size={max(1, examples // ranks)} or less. Or train on more (training.limit=null), "
            "or with fewer processes."
        )


class StepBatches(Sampler):
    """Batches of (epoch, index) for the steps from ``start`` on; each epoch is shuffled by (seed, epoch).

    With several ranks, each takes its share of every batch, so that a step sees the same examples whatever
    the number of ranks: two ranks with batch b see what one rank with batch 2 b sees. An epoch leaves out what does
    not fill a batch; `check_enough` says whether there is one at all.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        steps: int,
        *,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.examples, self.batch_size, self.steps, self.start = examples, batch_size, steps, start
        self.seed, self.rank, self.ranks = seed, rank, ranks

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        world = self.batch_size * self.ranks
        per_epoch = self.examples // world
        order, order_epoch = np.zeros(0, dtype=np.int64), -1
        for step in range(self.start, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
                order_epoch = epoch
            begin = position * world + self.rank * self.batch_size
            yield [(epoch, int(i)) for i in order[begin : begin + self.batch_size]]


def rows_in(examples: TrainingExamples, batches: StepBatches) -> list[int]:
    """The rows that are seen in these batches, in order."""
    seen: set[int] = set()
    for batch in batches:
        seen.update(examples.examples[index][0].row for _, index in batch)
        if len(seen) == len(examples.rows):
            break
    return sorted(seen)


def pad_tokens(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token lists to (Q, L) padded with `IGNORE`, and lengths (Q,)."""
    lengths = torch.tensor([len(s) for s in sequences])
    padded = torch.full((len(sequences), int(lengths.max())), IGNORE)
    for index, sequence in enumerate(sequences):
        padded[index, : len(sequence)] = torch.tensor(sequence)
    return padded, lengths


def one_by_one(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose utterances appear once for each of their sequences, for an encoder that is told what to write."""
    owner_Q = batch["utterance"]

    def each(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: each(part) for name, part in value.items()}
        return value.index_select(0, owner_Q)

    told = {name: each(batch[name]) for name in OF_UTTERANCES if name in batch}
    told["utt_ids"] = [batch["utt_ids"][owner] for owner in owner_Q.tolist()]
    return batch | told | {"utterance": torch.arange(len(owner_Q), device=owner_Q.device)}


class Collate:
    """Examples to a batch; a class and not a closure so that worker processes can be given it.

    The batch: ``speech`` (B, N) float32, ``speech_lengths`` (B,) all N, ``signal`` (B, 2) first and last
    sample that is not padding, ``text_ctc`` (B, L), ``text`` and ``text_prev`` (Q, L) with their lengths,
    ``utterance`` (Q,), ``contexts``, name to (B, T, C) or (B, 1, C), and the lists ``utt_ids`` and ``tasks``.
    """

    def __init__(self, na: int) -> None:
        self.na = na

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        speech = torch.from_numpy(np.stack([e["speech"] for e in examples]))
        text_ctc, text_ctc_lengths = pad_tokens([e["text_ctc"] for e in examples])
        text, text_lengths = pad_tokens([text for e in examples for text in e["texts"]])
        sequences = len(text)
        return {
            "utt_ids": [e["utt_id"] for e in examples],
            "tasks": [task for e in examples for task in e["tasks"]],
            "speech": speech,
            "speech_lengths": torch.full((len(examples),), speech.shape[1]),
            "signal": torch.tensor([e["signal"] for e in examples]),
            "text_ctc": text_ctc,
            "text_ctc_lengths": text_ctc_lengths,
            "text": text,
            "text_lengths": text_lengths,
            "text_prev": torch.full((sequences, 1), self.na),
            "text_prev_lengths": torch.ones(sequences, dtype=torch.long),
            "utterance": torch.tensor([i for i, e in enumerate(examples) for _ in e["texts"]]),
            "contexts": stack_contexts([e["contexts"] for e in examples]),
        }
