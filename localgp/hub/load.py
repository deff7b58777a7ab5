"""From a path or a hub id to a model that transcribes.

    exp/.../seed1/   config.yaml  checkpoints/model.safetensors             a run of localgp.train
    folder           localgp.yaml model.safetensors espnet/ README.md       packed for the Hugging Face hub
    archive          meta.yaml config.yaml *.pth … localgp/                 packed for ESPnet, zip or tar
    folder           meta.yaml or config.yaml, *.pth                        any ESPnet S2T model, without gates

Nothing of it is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from localgp.archive import opened
from localgp.backbones import families, family_of
from localgp.cli import CONF_DIR
from localgp.config_parts import with_parts
from localgp.download import HUB_ID, download
from localgp.errors import BackboneError, CheckpointError, ConfigError, LocalGPError
from localgp.extensions import own_contexts, permit
from localgp.failures import remedy
from localgp.paths import literal
from localgp.search.options import DecodeOptions
from localgp.settings import Part, check, require
from localgp.stored import read_yaml_mapping, short
from localgp.weights import load_state
from localgp.window import spelt_out, upgraded

if TYPE_CHECKING:
    from localgp.backbones.base import Tokens

CONFIG, WEIGHTS, METRICS = "localgp.yaml", "model.safetensors", "metrics.json"  # of a hub folder
EXTRAS, GATES = "localgp", "gates.safetensors"  # of an ESPnet archive: the folder of ours in it
_HUB_FILES = ["*.yaml", "*.json", "*.safetensors", "*.model", "*.npz", "*.md", "*.pth", "*.txt"]


@dataclass(frozen=True)
class _Stored:
    """What lies at a path, before its weights are read.

    Attributes:
        cfg: Its configuration, on top of the current defaults.
        weights: Tensors besides those of the backbone's own checkpoint; None where it has all.
        metrics: Where its scores are, if it has some.
        only_gates: ``weights`` holds the gates alone.
        source: What to call where they came from, if not by the backbone's name for it.
        own: It is a run, of the user's own, and no model that was packed for others.
    """

    cfg: DictConfig
    weights: Path | None = None
    metrics: Path | None = None
    only_gates: bool = False
    source: str | None = None
    own: bool = False


@dataclass(frozen=True)
class Described:
    """A model before its weights are read: what is needed to refuse what it cannot do.

    Attributes:
        options: How it decodes.
        tokenizer: Its vocabulary.
        window_seconds: What it hears at once.
    """

    options: DecodeOptions
    tokenizer: Tokens
    window_seconds: float


def describe(source: str, gates: str = "trained", extensions: Collection[type | str] = ()) -> Described:
    """What `load` would load, in a moment and without PyTorch.

    Raises:
        LocalGPError: As `load`, but for the weights.
    """
    path = _find(str(source))
    with _readable(path):
        stored = _stored(path, gates)
        permit(stored.cfg, path, extensions, own=stored.own)
        backbone = stored.cfg.backbone
        family = family_of(str(backbone.path), str(backbone.name))
        return Described(decode_options(stored.cfg), *family.read_vocabulary(backbone))


def load(
    source: str,
    *,
    device: str = "auto",
    precision: str = "fp32",
    gates: str = "trained",
    extensions: Collection[type | str] = (),
) -> Any:
    """See `localgp.load`."""
    require({"device": device, "decode.precision": precision})
    if gates not in ("trained", "open"):
        raise ConfigError(f"gates is {gates!r}; valid: trained, open")
    path = _find(str(source))
    with _readable(path):
        stored = _stored(path, gates)
        permit(stored.cfg, path, extensions, own=stored.own)
        options = decode_options(stored.cfg)

        from localgp.build import build_model
        from localgp.contexts.extract import build_extractor, needed_contexts
        from localgp.precision import resolve_device, resolve_precision
        from localgp.transcription.transcriber import Transcriber

        where = resolve_device(device)
        dtype = resolve_precision(precision, where)
        model = build_model(stored.cfg)
        gated = any(True for _ in model.gate_parameters())
        if stored.weights is not None and (gated or not stored.only_gates):
            load_state(model, stored.weights, gates, only_gates=stored.only_gates)
        extractors = {name: build_extractor(name, stored.cfg, where) for name in needed_contexts(stored.cfg)}
    model.backbone.source = stored.source or model.backbone.source
    model.to(where).eval()
    fine_tuned = _is_fine_tuned(path)
    config = OmegaConf.to_container(stored.cfg, resolve=True) if fine_tuned else {}
    assert isinstance(config, dict)
    return Transcriber(
        model,
        options,
        dtype=dtype,
        # Fine-tuning here shows a model no timestamps, and of those that the mini backbone saw it learnt too little.
        windows="pauses" if fine_tuned or path == "embedded" else None,
        extractors=extractors,
        name=str(source),
        config={str(key): value for key, value in config.items()},
        metrics={} if stored.metrics is None else _metrics(stored.metrics),
    )


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Makes an error of ours of what reads as a configuration and is none: a number where a list has to be, and the
    like."""
    try:
        yield
    except LocalGPError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
        if remedy(error) is not None or "memory" in str(error):
            raise
        raise CheckpointError(
            f"{path}: its configuration does not describe a model ({type(error).__name__}: {error}); "
            "copy it again, or pack the run again"
        ) from error


def _find(source: str) -> Path | str:
    """The directory of a model, unpacked or fetched where need be; ``embedded`` stays as it is."""
    if source == "embedded":
        return source
    path = opened(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise BackboneError(
            f"{source} is a file and not an archive of a model; give the directory of the run or the model"
        )
    if HUB_ID.match(source) and not source.startswith("."):
        return download(source, _HUB_FILES)
    raise BackboneError(
        f"no model at {source}: give a run directory (exp/<corpus>/<backbone>/<conf>/seed<k>), a packed model, an "
        "ESPnet S2T directory, 'embedded', or a Hugging Face id (owner/name)"
    )


def _is_fine_tuned(path: Path | str) -> bool:
    """Whether localgp trained what lies there: a run, or what became of one by `localgp.pack`."""
    if isinstance(path, str):
        return False
    return any((path / mark).exists() for mark in (CONFIG, Path(EXTRAS) / "config.yaml", "checkpoints"))


def _stored(path: Path | str, gates: str) -> _Stored:
    """What lies at ``path``, by the files that only its kind has."""
    if isinstance(path, str):
        return _Stored(base_config("backbone=mini", "conf=row01"))
    if (path / CONFIG).is_file():
        cfg = stored_config(path / CONFIG, gates)
        cfg.backbone.path, cfg.backbone.weights = literal(str(_backbone_folder(path))), "random"
        return _Stored(cfg, path / WEIGHTS, path / METRICS, source=str(path))
    if (path / EXTRAS / "config.yaml").is_file():
        cfg = stored_config(path / EXTRAS / "config.yaml", gates)
        cfg.backbone.path, cfg.backbone.weights = literal(str(path)), "pretrained"
        return _Stored(cfg, path / EXTRAS / GATES, path / EXTRAS / METRICS, only_gates=True)
    if (path / "checkpoints").is_dir():
        return _stored_run(path, gates)
    _refuse_folder_of_runs(path)
    cfg = base_config("backbone=path", "conf=row01")
    cfg.backbone.path = literal(str(path))
    return _Stored(cfg)


def _backbone_folder(path: Path) -> Path:
    """Of a packed folder: what builds the backbone, under the name of its family."""
    known = [path / family.KEY for family in families().values()]
    return next((folder for folder in known if folder.is_dir()), known[0])


def _refuse_folder_of_runs(path: Path) -> None:
    """Refuses a folder that holds runs and is none.

    Raises:
        CheckpointError: There are runs below; it names them.
    """
    levels = ("", "*/", "*/*/", "*/*/*/")  # exp/<corpus>/<backbone>/<conf>/seed<k>, from anywhere above
    runs = sorted(place.parent for level in levels for place in path.glob(f"{level}seed*/checkpoints"))
    if not runs:
        return
    ended = [run for run in runs if (run / "checkpoints" / WEIGHTS).is_file()]
    shown = "\n  ".join(str(run) for run in (ended or runs)[:20])
    more = f"\n  and {len(ended or runs) - 20} more" if len(ended or runs) > 20 else ""
    raise CheckpointError(
        f"{path} is a folder of runs and not a model; give one of its {'' if ended else 'un'}finished ones:"
        f"\n  {shown}{more}"
    )


def _stored_run(path: Path, gates: str) -> _Stored:
    weights = path / "checkpoints" / WEIGHTS
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"{path}: no config.yaml; it belongs beside checkpoints/: copy the whole run directory"
        )
    cfg = stored_config(path / "config.yaml", gates)
    if not weights.is_file():
        raise CheckpointError(
            f"{path} holds no finished training (no checkpoints/{WEIGHTS}); the command that began it goes on from "
            f"its last checkpoint: python -m localgp.train conf={cfg.name} ..."
        )
    return _Stored(cfg, weights, path / METRICS, own=True)


def base_config(*overrides: str) -> DictConfig:
    """The configuration that every command reads, with overrides as on the command line."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=[spelt_out(item) for item in overrides])


def stored_config(path: Path, gates: str = "trained") -> DictConfig:
    """A stored run configuration on top of the current defaults, so that keys that came later have a value.

    Args:
        gates: ``open`` takes all gates off.

    Raises:
        CheckpointError: A file that is damaged or of another version of localgp.
    """
    content = upgraded(read_yaml_mapping(path))
    missing = [key for key in ("name", "seed", "backbone", "pruning", "decode") if key not in content]
    if missing:
        raise CheckpointError(
            f"{path}: not a run's configuration, {', '.join(missing)} missing; copy it again"
        )
    cfg = base_config("conf=row01")
    for section, value in with_parts(content, Part.MODEL, Part.DECODING).items():
        if section not in cfg:
            raise CheckpointError(
                f"{path}: {section} is unknown; it was written by a newer localgp: update it"
            )
        _merge(cfg, str(section), value, path)
    try:
        check(cfg)
    except ConfigError as error:
        raise CheckpointError(f"{path} holds values that cannot be:\n  {error}\n  Copy it again.") from error
    if gates == "open":
        cfg.pruning.encoder = cfg.pruning.decoder = None
    return cfg


def _merge(cfg: DictConfig, section: str, value: Any, path: Path) -> None:
    expected = cfg._get_node(section)
    is_section = OmegaConf.is_dict(expected) and not expected._is_none()  # type: ignore[union-attr]
    if is_section != isinstance(value, Mapping):
        raise CheckpointError(f"{path}: {section} is {value!r}, which cannot be; copy it again")
    own = own_contexts(value) if section == "contexts" and isinstance(value, Mapping) else []
    unknown = sorted(str(key) for key in set(value) - set(cfg[section]) - set(own)) if is_section else []
    if unknown:
        raise CheckpointError(
            f"{path}: {section} has {', '.join(unknown)}, unknown here; it was written by another localgp: update it"
        )
    try:
        OmegaConf.update(cfg, section, literal(value), merge=True, force_add=True)
        if is_section:
            OmegaConf.to_container(cfg[section], resolve=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {section} cannot be used ({short(error)}); copy it again") from error


def decode_options(cfg: DictConfig) -> DecodeOptions:
    """The ``decode`` section, which has a batch and a precision besides."""
    settings: Any = OmegaConf.to_container(cfg.decode, resolve=True)
    known = {field.name for field in fields(DecodeOptions)}
    return DecodeOptions(**{key: value for key, value in settings.items() if key in known})


def _metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not readable ({short(error)}); remove it and evaluate again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no scores; remove it and evaluate again")
    return content
