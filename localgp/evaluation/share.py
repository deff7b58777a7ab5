"""Decoding shared by several processes: who decodes what, and one result from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from localgp.corpora.rows import Task
from localgp.evaluation.decode import Decoded
from localgp.evaluation.decoder_gates_file import join_records
from localgp.evaluation.gates_file import with_frames
from localgp.world import World


def share_of(world: World, tasks: Sequence[Task], rows: Any) -> list[Task]:
    """This process's tasks. All tasks of an utterance stay together, since they share its encoder pass, and every
    process gets utterances of all lengths.
    """
    if world.ranks == 1:
        return list(tasks)
    lengths = rows.select_columns(["seconds"])["seconds"]
    order = sorted({task.row for task in tasks}, key=lambda index: (lengths[index], index))
    mine = set(order[world.rank :: world.ranks])
    return [task for task in tasks if task.row in mine]


def merge_decoded(parts: Sequence[Decoded], tasks: Sequence[Task], rows: Any) -> Decoded:
    """The parts as one process would have decoded them: tasks and utterances in the order of the rows."""
    if len(parts) == 1:
        return parts[0]
    merged = Decoded()
    names = rows.select_columns(["utt_id"])["utt_id"]
    for task in tasks:
        for part in parts:
            text = part.text.get(task.name, {}).get(names[task.row])
            if text is not None:
                merged.text.setdefault(task.name, {})[names[task.row]] = text
    merged.seconds = {
        kind: max(part.seconds[kind] for part in parts) for kind in parts[0].seconds
    }  # side by side
    tokens = [part.decoder_gates for part in parts if part.decoder_gates is not None]
    if tokens:
        merged.decoder_gates = join_records(tokens)
    records = [part.gates for part in parts if part.gates is not None]
    if records:
        place = {name: index for index, name in enumerate(names)}
        utt_ids = [name for record in records for name in record.utt_ids]
        order = sorted(range(len(utt_ids)), key=lambda index: place[utt_ids[index]])
        longest = max(records, key=lambda record: record.open.shape[-1])
        opened = [with_frames(record.open, longest.open.shape[-1]) for record in records]
        ragged = longest.lengths is not None
        merged.gates = replace(
            longest,
            utt_ids=[utt_ids[index] for index in order],
            open=np.concatenate(opened)[order],
            real=np.concatenate([record.real for record in records])[order],
            lengths=np.concatenate([record.counts() for record in records])[order] if ragged else None,
        )
    return merged
