"""What prepared rows are asked for: their tasks, and their speech as tensors.

Shape legend: B utterances, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One thing to be written down for one utterance: its transcript (target == source), a translation, or what a
    symbol of the model's own asks for (target ``<pr>``)."""

    row: int
    source: str
    target: str

    @property
    def name(self) -> str:
        return self.source if self.source == self.target else f"{self.source}-{self.target}"

    @property
    def translates(self) -> bool:
        return self.source != self.target and not self.target.startswith("<")


def list_tasks(rows: Any) -> list[Task]:
    """All tasks of a prepared split, a row's ASR first."""
    tasks = []
    columns = rows.select_columns(["language", "asr", "targets"])
    for index, row in enumerate(columns):
        source = row["language"]
        if row["asr"]:
            tasks.append(Task(index, source, source))
        tasks += [Task(index, source, target) for target in row["targets"]]
    return tasks


def padded_speech(items: Sequence[Mapping[str, Any]], samples: int) -> tuple[Tensor, Tensor]:
    """Prepared rows as tensors: speech (B, N), full scale 1 and zeros behind it, and where each signal ends (B,).

    Args:
        samples: N; longer signals are cut.

    Examples:
        >>> speech, ends = padded_speech([{"samples": [16384, -16384]}, {"samples": [0, 0, 0, 0, 0]}], 4)
        >>> speech[0].tolist(), ends.tolist()
        ([0.5, -0.5, 0.0, 0.0], [2, 4])
    """

    speech_BN = torch.zeros(len(items), samples)
    ends_B = torch.zeros(len(items), dtype=torch.long)
    for index, item in enumerate(items):
        signal = np.asarray(item["samples"], dtype=np.float32)[:samples] / 32768.0
        speech_BN[index, : len(signal)] = torch.from_numpy(signal)
        ends_B[index] = len(signal)
    return speech_BN, ends_B
