"""The speeds that the project promises, each with its limit, judged from a benchmark's rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A promise about a figure of some rows.

    Attributes:
        name: Filled in with the row.
        measure: Of the rows that it is about; their ``backbone`` begins with `of`.
        figure: Key of what is judged; a row without it is not.
        by: Keys of a row whose values, in this order, decide the limit.
        limits: Those values to the limit; rows of others are not judged.
        at_least: Whether it is a lower one.
        above: Key of what is added to the limit.
        only_if: Key of what must be true besides.
        of: Pattern of a name.
    """

    name: str
    measure: str
    figure: str
    by: str
    limits: Mapping[str, float]
    at_least: bool = False
    above: str | None = None
    only_if: str | None = None
    of: str = ""

    def limit(self, row: Mapping[str, Any]) -> float | None:
        """None where the row is not what the promise is about."""
        if (
            row.get("measure") != self.measure
            or row.get(self.figure) is None
            or not re.match(self.of, row["backbone"])
        ):
            return None
        limit = self.limits.get(" ".join(str(row.get(key)) for key in self.by.split()))
        return limit if limit is None or self.above is None else limit + row[self.above]

    def judged(self, row: Mapping[str, Any], limit: float) -> dict[str, Any]:
        """One line of the JSON.

        Examples:
            >>> goal = Goal("half of ESPnet's time, {b}", "dense", "ratio", "", {"": 0.5})
            >>> goal.judged({"b": "base", "ratio": 0.49}, 0.5)
            {'goal': "half of ESPnet's time, base", 'value': 0.49, 'limit': 0.5, 'sense': '<=', 'met': True}
        """
        value = row[self.figure]
        met = value >= limit if self.at_least else value <= limit
        return {
            "goal": self.name.format(**row),
            "value": round(value, 4),
            "limit": round(limit, 4),
            "sense": ">=" if self.at_least else "<=",
            "met": bool(met and (self.only_if is None or row[self.only_if])),
        }


def judge(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every promise about every row that it is about."""
    return [
        goal.judged(row, limit) for row in rows for goal in GOALS if (limit := goal.limit(row)) is not None
    ]


_ENCODER, _DECODER = "{backbone} {dtype} batch {batch}", "{backbone} x{utterances}"
_PRUNED = f"1: pruned {{skipped:.0%}} / own dense, {_ENCODER}"
_PADDED = f"2: own / ESPnet, {{seconds_of_audio[0]:g}} s padded to {{padded_to:g}} s, {_ENCODER}"
_SEARCH = f"4: decoder / ESPnet, utterances per second, {_DECODER}, ctc_weight {{ctc_weight}}"
_STEP = f"5: decoder step, {{skipped:.0%}} skipped per {{decided_per}} / dense, {_DECODER}"
_TRAINING = "6: training step {skipped:.0%} gathered / dense, {backbone} batch {batch}"
_FEWER = f"9: source attention's share of the step, {{left_out:.0%}} of the frames left out, {_DECODER}"
_STEP_PEER = "10: decoder step / {against}'s, {dtype}, {backbone} x{batch}"
_WINDOW = f"a 3-s recording in its own window / padded to {{padded_to:g}} s, {_ENCODER}"
_RECORDING = (
    "a recording of {seconds_of_audio:g} s, encoder and decoder, {dtype} / {against} int8, padded, {backbone}"
)
_BEAM = "Whisper 3: beam {beam}, speed / {against}, {backbone} x{batch}"
_GREEDY = "Whisper 4: greedy, speed / {against}, {backbone} x{batch}"
_OF_DENSE, _OF_ESPNET = "time_ratio_vs_dense", "time_ratio_vs_espnet"
_STEP_OF_DENSE, _SPEED = "step_time_ratio_vs_dense", "speedup_vs_espnet"
_STEPS = {"fp32 8 0.3 hypothesis": 0.85, "fp32 8 0.3 utterance": 0.80}
_STEPS |= {"fp32 8 0.5 hypothesis": 0.70, "fp32 8 0.5 utterance": 0.70}
_SEARCHES = {"fp32 1 0.0": 8.0, "fp32 1 0.3": 6.0, "fp32 8 0.0": 25.0, "fp32 8 0.3": 12.0}
_BEAMS = {"transformers 1 5": 4.0, "transformers 8 5": 15.0, "ctranslate2 1 5": 1.0, "ctranslate2 8 5": 1.5}
_STEP_PEERS = {"int8 1": 0.6, "int8 8": 0.6, "fp32 1": 0.5, "fp32 8": 0.45}
_GREEDIES = {"ctranslate2 1 1": 1.0, "ctranslate2 8 1": 1.2}
_LEARNT = "Whisper 2: learnt gates / own dense, {backbone}"
_ENCODER_PEER = "Whisper 1: own dense / {against}, {backbone} fp32, 30 s"
_OWN = f"2: own dense / ESPnet, {_ENCODER}"
_SHARE, _PACKED = (
    f"3: {what}, {_ENCODER}" for what in ("ragged batch / its share of work", "ESPnet padded / ours packed")
)
GOALS = (
    Goal(_PRUNED, "pruned", _OF_DENSE, "batch", {"1": 0.03}, above="flop_ratio"),
    Goal(_OWN, "dense", _OF_ESPNET, "dtype batch", {"fp32 1": 0.58, "bf16 1": 0.42}),
    Goal(_PADDED, "padded", _OF_ESPNET, "dtype batch", {"fp32 1": 0.45}),
    Goal(_SHARE, "ragged", "time_over_share_of_work", "", {"": 1.1}),
    Goal(_PACKED, "ragged", "espnet_padded_over_ours", "", {"": 1.7}, True),
    Goal(
        _SEARCH,
        "dense",
        _SPEED,
        "dtype utterances ctc_weight",
        _SEARCHES,
        True,
        only_if="identical_hypotheses",
    ),
    Goal(_STEP, "pruned", _STEP_OF_DENSE, "dtype utterances skipped decided_per", _STEPS, of="(?!mini$)"),
    Goal(_STEP, "pruned", _STEP_OF_DENSE, "dtype skipped", {"fp32 0.3": 1.05}, of="mini$"),
    Goal(_TRAINING, "training", _OF_DENSE, "", {"": 0.05}, above="flop_ratio"),
    Goal(f"7: LocalGP / own dense, {_ENCODER}", "gates", "overhead_share", "batch", {"1": 0.04}),
    Goal(f"8: int8 / fp32, {_ENCODER}", "int8", "time_ratio", "", {"": 0.6}),
    Goal(_FEWER, "kept", "source_share_ratio", "dtype", {"fp32": 0.4}),
    Goal(_STEP_PEER, "peer step", "time_ratio", "dtype batch", _STEP_PEERS),
    Goal(_WINDOW, "window", _OF_DENSE, "seconds_of_audio", {"[3.0]": 0.15}),
    Goal(_ENCODER_PEER, "peer encoder", "time_ratio", "batch", {"1": 0.8}),
    Goal(_LEARNT, "learnt", _OF_DENSE, "", {"": 0.05}, above="flop_ratio", of=".*whisper"),
    Goal(_RECORDING, "peer recording", "time_ratio", "dtype", {"fp32": 0.4, "int8": 0.25}, only_if="as_long"),
    Goal(_BEAM, "peer search", "speed_ratio", "against batch beam", _BEAMS, True),
    Goal(_GREEDY, "peer search", "speed_ratio", "against batch beam", _GREEDIES, True),
)
