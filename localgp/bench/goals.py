"""The speeds that the project promises, each with its limit, judged from a benchmark's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

ENCODER_DENSE = {"fp32": 0.58, "bf16": 0.42}  # of ESPnet's time, 30 s
ENCODER_PADDED = 0.45  # of ESPnet's time, 10 s of speech padded to 30 s, fp32
PRUNED_MARGIN, TRAINING_MARGIN = 0.03, 0.05  # above the FLOP ratio
RAGGED_SHARE, RAGGED_ESPNET = 1.1, 1.7
WINDOW_SHARE = 0.15  # of the padded time
GATES_SHARE = 0.04  # of the dense encoder's time
DECODER_SPEEDUP = {(1, 0.0): 8.0, (1, 0.3): 6.0, (8, 0.0): 25.0, (8, 0.3): 12.0}
# Of the dense step's time in fp32: (share of modules skipped, what decides) -> limit, 8 utterances
DECODER_STEP = {
    (0.3, "hypothesis"): 0.85,
    (0.3, "utterance"): 0.80,
    (0.5, "hypothesis"): 0.70,
    (0.5, "utterance"): 0.70,
}
MINI_STEP = 1.05  # the same of the embedded backbone at 30 %, whatever decides and however many utterances
SOURCE_SHARE = 0.4  # of source attention's share of a step, with 70 % of the frames left out
STEP_PEER = {  # (arithmetic, utterances) -> of CTranslate2's step, at equal size and in the same arithmetic
    ("int8", 1): 0.6,
    ("int8", 8): 0.6,
    ("fp32", 1): 0.5,
    ("fp32", 8): 0.45,
}
ENCODER_INT8 = 0.6  # of fp32's time


def goal(name: str, value: float, limit: float, *, at_least: bool = False) -> dict[str, Any]:
    """One line of the JSON.

    Examples:
        >>> goal("half of ESPnet's time", 0.49, 0.5)
        {'goal': "half of ESPnet's time", 'value': 0.49, 'limit': 0.5, 'sense': '<=', 'met': True}
    """
    met = value >= limit if at_least else value <= limit
    return {
        "goal": name,
        "value": round(value, 4),
        "limit": round(limit, 4),
        "sense": ">=" if at_least else "<=",
        "met": met,
    }


def encoder_goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Goals 1, 2, 3 and 7, of the rows that are there."""
    goals = []
    for row in rows:
        where, one = f"{row['backbone']} {row['dtype']} batch {row['batch']}", row["batch"] == 1
        if row["measure"] == "int8":
            goals.append(goal(f"8: int8 / fp32, {where}", row["time_ratio"], ENCODER_INT8))
        elif row["measure"] == "pruned" and one:
            name = f"1: pruned {row['skipped']:.0%} / own dense, {where}"
            goals.append(goal(name, row["time_ratio_vs_dense"], row["flop_ratio"] + PRUNED_MARGIN))
        elif row["measure"] == "dense" and one:
            goals.append(
                goal(
                    f"2: own dense / ESPnet, {where}",
                    row["time_ratio_vs_espnet"],
                    ENCODER_DENSE[row["dtype"]],
                )
            )
        elif row["measure"] == "padded" and one and row["dtype"] == "fp32":
            said, padded = row["seconds_of_audio"][0], row["padded_to"]
            name = f"2: own / ESPnet, {said:g} s padded to {padded:g} s, {where}"
            goals.append(goal(name, row["time_ratio_vs_espnet"], ENCODER_PADDED))
        elif row["measure"] == "ragged":
            name = f"3: ragged batch / its share of work, {where}"
            goals.append(goal(name, row["time_over_share_of_work"], RAGGED_SHARE))
            name = f"3: ESPnet padded / ours packed, {where}"
            goals.append(goal(name, row["espnet_padded_over_ours"], RAGGED_ESPNET, at_least=True))
        elif row["measure"] == "window" and one and row["seconds_of_audio"] == [3.0]:
            name = f"a 3-s recording in its own window / padded to {row['padded_to']:g} s, {where}"
            goals.append(goal(name, row["time_ratio_vs_dense"], WINDOW_SHARE))
        elif row["measure"] == "gates" and one:
            goals.append(goal(f"7: LocalGP / own dense, {where}", row["overhead_share"], GATES_SHARE))
    return goals


def training_goals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Goal 6."""
    return [
        goal(
            f"6: training step {row['skipped']:.0%} gathered / dense, {row['backbone']} batch {row['batch']}",
            row["time_ratio_vs_dense"],
            row["flop_ratio"] + TRAINING_MARGIN,
        )
        for row in rows
    ]


def decoder_goals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Goals 4, 5 and 9, of the rows in fp32 that are there."""
    goals = []
    for row in rows:
        if row["dtype"] != "fp32":
            continue
        where = f"{row['backbone']} x{row['utterances']}"
        limit = DECODER_SPEEDUP.get((row["utterances"], row["ctc_weight"]))
        if row["speedup_vs_espnet"] is not None and limit is not None:
            name = f"4: decoder / ESPnet, utterances per second, {where}, ctc_weight {row['ctc_weight']}"
            found = goal(name, row["speedup_vs_espnet"], limit, at_least=True)
            goals.append(found | {"met": found["met"] and row["identical_hypotheses"]})
        elif row["measure"] == "kept":
            name = f"9: source attention's share of the step, {row['left_out']:.0%} of the frames left out, {where}"
            goals.append(goal(name, row["source_share_ratio"], SOURCE_SHARE))
        elif row["measure"] == "pruned":
            step = DECODER_STEP.get((row["skipped"], row["decided_per"])) if row["utterances"] == 8 else None
            if row["backbone"] == "mini":
                step = MINI_STEP if row["skipped"] == 0.3 else None
            if step is not None:
                name = (
                    f"5: decoder step, {row['skipped']:.0%} skipped per {row['decided_per']} / dense, {where}"
                )
                goals.append(goal(name, row["step_time_ratio_vs_dense"], step))
    return goals


PEER_ENCODER = 0.8  # of each peer's time, one window
LEARNT_MARGIN = 0.05  # above the FLOP ratio
PEER_SPEED = {  # (peer, utterances, beam) -> ours over its utterances per second
    ("transformers", 1, 5): 4.0,
    ("transformers", 8, 5): 15.0,
    ("ctranslate2", 1, 5): 1.0,
    ("ctranslate2", 8, 5): 1.5,
    ("ctranslate2", 1, 1): 1.0,
    ("ctranslate2", 8, 1): 1.2,
}


def peer_goals(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of Whisper base: its goals 1, 3 and 4; goal 2 is of rows ``learnt``; of others goal 10, a step's."""
    goals = []
    for row in rows:
        step = STEP_PEER.get((str(row.get("dtype")), int(row.get("batch") or 0)))
        if row["measure"] == "peer step" and step is not None:
            what = f"10: decoder step / {row['against']}'s, {row['dtype']}, {row['backbone']} x{row['batch']}"
            goals.append(goal(what, row["time_ratio"], step))
        peer, count, name = row.get("against"), row.get("batch"), row["backbone"]
        if row["measure"] == "peer encoder" and count == 1:
            goals.append(
                goal(f"Whisper 1: own dense / {peer}, {name} fp32, 30 s", row["time_ratio"], PEER_ENCODER)
            )
        limit = PEER_SPEED.get((str(peer), int(count or 0), row.get("beam", 0)))
        if row["measure"] == "peer search" and limit is not None:
            number, how = (4, "greedy") if row["beam"] == 1 else (3, f"beam {row['beam']}")
            what = f"Whisper {number}: {how}, speed / {peer}, {name} x{count}"
            goals.append(goal(what, row["speed_ratio"], limit, at_least=True))
        if row["measure"] == "learnt" and "whisper" in name and row["flop_ratio"] is not None:
            what = f"Whisper 2: learnt gates / own dense, {name}"
            goals.append(goal(what, row["time_ratio_vs_dense"], row["flop_ratio"] + LEARNT_MARGIN))
    return goals
