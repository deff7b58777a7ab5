"""Which decoder module ran for which token, for a whole split in one small file.

A token's gates are those of the pass that wrote it: its input is the token before (for the first one the prompt's
last symbol), and what ran there is what it took to decide on this token.

``gates/<split>.decoder.npz`` holds, for the N tokens of all best hypotheses, L decoder layers and M modules:

| array      | type, shape         | content                                                                |
|------------|---------------------|------------------------------------------------------------------------|
| `modules`  | str (M,)            | `self_attention`, `source_attention`, `ffn`                            |
| `bits`     | uint8 (N, ceil(L M / 8)) | `numpy.packbits` over layers, then modules; 1 where the module ran |
| `layers`   | int ()              | L                                                                      |
| `pieces`   | str (P,)            | the distinct tokens, as in the BPE vocabulary: `▁` begins a word       |
| `tokens`   | int32 (N,)          | index into `pieces`; hypotheses one after the other, without prompt and end |
| `utt_ids`  | str (H,)            | of every hypothesis                                                    |
| `tasks`    | str (H,)            | `de`, `de-fr`, …                                                       |
| `lengths`  | int32 (H,)          | tokens of every hypothesis; they add up to N                           |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localgp.evaluation.gates_file import stored_arrays
from localgp.io import written


@dataclass
class DecoderGateRecord:
    """The file's content, unpacked: ``open`` is bool (N, L, M), ``pieces`` has one entry a token."""

    modules: list[str]
    open: np.ndarray
    pieces: list[str]
    utt_ids: list[str]
    tasks: list[str]
    lengths: np.ndarray

    def task_of_token(self) -> np.ndarray:
        """(N,) str."""
        return np.repeat(np.array(self.tasks), self.lengths)


def kept_of_tokens(record: DecoderGateRecord) -> np.ndarray:
    """Share of tokens for which each module ran, (L, M)."""
    return record.open.mean(0) if len(record.open) else np.ones(record.open.shape[1:])


def join_records(records: Sequence[DecoderGateRecord]) -> DecoderGateRecord:
    """The hypotheses of several records in one, sorted by task and utterance."""
    starts = [np.cumsum([0, *record.lengths]) for record in records]
    order = sorted(
        (record.tasks[h], record.utt_ids[h], r, h)
        for r, record in enumerate(records)
        for h in range(len(record.utt_ids))
    )
    spans = [(records[r], slice(int(starts[r][h]), int(starts[r][h + 1]))) for _, _, r, h in order]
    return DecoderGateRecord(
        records[0].modules,
        np.concatenate([record.open[span] for record, span in spans]),
        [piece for record, span in spans for piece in record.pieces[span]],
        [utt_id for _, utt_id, _, _ in order],
        [task for task, *_ in order],
        np.array([span.stop - span.start for _, span in spans], dtype=np.int64),
    )


def write_decoder_gates(path: Path, record: DecoderGateRecord) -> None:
    """Writes aside and renames.

    Raises:
        ValueError: The parts do not fit together.
    """
    tokens, layers, modules = record.open.shape
    if not (tokens == len(record.pieces) == int(np.sum(record.lengths)) and modules == len(record.modules)):
        raise ValueError(
            f"{tokens} tokens x {modules} modules of gates, {len(record.pieces)} pieces, hypotheses of "
            f"{int(np.sum(record.lengths))} tokens, {len(record.modules)} module names"
        )
    pieces, index = np.unique(np.array(record.pieces, dtype=np.str_), return_inverse=True)
    with written(path, ".npz") as temporary:
        np.savez_compressed(
            temporary,
            modules=np.array(record.modules),
            bits=np.packbits(record.open.reshape(tokens, -1), axis=-1),
            layers=np.array(layers),
            pieces=pieces,
            tokens=index.astype(np.int32),
            utt_ids=np.array(record.utt_ids),
            tasks=np.array(record.tasks),
            lengths=np.asarray(record.lengths, dtype=np.int32),
        )


def read_decoder_gates(path: Path) -> DecoderGateRecord:
    """Reads what `write_decoder_gates` wrote; nothing is unpickled.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    with stored_arrays(path) as file:
        modules = [str(m) for m in file["modules"]]
        layers, lengths = int(file["layers"]), file["lengths"]
        bits = np.unpackbits(file["bits"], axis=-1, count=layers * len(modules)).astype(bool)
        if len(bits) != len(file["tokens"]) or len(bits) != lengths.sum():
            raise ValueError(
                f"gates of {len(bits)} tokens, {len(file['tokens'])} tokens, {lengths.sum()} in hypotheses"
            )
        return DecoderGateRecord(
            modules,
            bits.reshape(-1, layers, len(modules)),
            [str(p) for p in file["pieces"][file["tokens"]]],
            [str(u) for u in file["utt_ids"]],
            [str(t) for t in file["tasks"]],
            lengths,
        )
