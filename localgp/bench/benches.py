"""What `python -m localgp.bench` can measure: from a configuration to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from localgp.backbones.base import Backbone
    from localgp.evaluation.decode import Batch

Rows = list[dict[str, Any]]


def decoder(cfg: DictConfig) -> Rows:
    """Beam search and decoding steps (`localgp.bench.decoder`, `localgp.bench.peers`)."""
    from localgp.bench.decoder import DecoderBench
    from localgp.bench.peers import recording_peers, search_peers, step_peers

    wanted, rows = cfg.bench, []
    for name in _backbones(cfg):
        bench = DecoderBench(_backbone(cfg, name), name, wanted, _progress)
        bench.measure()
        step_peers(bench)
        search_peers(bench)
        recording_peers(bench)
        rows += bench.rows
    if wanted.run is not None:
        trained = _Trained(cfg, "decoder_policy")
        batch = trained.first(max(wanted.utterances))
        encoded = trained.model.packed().encode(batch.speech_BN, batch.ends_B, batch.contexts)
        # Of each utterance the last task: a translation if it has any
        tasks = dict(zip(batch.owners, batch.tasks, strict=True))
        bench = DecoderBench(trained.model.backbone, trained.label, wanted, _progress)
        bench.learnt(trained.model, encoded, [tasks[row] for row in sorted(tasks)])
        rows += bench.rows
    return rows


def encoder(cfg: DictConfig) -> Rows:
    """The packed encoder (`localgp.bench.encoder`)."""
    from localgp.bench.encoder import EncoderBench

    wanted, rows = cfg.bench, []
    for name in _backbones(cfg):
        rows += EncoderBench(_backbone(cfg, name), name, wanted, _progress).measure()
    if wanted.run is not None:
        trained = _Trained(cfg, "policy")
        window = trained.model.backbone.padded_seconds
        given = OmegaConf.merge(wanted, {"seconds": window})
        assert isinstance(given, DictConfig)
        bench = EncoderBench(trained.model.backbone, trained.label, given, _progress)
        batches = list(trained.batches(wanted.run_utterances, wanted.run_batch))
        seconds = [round(min(item["seconds"], window), 3) for batch in batches for item in batch.items]
        bench.learnt(trained.model, [(b.speech_BN, b.ends_B, b.contexts) for b in batches], seconds)
        rows += bench.rows
    return rows


def training(cfg: DictConfig) -> Rows:
    """A training step of the encoder (`localgp.bench.encoder.EncoderBench.training`)."""
    from localgp.bench.encoder import EncoderBench

    rows = []
    for name in cfg.bench.backbones:
        backbone = _random_backbone(name, _device(cfg))
        backbone.use_fast_kernels()  # as in training
        bench = EncoderBench(backbone, name, cfg.bench, _progress)
        for batch in cfg.bench.batches:
            for share in cfg.bench.skipped:
                bench.training(batch, share)
        rows += bench.rows
    return rows


def runs(cfg: DictConfig) -> Rows:
    """The evaluated runs of the configured corpus and backbone, the first seed of each (`localgp.bench.runs`)."""
    from dataclasses import replace

    import numpy as np

    from localgp.bench.runs import TrainedRun, bench_runs
    from localgp.contexts.extract import build_extractor, needed_contexts, row_contexts
    from localgp.corpora.fits import split_of
    from localgp.corpora.prepared import load_prepared
    from localgp.evaluation.results import at_budgets
    from localgp.evaluation.trained import load_trained, trained_config
    from localgp.report.runs import first_seeds
    from localgp.search.options import DecodeOptions

    wanted, device = cfg.bench, _device(cfg)
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
    options = DecodeOptions(**{k: v for k, v in settings.items() if k not in ("batch", "precision")})
    return bench_runs(loaded, rows, options, wanted, extractors, corpus=cfg.corpus.name, progress=_progress)


def _progress(line: str) -> None:
    print(line, flush=True)


BENCHES = {"encoder": encoder, "decoder": decoder, "training": training, "runs": runs}


def _device(cfg: DictConfig) -> Any:
    from localgp.precision import resolve_device

    return resolve_device(cfg.device)


def _backbones(cfg: DictConfig) -> list[str]:
    """Names of those to be timed: the one that ``backbone=`` chose, else ``bench.backbones``."""
    chosen = str(cfg.backbone.name)
    return list(cfg.bench.backbones) if chosen == "mini" else [chosen]


def _backbone(cfg: DictConfig, name: str) -> Backbone:
    """That of ``backbone=`` with its weights, others with random ones."""
    from localgp.backbones import open_backbone

    if name != str(cfg.backbone.name) or name == "mini":
        return _random_backbone(name, _device(cfg))
    backbone = open_backbone(cfg.backbone)
    backbone.net.to(_device(cfg)).eval()
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

    def __init__(self, cfg: DictConfig, policy: str) -> None:
        from localgp.contexts.extract import row_contexts
        from localgp.corpora.fits import split_of
        from localgp.corpora.prepared import load_prepared
        from localgp.errors import ConfigError
        from localgp.evaluation.trained import finished_weights, load_trained, trained_config

        directory = Path(cfg.bench.run)
        weights = finished_weights(directory)
        trained = trained_config(directory, weights, cfg)
        self.model = load_trained(trained, weights, _device(cfg))
        if getattr(self.model, policy) is None:
            side = "an encoder" if policy == "policy" else "a decoder"
            raise ConfigError(
                f"bench.run: {directory} has {side} without gates; give a run whose gates are there"
            )
        self.label = f"{self.model.backbone.name} {trained.name}"
        self._rows = split_of(load_prepared(trained), "test")
        self._contexts = row_contexts(trained, (self._rows, self._rows))

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """Of the first ``count`` utterances."""
        from localgp.corpora.rows import list_tasks
        from localgp.evaluation.decode import in_batches, load_batch

        rows = self._rows.select(range(min(count, len(self._rows))))
        for passes in in_batches(self.model, rows, list_tasks(rows), size):
            yield load_batch(self.model, rows, passes, self._contexts)

    def first(self, count: int) -> Batch:
        """The first ``count`` utterances together."""
        return next(self.batches(count, count))
