"""What `python -m localgp.bench` can measure: from a configuration to rows and goals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from localgp.backbones.base import Backbone


SYMBOLS = 2000  # Whisper's own, bytes among them: a smaller vocabulary has no Whisper of equal size


def decoder(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and goals of beam search and decoding steps (`localgp.bench.decoder`)."""
    from localgp.bench.decoder import bench_decoder, bench_learnt_decoder, describe
    from localgp.bench.goals import decoder_goals, peer_goals
    from localgp.bench.peers import STEP_PEERS, bench_decoder_peers, bench_step_peers
    from localgp.bench.steps import PATTERNS, STEP_DTYPES
    from localgp.corpora.rows import list_tasks
    from localgp.precision import why_no_int8

    wanted, device, rows = cfg.bench, _device(cfg), []
    _check_choices(wanted, {"dtypes": tuple(STEP_DTYPES), "patterns": PATTERNS})
    dtypes = list(wanted.dtypes)
    if "int8" in dtypes and (why := why_no_int8(device)):
        _progress(f"not measured: int8 {why}")
        dtypes.remove("int8")
    for name in _backbones(cfg):
        backbone = _backbone(cfg, name, device)
        rows += bench_decoder(
            backbone,
            name=name,
            utterances=list(wanted.utterances),
            beam=wanted.beam,
            steps=wanted.steps,
            ctc_weights=list(wanted.ctc_weights),
            skipped=list(wanted.skipped),
            patterns=list(wanted.patterns),
            dtypes=dtypes,
            repeats=wanted.repeats,
            espnet_repeats=wanted.espnet_repeats,
            progress=_progress,
        )
        if "ctranslate2" in wanted.peers and backbone.shape.vocabulary > SYMBOLS:
            rows += bench_step_peers(
                backbone,
                name=name,
                utterances=list(wanted.utterances),
                beam=wanted.beam,
                steps=wanted.steps,
                dtypes=[dtype for dtype in dtypes if dtype in STEP_PEERS],
                repeats=wanted.repeats,
                progress=_progress,
            )
        rows += bench_decoder_peers(
            backbone,
            name=name,
            peers=[peer for peer in wanted.peers if peer in backbone.peers],
            utterances=list(wanted.utterances),
            beams=[1, wanted.beam],
            repeats=wanted.repeats,
            progress=_progress,
        )
    if wanted.run is not None:
        run = _Trained(cfg, device, "decoder_policy")
        items = run.rows.select(range(min(max(wanted.utterances), len(run.rows))))
        tasks = {
            task.row: task for task in list_tasks(items)
        }  # of each, the last one: a translation if it has any
        rows += bench_learnt_decoder(
            run.model,
            *run.batch(list(items)),
            [tasks[row] for row in sorted(tasks)],
            backbone=f"{run.backbone.name} {run.name}",
            utterances=list(wanted.utterances),
            beam=wanted.beam,
            steps=wanted.steps,
            repeats=wanted.repeats,
        )
        for row in rows[-len(wanted.utterances) :]:
            _progress(describe(row))
    ours = [row for row in rows if not row["measure"].startswith("peer")]
    return rows, [*decoder_goals(ours), *peer_goals(rows)]


def encoder(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and goals of the packed encoder (`localgp.bench.encoder`)."""
    from localgp.bench.encoder import DTYPES, MEASURES, EncoderBench, bench_learnt, describe
    from localgp.bench.goals import encoder_goals, peer_goals
    from localgp.bench.peers import bench_encoder_peers
    from localgp.precision import why_no_int8

    wanted, device, rows = cfg.bench, _device(cfg), []
    _check_choices(wanted, {"measures": MEASURES, "dtypes": tuple(DTYPES)})
    for name in _backbones(cfg):
        backbone = _backbone(cfg, name, device)
        bench = EncoderBench(
            backbone,
            name=name,
            seconds=wanted.seconds,
            repeats=wanted.repeats,
            espnet_repeats=wanted.espnet_repeats,
            progress=_progress,
        )
        measures = set(wanted.measures)
        if backbone.peers:  # against which all but our own are timed
            measures -= {"dense", "padded", "ragged"}
        for dtype in wanted.dtypes:
            for batch in wanted.batches:
                if "dense" in measures and batch in wanted.espnet_batches:
                    bench.dense(dtype, batch)
                if "padded" in measures and batch in wanted.espnet_batches:
                    bench.dense(dtype, batch, wanted.speech_seconds)
                if "window" in wanted.measures:
                    bench.window(dtype, batch, wanted.window_seconds)
                if "pruned" in wanted.measures:
                    for share in wanted.skipped:
                        bench.pruned(dtype, batch, share)
                if "gates" in wanted.measures:
                    bench.gates(dtype, batch)
            if "ragged" in measures:
                bench.ragged(dtype, list(wanted.ragged))
            if "profile" in wanted.measures and device.type == "cpu":
                bench.profile(dtype)
        if "int8" in wanted.measures and why_no_int8(device) is None:
            for batch in wanted.batches:
                bench.eighths(batch)
        rows += bench.rows
        if "peers" in wanted.measures:
            rows += bench_encoder_peers(
                backbone,
                name=name,
                peers=[peer for peer in wanted.peers if peer in backbone.peers],
                batches=list(wanted.espnet_batches),
                seconds=wanted.seconds,
                repeats=wanted.espnet_repeats,
                progress=_progress,
            )
    if wanted.run is not None:
        run = _Trained(cfg, device, "policy")
        count = min(wanted.run_utterances, len(run.rows))
        chunks = [
            [run.rows[i] for i in range(begin, min(begin + wanted.run_batch, count))]
            for begin in range(0, count, wanted.run_batch)
        ]
        rows.append(
            bench_learnt(
                run.model,
                [run.batch(items) for items in chunks],
                backbone=run.backbone.name,
                name=run.name,
                seconds=run.backbone.padded_seconds,
                seconds_of_audio=[
                    round(min(item["seconds"], run.backbone.padded_seconds), 3)
                    for items in chunks
                    for item in items
                ],
                repeats=wanted.repeats,
            )
        )
        _progress(describe(rows[-1]))
    return rows, [*encoder_goals(rows), *peer_goals(rows)]


def training(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and goals of a training step (`localgp.bench.training`)."""
    from localgp.bench.goals import training_goals
    from localgp.bench.training import bench_training

    rows = []
    for name in cfg.bench.backbones:
        backbone = _random_backbone(name, _device(cfg))
        backbone.use_fast_kernels()  # as in training
        rows += bench_training(
            backbone,
            name=name,
            seconds=cfg.bench.seconds,
            batches=tuple(cfg.bench.batches),
            skipped=tuple(cfg.bench.skipped),
            repeats=cfg.bench.repeats,
            progress=_progress,
        )
    return rows, training_goals(rows)


def runs(cfg: DictConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The evaluated runs of the configured corpus and backbone, the first seed of each."""
    from dataclasses import replace

    import numpy as np
    from omegaconf import OmegaConf

    from localgp.bench.runs import TrainedRun, bench_runs
    from localgp.contexts.extract import build_extractor, needed_contexts, row_contexts
    from localgp.corpora.fits import split_of
    from localgp.corpora.prepared import load_prepared
    from localgp.errors import ConfigError
    from localgp.evaluation.results import at_budgets
    from localgp.evaluation.trained import load_trained, trained_config
    from localgp.report.runs import first_seeds
    from localgp.search.options import DecodeOptions

    wanted, device = cfg.bench, _device(cfg)
    for key in ("utterances", "batch", "repeats", "decoder_repeats"):
        if not isinstance(wanted[key], int) or wanted[key] < 1:
            raise ConfigError(f"bench.{key} is {wanted[key]!r}; valid: a whole number from 1")
    chosen = first_seeds(cfg, _progress)
    whole = split_of(load_prepared(cfg), cfg.evaluate.split)
    count = min(wanted.utterances, len(whole))
    rows = whole.select(np.unique(np.linspace(0, len(whole) - 1, count).round().astype(int)))
    extractors: dict[str, Any] = {}
    loaded = []
    for run, weights in chosen:
        trained = trained_config(run.path, weights, cfg)
        model = load_trained(trained, weights, device)
        sources = {name: f"{name} {trained.contexts[name].source}" for name in needed_contexts(trained)}
        for name, key in sources.items():
            if key not in extractors:
                extractors[key] = build_extractor(name, trained, device)
        contexts = row_contexts(trained, (rows, whole))
        one = TrainedRun(run.name, run.seed, model, contexts, tuple(sources.values()))
        budgets = sorted(at_budgets(run.path))  # those at which it was evaluated
        loaded += [one, *(replace(one, name=f"{run.name}-budget{b:g}", budget=b) for b in budgets)]
    settings: dict[str, Any] = dict(OmegaConf.to_container(cfg.decode, resolve=True))  # type: ignore[arg-type]
    return bench_runs(
        loaded,
        rows,
        DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")}),
        corpus=cfg.corpus.name,
        extractors=extractors,
        batch=wanted.batch,
        repeats=wanted.repeats,
        decoder_repeats=wanted.decoder_repeats,
        progress=_progress,
    ), []


def _progress(line: str) -> None:
    print(line, flush=True)


BENCHES = {"encoder": encoder, "decoder": decoder, "training": training, "runs": runs}


def _check_choices(wanted: DictConfig, valid: dict[str, tuple[str, ...]]) -> None:
    from localgp.errors import ConfigError

    for key, choices in valid.items():
        unknown = [name for name in wanted[key] if name not in choices]
        if unknown:
            raise ConfigError(f"bench.{key} has {', '.join(map(str, unknown))}; valid: {', '.join(choices)}")


def _device(cfg: DictConfig) -> Any:
    from localgp.precision import resolve_device

    return resolve_device(cfg.device)


def _backbones(cfg: DictConfig) -> list[str]:
    """Names of those to be timed: the one that ``backbone=`` chose, else ``bench.backbones``."""
    chosen = str(cfg.backbone.name)
    return list(cfg.bench.backbones) if chosen == "mini" else [chosen]


def _backbone(cfg: DictConfig, name: str, device: Any) -> Backbone:
    """That of ``backbone=`` with its weights, others with random ones."""
    from localgp.backbones import open_backbone

    if name != str(cfg.backbone.name) or name == "mini":
        return _random_backbone(name, device)
    backbone = open_backbone(cfg.backbone)
    backbone.net.to(device).eval()
    return backbone


def _random_backbone(name: str, device: Any) -> Backbone:
    """A published shape with random weights."""
    import torch

    from localgp.backbones import families, open_backbone
    from localgp.errors import ConfigError

    known = [known for family in families().values() for known in family.NAMES]
    if name not in known:
        raise ConfigError(f"bench.backbones has {name!r}; valid: {', '.join(known)}")
    torch.manual_seed(0)
    # The path `embedded` would give the mini backbone under any name.
    path = "embedded" if name == "mini" else f"published/{name}"
    backbone = open_backbone({"name": name, "path": path, "weights": "random"})
    backbone.net.to(device)
    return backbone


class _Trained:
    """The trained run ``bench.run`` and its test set.

    Args:
        policy: Attribute of the model that must be there: ``policy``, the encoder's gates, or ``decoder_policy``.
    """

    def __init__(self, cfg: DictConfig, device: Any, policy: str) -> None:
        from localgp.contexts.extract import row_contexts
        from localgp.corpora.fits import split_of
        from localgp.corpora.prepared import load_prepared
        from localgp.errors import ConfigError
        from localgp.evaluation.trained import load_trained, trained_config, weights_of

        directory = Path(cfg.bench.run)
        weights = weights_of(directory)
        trained = trained_config(directory, weights, cfg)
        self.model = load_trained(trained, weights, device)
        self.backbone = self.model.backbone
        if getattr(self.model, policy) is None:
            side = "an encoder" if policy == "policy" else "a decoder"
            raise ConfigError(
                f"bench.run: {directory} has {side} without gates; give a run whose gates are there"
            )
        self.name = str(trained.name)
        self.rows = split_of(load_prepared(trained), "test")
        self._contexts = row_contexts(trained, (self.rows, self.rows))
        self._device = device

    def batch(self, items: list[Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Padded speech, where it ends, and contexts."""
        from localgp.contexts.extract import batch_contexts
        from localgp.corpora.rows import padded_speech

        samples, timeline = self.model.samples, self.backbone.timeline
        speech_BN, ends_B = padded_speech(items, samples)
        contexts = batch_contexts(self._contexts, items, samples, timeline, self._device)
        return speech_BN.to(self._device), ends_B.to(self._device), contexts
