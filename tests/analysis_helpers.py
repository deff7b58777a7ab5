"""A folder of runs as the real commands leave it, without training: the real corpus, invented gates and scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir

from localgp.cli import CONF_DIR
from localgp.corpora.prepared import prepare
from localgp.evaluation.gates_file import GateRecord, write_gates
from localgp.evaluation.measured import measured_ratios
from localgp.evaluation.score import references_of, score_tasks
from localgp.run import Run, write_atomically
from localgp.timeline import frame_centres

MODULES = ["ffn1", "attention", "ffn2"]
LAYERS, FRAMES, SECONDS = 4, 199, 8.0


@dataclass
class Place:
    """Where a fixture's corpus and runs lie."""

    path: Path

    def config(self, *overrides: str):
        base = [
            f"data_dir={self.path / 'data'}",
            f"exp_dir={self.path / 'exp'}",
            "corpus.generate.train_segments=1",
            "corpus.generate.dev_segments=1",
            "corpus.generate.test_segments=5",
            "corpus.workers=1",
        ]
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("config", overrides=[*base, *overrides])


def fake_gates(rows, truth, seed: int, kept_pause: float = 0.4, kept_speech: float = 0.95) -> GateRecord:
    """Gates that open for true speech in the first layer, and ever more at random in later ones."""
    rng = np.random.default_rng(seed)
    centres = frame_centres(FRAMES, SECONDS)
    opened, real, utt_ids = [], [], []
    for row in rows.select_columns(["utt_id", "seconds"]).with_format(None):
        inside = np.zeros(FRAMES, dtype=bool)
        for start, end in truth[row["utt_id"]].speech:
            inside |= (centres >= start) & (centres < end)
        end = int((centres < row["seconds"]).sum())
        chance = np.where(inside, kept_speech, kept_pause)
        chance[end:] = 0.1
        mix = np.linspace(0, 0.5, LAYERS)[:, None, None] + np.array([0.0, 0.1, 0.3])[:, None]
        opened.append(rng.random((LAYERS, len(MODULES), FRAMES)) < (1 - mix) * chance + mix * 0.7)
        real.append((0, end))
        utt_ids.append(row["utt_id"])
    return GateRecord(utt_ids, MODULES, np.stack(opened), np.array(real), SECONDS / FRAMES)


def add_run(
    place: Place, rows, gates: GateRecord | None, *overrides: str, gflops: float = 1.0, seconds: float = 3.0
) -> Path:
    """Writes a run's directory with the real writers; every third word of its hypotheses is wrong."""
    cfg = place.config(*overrides)
    run = Run(cfg)
    run.start()
    rng = np.random.default_rng(cfg.seed)
    references = references_of(rows)
    pairs = {}
    for task, texts in references.items():
        spoilt = {
            u: " ".join("<b>&" if rng.random() < 0.3 else w for w in text.split())
            for u, text in texts.items()
        }
        ids = sorted(texts)
        pairs[task] = ([texts[i] for i in ids], [spoilt[i] for i in ids])
        source, _, target = task.partition("-")
        lines = "".join(f"{i} {spoilt[i]}\n" for i in ids)
        write_atomically(run.path / "hyp" / f"test.{source}-{target or source}.txt", lines)
    if gates is not None:
        write_gates(run.path / "gates" / "test.npz", gates)
    write_atomically(
        run.path / "metrics.json",
        json.dumps({
            **score_tasks(pairs, "none"),
            **measured_ratios(gates),
            "gflops": {
                "encoder": gflops, "gates": 0.01, "dense": 1.0, "context": 0.0, "total": gflops,
                "convention": "fvcore, 1 MAC = 1 FLOP, 8 s",
            },
            "seconds": {"encoder": seconds, "decoder": 4 * seconds, "total": 5.5 * seconds},
            "decode": {"beam": 5, "ctc_weight": 0.0, "normalizer": "none", "precision": "float32"},
            "data": {
                "corpus": "mini", "split": "test", "utterances": len(rows), "whole_split": True,
                "audio_seconds": round(float(sum(rows.select_columns(["seconds"])["seconds"])), 1),
            },
            "backbone": {"name": "mini", "source": "shipped"},
            "name": cfg.name,
            "target": cfg.pruning.target if gates is not None else None,
            "device": "cpu",
            "threads": 2,
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "seed": cfg.seed,
        })
    )  # fmt: skip
    return run.path


def shared_place(tmp_path_factory) -> Place:
    """One place for all tests of a process."""
    path = tmp_path_factory.getbasetemp() / "runs"
    if not (path / "complete").exists():
        build_place(path)
        (path / "complete").touch()
    return Place(path)


def build_place(path: Path) -> Place:
    """A tiny mini corpus and six evaluated runs of four experiments, two of them variants of one."""
    from localgp.report.utterances import read_truth

    place = Place(path)
    rows = prepare(place.config()).load()["test"]
    texts = {r["utt_id"]: r for r in rows.remove_columns(["samples"]).with_format(None)}
    truth = read_truth(path / "data" / "mini", "test", texts)
    add_run(place, rows, None, "conf=row01", gflops=1.0, seconds=3.0)
    add_run(place, rows, None, "conf=row01", "seed=2", gflops=1.0, seconds=3.2)
    add_run(place, rows, fake_gates(rows, truth, 1), "conf=row05", gflops=0.9, seconds=2.8)
    add_run(place, rows, fake_gates(rows, truth, 2), "conf=row05", "seed=2", gflops=0.88, seconds=2.7)
    add_run(
        place,
        rows,
        fake_gates(rows, truth, 3, 0.1, 0.6),
        "conf=row05",
        "pruning.target=0.5",
        gflops=0.7,
        seconds=2.0,
    )
    add_run(
        place, rows, fake_gates(rows, truth, 4, 0.7, 0.7), "conf=control_random", gflops=0.87, seconds=2.6
    )
    return place
