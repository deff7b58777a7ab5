"""Benchmarks stored as ``<exp_dir>/bench/<name>.json``: what ``localgp.bench`` and ``compare_with_espnet.py`` write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localgp.errors import ConfigError
from localgp.tables import Column, Table, percent, render

COMMANDS = {
    name: f"python -m localgp.bench bench={name}" for name in ("encoder", "decoder", "training", "runs")
} | {"espnet_agreement": "python scripts/compare_with_espnet.py --utterances 200"}


@dataclass(frozen=True)
class Benchmark:
    """A stored benchmark.

    Attributes:
        name: As ``bench=`` takes it.
        machine: What it was measured on, as a line.
        rows: Of its table, a mapping each.
        goals: Promised speeds and whether they are met; empty where it has none.
        commit: Of the code that was measured.
        command: What measured it.
    """

    name: str
    machine: str
    rows: list[dict[str, Any]]
    goals: list[dict[str, Any]]
    commit: str
    command: str

    def runs_of(self, corpus: str, backbone: str) -> dict[str, dict[str, Any]]:
        """Of ``bench=runs``: run name to its row, of one corpus and backbone."""
        return {
            row["run"]: row
            for row in self.rows
            if (row.get("corpus"), row.get("backbone")) == (corpus, backbone)
        }


def read_benchmarks(exp_dir: Path) -> dict[str, Benchmark]:
    """By the file's name, in the order of `COMMANDS` and then others (``bench.save_as``); what has not been measured is
    not there.

    Raises:
        ConfigError: A file that ``localgp.bench`` did not write.
    """
    found = {path.stem: _read(path) for path in sorted((exp_dir / "bench").glob("*.json"))}
    return dict(sorted(found.items(), key=lambda item: (*COMMANDS, item[0]).index(item[0])))


def of_kind(found: Mapping[str, Benchmark], name: str) -> list[Benchmark]:
    """All that measured the same: the one stored under its own name first, then those with other settings."""
    return sorted((b for b in found.values() if b.name == name), key=lambda b: b is not found.get(name))


def _read(path: Path) -> Benchmark:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(row) for row in found["rows"]]
        goals = [dict(goal) for goal in found.get("goals", [])]
        if any(not {"goal", "value", "limit", "sense", "met"} <= goal.keys() for goal in goals):
            raise KeyError("goals")
        if path.stem == "runs" and any("run" not in row for row in rows):
            raise KeyError("run")
        return Benchmark(
            str(found["bench"]),
            machine_line(found["machine"]),
            rows,
            goals,
            str(found.get("commit", "unknown")),
            str(found.get("command", COMMANDS.get(str(found["bench"]), "python -m localgp.bench"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not what {COMMANDS.get(path.stem, 'python -m localgp.bench')} writes ({error!r}); write it "
            "again or remove it"
        ) from error


def machine_line(machine: Any) -> str:
    """A machine on one line.

    Examples:
        >>> machine_line({"cpu": "A", "cores": 2, "threads": 1, "capability": "AVX2", "gpu": None, "torch": "2.12"})
        'A (AVX2), 1 thread of 2 cores, PyTorch 2.12'
    """
    if not isinstance(machine, Mapping):
        return str(machine)
    threads, cores = machine.get("threads", "?"), machine.get("cores", "?")
    parts = [
        f"{machine.get('cpu', 'unknown CPU')} ({machine.get('capability', '?')})",
        f"{threads} thread{'' if threads == 1 else 's'} of {cores} core{'' if cores == 1 else 's'}",
        *([str(machine["gpu"])] if machine.get("gpu") else []),
        f"PyTorch {machine.get('torch', '?')}",
    ]
    return ", ".join(parts)


Row = Mapping[str, Any]

PAIRED = (
    "All runs took turns on the same {utterances} utterances ({audio:.0f} s, all their tasks), the first seed of each. "
    "Seconds are medians per minute of audio; time ratios are medians of the ratio to row01 in the same round, in "
    "brackets their quartiles; FLOP ratios are to the dense model. The encoder is timed from features on, as its FLOPs "
    "are counted; features and the extraction of contexts apart, and all are in the total. A decoder's time goes with "
    "how many tokens it writes."
)


def _of_part(part: str, prefix: str) -> list[Column]:
    """Seconds and ratios, in brackets their quartiles."""

    def ratio(row: Row) -> str | None:
        value, spread = (row.get(f"{prefix}time_ratio_{key}") for key in ("vs_dense", "spread"))
        ends = f" [{spread[0]:.2f}, {spread[1]:.2f}]" if spread else ""
        return None if value is None else f"{value:.2f}{ends}"

    return [
        Column("s", f"{part}_seconds", _seconds, part),
        Column("time ratio", ratio, span=part),
        Column("FLOP ratio", f"{prefix}flop_ratio", ".2f", part),
    ]


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


_RUN = Column("run", "run")
_TOTAL = [
    Column("s", "total_seconds", _seconds, "total"),
    Column("time ratio", "total_time_ratio_vs_dense", ".2f", "total"),
]
_FEATURES, _CONTEXTS = (
    Column(f"{part}, s", f"{part}_seconds", _seconds) for part in ("features", "contexts")
)


def time_table(timed: Mapping[str, Row], names: Sequence[str] | None = None) -> Table | None:
    """Seconds and ratios of the runs timed by ``bench=runs``.

    Args:
        timed: Run name to its row.
        names: Which runs, in which order; None for all. Those not timed are left out.

    Returns:
        None where none was timed.
    """
    rows = [timed[name] for name in (timed if names is None else names) if name in timed]
    columns = [
        _RUN,
        Column("seed", "seed"),
        *_TOTAL,
        *_of_part("encoder", ""),
        *_of_part("decoder", "decoder_"),
    ]
    columns += [Column("tokens", "tokens", span="decoder"), _FEATURES, _CONTEXTS]
    return render(rows, columns) if rows else None


def paired_note(timed: Mapping[str, Row]) -> str:
    row = next(iter(timed.values()))
    return PAIRED.format(utterances=row.get("utterances", "?"), audio=float(row.get("audio_seconds", 0.0)))


def speed_section(found: Mapping[str, Benchmark], *, whole: bool) -> str:
    """Markdown of all benchmarks; of one that has not been measured, the command that does.

    Args:
        whole: With every row and goal, as in RESULTS.md; else the rows that a README needs, and the goals not met.
    """
    titles = {
        "encoder": "Encoder, against ESPnet's and against our own dense path (random gates)",
        "decoder": "Decoder, beam search against ESPnet's; and a step's time at a share of modules skipped",
        "training": "Training step of the encoder (forward and backward pass)",
        "runs": "Trained runs",
        "espnet_agreement": "Against ESPnet's `Speech2Text` in fp32 from samples to hypotheses (mini backbone)",
    }
    parts = []
    for name, title in titles.items():
        parts.append(f"### {title}" if whole else f"**{title}**")
        measured = of_kind(found, name)
        if not measured:
            parts.append(f"Not measured yet: `{COMMANDS[name]}` measures it.")
        for benchmark in measured:
            parts.append(f"`{benchmark.command}` on {benchmark.machine}; commit {benchmark.commit[:12]}.")
            parts += _TABLES[name](benchmark, whole)
            if benchmark.goals:
                parts += [_goals(benchmark.goals, whole)]
    return "\n\n".join(parts)


def _encoder(benchmark: Benchmark, whole: bool) -> list[str]:
    parts = []
    rows = [row for row in benchmark.rows if row.get("measure") not in ("profile", "int8")]
    if not whole:
        rows = [row for row in rows if row.get("batch", 1) == 1 or row.get("measure") in ("ragged", "learnt")]
    if rows:
        parts.append(_module_table(rows, whole).markdown())
    profile = [row for row in benchmark.rows if row.get("measure") == "profile"]
    if whole and profile:
        columns = [
            Column("part", lambda row: f"{row.get('backbone')}, {row.get('dtype')}: {row.get('part')}"),
            Column("s", "seconds", _seconds),
            Column("ESPnet, s", "against_seconds", _seconds),
            Column("time / ESPnet", "time_ratio_vs_espnet", ".2f"),
            Column("share of our time", "time_share", percent),
            Column("share of the FLOPs", "flop_share", percent),
        ]
        parts += ["Seconds by part of one utterance:", render(profile, columns).markdown()]
    return parts


def _training(benchmark: Benchmark, whole: bool) -> list[str]:
    return [_module_table(benchmark.rows, whole).markdown()] if benchmark.rows else []


def _module_table(rows: Sequence[Row], whole: bool) -> Table:
    """Of the encoder's and of training's rows."""

    def own(key: str, of_gates: str) -> Callable[[Row], str | None]:
        def shown(row: Row) -> str | None:
            gates = row.get("measure") == "gates"
            value = row.get(of_gates if gates else key)
            return None if value is None else f"{value:.{3 if gates else 2}f}"

        return shown

    columns = [
        Column("what", _what),
        Column("model", lambda row: f"{row.get('backbone')}, {row.get('dtype', 'fp32')}"),
        Column("s", "seconds", _seconds),
        Column("time / ESPnet", "time_ratio_vs_espnet", ".2f"),
        Column("time / own dense", own("time_ratio_vs_dense", "overhead_share")),
        Column("FLOPs / dense", own("flop_ratio", "overhead_flop_share")),
    ]
    return render(rows, columns + ([_PEAK] if whole else []))


_PEAK = Column("peak MiB", "peak_mib", _number)


def _what(row: Row) -> str:
    said = row.get("seconds_of_audio") or []
    length = ", ".join(f"{one:g}" for one in dict.fromkeys(said)) if len(said) <= 8 else "real speech"
    batch = f", batch {len(said)}" if len(said) > 1 else ""
    padded = row.get("padded_to")
    measure = row.get("measure")
    if measure == "padded":
        return f"{length} s of speech padded to {padded:g} s{batch}"
    if measure == "ragged":
        return f"ragged batch of {length} s, packed"
    if measure == "gates":
        return f"LocalGP's own share{batch}"
    if measure == "learnt":
        return f"learnt gates, {percent(row['skipped'])} of frames skipped"
    if row.get("skipped"):
        return f"{percent(row['skipped'])} of frames skipped, {length} s{batch}"
    return f"dense, {length} s{batch}"


def _decoder(benchmark: Benchmark, whole: bool) -> list[str]:
    searches = [row for row in benchmark.rows if row.get("speedup_vs_espnet") is not None]
    gated = [row for row in benchmark.rows if row.get("measure") != "kept"]  # that is a dense step
    steps = [row for row in gated if row.get("step_time_ratio_vs_dense") is not None]
    if not whole:
        fewest = min((row["skipped"] for row in steps), default=0.0)
        steps = [row for row in steps if row.get("measure") == "learnt" or row["skipped"] == fewest]
    tables = []
    if searches:
        columns = [
            *_DECODED,
            Column("ctc_weight", "ctc_weight"),
            Column("speed / ESPnet", "speedup_vs_espnet", lambda value: f"{_number(value)} x"),
            Column("same hypotheses", _same),
            _PEAK,
        ]
        tables.append(render(searches, columns).markdown())
    if steps:
        columns = [
            *_DECODED,
            Column("modules skipped", "skipped", percent),
            Column("decided per", "decided_per"),
            Column("hypotheses agree", "agree", percent),
            Column("step time / own dense", "step_time_ratio_vs_dense", ".2f"),
            Column("FLOPs / dense", "flop_ratio", ".2f"),
        ]
        tables.append(render(steps, columns).markdown())
    return tables


def _same(row: Row) -> str | None:
    """In bf16 ESPnet's hypotheses and ours are rounded differently, on random weights sooner than on trained ones."""
    if row.get("identical_hypotheses") is None:
        return None
    return "yes" if row["identical_hypotheses"] else "NO" if row.get("dtype") == "fp32" else "no, rounded"


def _decoder_of(row: Row) -> str:
    learnt = ", learnt gates" if row.get("measure") == "learnt" else ""
    return f"{row.get('backbone')}, {row.get('dtype', 'fp32')}{learnt}"


_DECODED = [Column("model", _decoder_of), Column("utterances", "utterances")]


def _runs(benchmark: Benchmark, whole: bool) -> list[str]:
    parts = []
    for corpus, backbone in dict.fromkeys((row.get("corpus"), row.get("backbone")) for row in benchmark.rows):
        timed = benchmark.runs_of(str(corpus), str(backbone))
        parts.append(f"{corpus}; backbone {backbone}. {paired_note(timed)}")
        table = time_table(timed) if whole else _short_times(timed)
        if table is not None:
            parts.append(table.markdown())
    return parts


def _short_times(timed: Mapping[str, Row]) -> Table:
    """For a README."""
    decoder = [
        Column("time ratio", "decoder_time_ratio_vs_dense", ".2f", "decoder"),
        Column("FLOP ratio", "decoder_flop_ratio", ".2f", "decoder"),
    ]
    total = Column("total time ratio", "total_time_ratio_vs_dense", ".2f")
    return render(timed.values(), [_RUN, *_of_part("encoder", ""), _CONTEXTS, *decoder, total])


def _agreement(benchmark: Benchmark, whole: bool) -> list[str]:
    """Ours in each precision, and ESPnet's own where it is not fp32, against ESPnet in fp32."""
    rows = []
    for row in benchmark.rows:
        precision = row.get("precision", "fp32")
        measured = ("identical", "max_score_difference", "max_encoder_difference", "seconds")
        theirs = {key: row.get(f"espnet_{key}") for key in measured}
        rows += [{**row, "who": f"ours, {precision}"}, {**row, **theirs, "who": f"ESPnet, {precision}"}]

    def same(row: Row) -> str | None:
        found = row.get("identical")
        return None if found is None else f"{found} of {row.get('utterances', '-')}"

    columns = [
        Column("", "who"),
        Column("beam", "beam"),
        Column("ctc_weight", "ctc_weight"),
        Column("same best hypotheses", same),
        Column("largest score difference", "max_score_difference", ".1e"),
        Column("largest encoder difference", "max_encoder_difference", ".1e"),
        Column("s", "seconds", _seconds),
    ]
    return [render(rows, columns).markdown()] if rows else []


_TABLES: dict[str, Callable[[Benchmark, bool], list[str]]] = {
    "encoder": _encoder,
    "decoder": _decoder,
    "training": _training,
    "runs": _runs,
    "espnet_agreement": _agreement,
}


def goals_table(goals: Sequence[Row]) -> Table:
    return render(
        goals,
        [
            Column("goal", "goal"),
            Column("measured", "value", _number),
            Column("wanted", lambda goal: f"{goal['sense']} {_number(goal['limit'])}"),
            Column("", lambda goal: "met" if goal["met"] else "NOT MET"),
        ],
    )


def _goals(goals: Sequence[Row], whole: bool) -> str:
    if whole:
        return goals_table(goals).markdown()
    missed = [goal for goal in goals if not goal["met"]]
    text = f"Goals met: {len(goals) - len(missed)} of {len(goals)}."
    if missed:
        listed = "; ".join(
            f"{goal['goal']}: {_number(goal['value'])} instead of {goal['sense']} {_number(goal['limit'])}"
            for goal in missed
        )
        text += f" Not met: {listed}."
    return text
