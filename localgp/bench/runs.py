"""Seconds of trained runs on the same utterances, paired in one run: what the gates of each one are worth in time.

All runs take turns within every round, so that a machine that is slow for a while is slow for all of them. The parts
of an utterance's way are timed apart: the contexts' extractors, the features, the encoder, the beam search.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from localgp.bench.harness import Paired, paired
from localgp.contexts.extract import RowContexts
from localgp.corpora.rows import list_tasks
from localgp.encoder.run import EncoderOutput
from localgp.evaluation.decode import decode_rows, in_batches, load_batch
from localgp.evaluation.measured import measured_gflops, measured_ratios
from localgp.model import GatedS2T
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches

DENSE = "row01"  # what ratios are against


@dataclass(frozen=True)
class TrainedRun:
    """A trained run that is timed.

    Attributes:
        name, seed: Of the run.
        model: Loaded, in eval mode.
        contexts: Of the utterances, or None.
        extractors: Names of the extractors that make those contexts, as keys of `bench_runs`' ``extractors``.
        budget: Share that its gates keep; None: what they keep by themselves.
    """

    name: str
    seed: int
    model: GatedS2T
    contexts: RowContexts | None = None
    extractors: tuple[str, ...] = ()
    budget: float | None = None


class RunTimer:
    """The steps of one run's evaluation over the same utterances, each by itself.

    Args:
        run: What is timed.
        rows: Prepared rows, all of whose tasks are decoded.
        options: How to decode.
        batch: Utterances encoded together; their tasks are decoded together, as in an evaluation.
    """

    @torch.inference_mode()
    def __init__(self, run: TrainedRun, rows: Any, options: DecodeOptions, batch: int) -> None:
        self._model = model = run.model
        self._encoder = model.packed(budget=run.budget)
        self._searches = TaskSearches(model.backbone, options, torch.float32)
        planned = in_batches(model, rows, list_tasks(rows), batch)
        self._batches = [load_batch(model, rows, passes, run.contexts) for passes in planned]
        self.features()
        self.encoder()

    @torch.inference_mode()
    def features(self) -> None:
        """Log-mel features: the same for all runs but those that do not pad."""
        self._features = [self._model.features(b.speech_BN, b.ends_B) for b in self._batches]

    @torch.inference_mode()
    def encoder(self) -> list[EncoderOutput]:
        """The packed encoder from features on, as its FLOPs are counted."""
        self._encoded = [
            self._encoder.encode_features(*given, b.contexts, b.primers)
            for given, b in zip(self._features, self._batches, strict=True)
        ]
        return self._encoded

    @torch.inference_mode()
    def decoder(self) -> int:
        """The beam search of all tasks; returns how many tokens the best hypotheses have."""
        model, count = self._model, 0
        for encoded, b in zip(self._encoded, self._batches, strict=True):
            gates = partial(model.step_gates, encoded) if model.decoder_policy is not None else None
            found = self._searches(*encoded.memory(), b.owners, b.tasks, gates=gates)
            count += sum(len(written.tokens) for written in found)
        return count


def bench_runs(
    runs: Sequence[TrainedRun],
    rows: Any,
    options: DecodeOptions,
    wanted: DictConfig,
    extractors: dict[str, Any],
    *,
    corpus: str,
    progress: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times the runs in turns.

    Args:
        runs: With names that differ, on one device.
        rows: Prepared rows, the same for all.
        options: How to decode, the same for all.
        wanted: The configuration's group ``bench``.
        extractors: Key to a context's extractor.
        corpus: Name for the rows.
        progress: Called with a line after each part.

    Returns:
        A row for each run.
    """
    device = runs[0].model.backbone.device
    flops = {}
    for run in runs:  # decoding once before the clock starts: FLOPs of these utterances, and warm kernels
        flops[run.name] = _flops(run, rows, options, wanted.batch)
        progress(f"decoded once: {run.name}")
    timers = {run.name: RunTimer(run, rows, options, wanted.batch) for run in runs}
    features = paired({name: timer.features for name, timer in timers.items()}, wanted.repeats, device)
    encoder = paired({name: timer.encoder for name, timer in timers.items()}, wanted.repeats, device)
    progress(f"encoders timed, {wanted.repeats} rounds")
    samples = [np.asarray(row["samples"], dtype=np.float32) / 32768.0 for row in rows]
    making = {key: partial(_extract, extractor, samples) for key, extractor in extractors.items()}
    extraction = paired(making, wanted.repeats, device)
    tokens = {name: timer.decoder() for name, timer in timers.items()}
    decoders = {name: timer.decoder for name, timer in timers.items()}
    decoder = paired(decoders, wanted.decoder_repeats, device, warmup=0)
    progress(f"decoders timed, {wanted.decoder_repeats} rounds")
    audio = float(sum(rows.select_columns(["seconds"])["seconds"]))
    found = []
    for run in runs:
        seconds = {
            "contexts": sum(extraction.median(key) for key in run.extractors),
            "features": features.median(run.name),
            "encoder": encoder.median(run.name),
            "decoder": decoder.median(run.name),
        }
        seconds["total"] = sum(seconds.values())
        row: dict[str, Any] = {"corpus": corpus, "utterances": len(rows), "audio_seconds": round(audio, 2)}
        row |= {"run": run.name, "seed": run.seed, "backbone": run.model.backbone.name, "dtype": "fp32"}
        row |= {f"{part}_seconds": round(60 / audio * value, 4) for part, value in seconds.items()}
        for prefix, times in (("", encoder), ("decoder_", decoder)):
            ratio, spread = ratio_to_dense(times, run.name)
            row |= {f"{prefix}time_ratio_vs_dense": ratio, f"{prefix}time_ratio_spread": spread}
        found.append(row | flops[run.name] | {"tokens": tokens[run.name]})
    dense = next((row for row in found if row["run"] == DENSE), None)
    for row in found:
        row["total_time_ratio_vs_dense"] = round(total_ratio(row, dense), 4) if dense else None
    return found


def _extract(extractor: Any, samples: Sequence[np.ndarray]) -> None:
    for one in samples:
        extractor.extract(one)


def total_ratio(row: Mapping[str, Any], dense: Mapping[str, Any]) -> float:
    """A run's whole time over the dense run's: the ratios of encoder and decoder, which are paired within rounds,
    weighted with the dense run's seconds. Medians of seconds would compare one time of the machine with another.

    Examples:
        >>> dense = {"features_seconds": 0.1, "encoder_seconds": 0.3, "decoder_seconds": 0.6, "contexts_seconds": 0.0}
        >>> ratios = {"time_ratio_vs_dense": 0.5, "decoder_time_ratio_vs_dense": 1.0}
        >>> round(total_ratio(dense | ratios, dense), 2)
        0.85
    """
    seconds = row["features_seconds"] + row["contexts_seconds"]
    seconds += row["time_ratio_vs_dense"] * dense["encoder_seconds"]
    seconds += row["decoder_time_ratio_vs_dense"] * dense["decoder_seconds"]
    parts = ("features", "contexts", "encoder", "decoder")
    return float(seconds / sum(dense[f"{part}_seconds"] for part in parts))


def ratio_to_dense(times: Paired, name: str) -> tuple[float | None, list[float] | None]:
    """Median over the rounds of a run's time over the dense run's, and its quartiles; None without a dense run.

    Examples:
        >>> ratio_to_dense(Paired({"row01": [1.0, 2.0, 4.0], "row05": [0.5, 1.8, 2.4]}), "row05")
        (0.6, [0.55, 0.75])
    """
    if DENSE not in times.seconds:
        return None, None
    ratios = [a / b for a, b in zip(times.seconds[name], times.seconds[DENSE], strict=True)]
    low, high = np.percentile(ratios, [25, 75])
    return round(statistics.median(ratios), 4), [round(float(low), 4), round(float(high), 4)]


def _flops(run: TrainedRun, rows: Any, options: DecodeOptions, batch: int) -> dict[str, Any]:
    """Of exactly what ran for these utterances: over the dense, padded encoder's and the dense decoder's."""
    decoded = decode_rows(
        run.model,
        rows,
        list_tasks(rows),
        replace(options, budget=run.budget),
        batch=batch,
        progress=False,
        contexts=run.contexts,
    )
    rate = run.model.backbone.sample_rate
    lengths = [round(seconds * rate) for seconds in rows.select_columns(["seconds"])["seconds"]]
    counted = measured_gflops(
        run.model,
        decoded.gates,
        decoded.decoder_gates,
        None if run.model.window.is_full else run.model.heard(torch.tensor(lengths)).tolist(),
    )
    sparsity = measured_ratios(decoded.gates, decoded.decoder_gates)["sparsity"] or {}
    decoder = counted["decoder"] / counted["decoder_dense"] if "decoder" in counted else 1.0
    return {
        "skipped": sparsity.get("all_frames", 0.0),
        "decoder_skipped": sparsity.get("decoder_tokens", 0.0),
        "flop_ratio": round(counted["encoder"] / counted["dense"], 4),
        "decoder_flop_ratio": round(decoder, 4),
    }
