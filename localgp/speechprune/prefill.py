"""How much of the FLOPs that pruning saves becomes time and memory, measured on one model in one run.

The paper's table gives prefill milliseconds on a GPU. Here every rate is timed in turn, round after round, and a
rate's ratio is taken against the untouched model of the same round, so that a machine that slows down for a while
does not show as an effect. The audio tower is timed too: the untouched model encodes 30 s, a pruned one all of it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from localgp.speechprune.dimensions import Dimensions, flops_row
from localgp.speechprune.memory import peak_memory
from localgp.speechprune.methods import Pruner
from localgp.speechprune.qwen2_audio import SAMPLE_RATE, Request, SpeechPrune

_PROMPT = (
    "At what time will the first lorry leave the hall from Monday on, according to the decision that the meeting "
    "took at its end, after the report on the weighbridge had been heard?\nA. At six o'clock\nB. At half past six\n"
    "C. At noon\nD. At quarter to four\nAnswer with the letter of the correct choice."
)


def measure(
    speech: SpeechPrune, pruners: Sequence[Pruner], seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """One row per pruner, the first of which should be the untouched model (rate 0): the ratios refer to it.

    Args:
        speech: The model; random weights cost what trained ones do.
        pruners: Rates to time.
        seconds: Length of the audio (noise: what is said has no influence on the cost).
        rounds: Timed rounds, after one that warms up.
    """
    dims = Dimensions.of(speech.model.config)
    audio = np.random.default_rng(0).standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32) * 0.1
    request = Request(audio, _PROMPT, _PROMPT.split("\n")[0], "noise")
    times: list[dict[str, list[float]]] = [defaultdict(list) for _ in pruners]
    rows: list[dict[str, Any]] = [{} for _ in pruners]
    for turn in range(rounds + 1):
        encodings = {whole: speech.encode([request], whole) for whole in {not p.untouched for p in pruners}}
        for pruner, time_of, row in zip(pruners, times, rows, strict=True):
            encoded = encodings[not pruner.untouched]
            pruned = speech.prune(encoded, pruner)
            with peak_memory(speech.model.device) as peak:
                began = speech.now()
                speech.prefill(pruned)
                took = speech.now() - began
            if turn == 0:  # warms up, and says what is being measured
                kept = len(pruned.kept[0])
                method = None if pruner.untouched else pruner.method
                row.update(
                    method=method or "original",
                    rate=pruner.rate,
                    audio_tokens=encoded.audio_tokens()[0],
                    kept_tokens=kept,
                    other_tokens=pruned.mask_BT.shape[1] - kept,
                )
                row.update(
                    flops_row(
                        dims,
                        row["audio_tokens"],
                        kept,
                        other=row["other_tokens"],
                        query=len(encoded.queries[0]),
                        method=method,
                        budget=pruner.budget,
                    )
                )
                continue
            time_of["seconds_audio"].append(encoded.seconds)
            time_of["seconds_prune"].append(pruned.seconds)
            time_of["seconds_prefill"].append(took)
            if peak["mib"] is not None:
                time_of["peak_mib"].append(peak["mib"])
    for time_of, row in zip(times, rows, strict=True):
        for name in ("seconds_audio", "seconds_prune", "seconds_prefill", "peak_mib"):
            row[name] = statistics.median(time_of[name]) if time_of[name] else None
        row["flop_ratio"] = row["tflops_with_quadratic"] / rows[0]["tflops_with_quadratic"]
        row["time_ratio"] = _paired(time_of, times[0], ("seconds_prefill",))
        row["end_to_end_flop_ratio"] = row["tflops_end_to_end"] / rows[0]["tflops_end_to_end"]
        row["end_to_end_time_ratio"] = _paired(
            time_of, times[0], ("seconds_audio", "seconds_prune", "seconds_prefill")
        )
    return rows


def _paired(ours: dict[str, list[float]], base: dict[str, list[float]], parts: Sequence[str]) -> float:
    def total(times: dict[str, list[float]]) -> list[float]:
        return [sum(values) for values in zip(*(times[part] for part in parts), strict=True)]

    return statistics.median(a / b for a, b in zip(total(ours), total(base), strict=True))
