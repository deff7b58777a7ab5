"""Data of the page's mask viewer: sound, spectrogram, masks and texts of a few utterances, as JSON.

{"palette": base64 of 256 x 3 bytes,
 "sets": [{                                    one for every split of a corpus that runs were scored on
    "label": ..., "utterances": [{"id", "language", "speaker", "noise", "snr", "seconds", "audio": data URI,
        "mel": {"bands", "frames", "hop", "low", "high", "data": base64 of bytes, band by band},
        "hz": [of each band], "speech": [[start, end]], "words": [[start, end, word]], "reference": {task: text}}],
    "runs": [{"label", "gates": {"modules", "layers", "frames", "step", "framewise"} or null,
        "masks": [base64 of packed bits (layer, module, frame) or null, of each utterance],
        "hypothesis": [{task: text}, of each utterance]}]}]}
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from localgp.report.runs import Evaluated
from localgp.report.study import Study, inner_pause
from localgp.report.utterances import SAMPLE_RATE, Utterances, read_hypotheses
from localgp.spectrogram import HOP, band_centres, log_mel

_BIT_RATE = 32_000  # of the embedded sound: 4 kB a second
_RANGE_DB = 60.0  # of the spectrogram


def encode_m4a(samples: np.ndarray) -> bytes:
    """AAC in an MP4 container, which every browser plays; (N,) float32 at 16 kHz."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = _BIT_RATE
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0  # without it there is no edit list, and the encoder's priming would delay everything
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def palette() -> str:
    """Cividis, made for colour-blind readers: 256 RGB triples."""
    from matplotlib import colormaps

    return _base64((colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())


def choose(studies: Sequence[Study], utterances: Utterances, utt_ids: Sequence[str], count: int) -> list[str]:
    """Languages in turn; in each, those with most pause between words first, where the truth is known.

    Args:
        utt_ids: Those that every run has.
    """
    pauses: dict[str, int] = {}
    for study in studies[:1]:
        if study.speech_UT is not None:
            pauses = {u: inner_pause(s) for u, s in zip(study.record.utt_ids, study.speech_UT, strict=True)}
    by_language: dict[str, list[str]] = {}
    for utt_id in sorted(utt_ids, key=lambda u: (-pauses.get(u, 0), u)):
        by_language.setdefault(utterances.texts[utt_id]["language"], []).append(utt_id)
    chosen: list[str] = []
    queues = [by_language[language] for language in sorted(by_language)]
    while len(chosen) < count and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    return chosen[:count]


def utterance_entry(utterances: Utterances, utt_id: str) -> dict[str, Any]:
    """One element of ``utterances``."""
    row, truth = utterances.texts[utt_id], utterances.truth.get(utt_id)
    samples = utterances.samples(utt_id)
    levels_FS = log_mel(samples)
    high = float(np.quantile(levels_FS, 0.995))
    scaled = np.clip((levels_FS - high + _RANGE_DB) / _RANGE_DB, 0, 1)
    return {
        "id": utt_id,
        "language": row["language"],
        "speaker": row["speaker"],
        "seconds": round(len(samples) / SAMPLE_RATE, 3),
        "noise": truth.noise if truth else None,
        "snr": truth.snr_db if truth else None,
        "audio": "data:audio/mp4;base64," + _base64(encode_m4a(samples)),
        "mel": {
            "bands": levels_FS.shape[0],
            "frames": levels_FS.shape[1],
            "hop": HOP / SAMPLE_RATE,
            "low": round(high - _RANGE_DB, 2),
            "high": round(high, 2),
            "data": _base64((scaled * 255).round().astype(np.uint8).tobytes()),
        },
        "hz": [round(float(hz)) for hz in band_centres()],
        "speech": None if truth is None else [list(interval) for interval in truth.speech],
        "words": None if truth is None else [list(word) for word in truth.words],
        "reference": utterances.references(utt_id),
    }


def run_entry(run: Evaluated, study: Study | None, utt_ids: Sequence[str]) -> dict[str, Any]:
    """One element of ``runs``."""
    hypotheses = read_hypotheses(run)
    entry: dict[str, Any] = {
        "label": f"{run.name}, seed {run.seed}",
        "gates": None,
        "masks": [None] * len(utt_ids),
        "hypothesis": [{task: t[u] for task, t in hypotheses.items() if u in t} for u in utt_ids],
    }
    if study is not None:
        record = study.record
        layers, frames = record.open.shape[1], record.open.shape[3]
        entry["gates"] = {
            "modules": record.modules,
            "layers": layers,
            "frames": frames,
            "step": record.seconds_per_frame,
            "framewise": bool((record.open != record.open[..., :1]).any()),  # or one decision per utterance
        }
        number = {utt_id: i for i, utt_id in enumerate(record.utt_ids)}
        entry["masks"] = [
            _base64(np.packbits(record.open[number[u]].reshape(-1)).tobytes()) if u in number else None
            for u in utt_ids
        ]
    return entry
