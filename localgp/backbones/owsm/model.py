"""Read, build and write ESPnet S2T models (OWSM).

What is built is ESPnet's own `ESPnetS2TModel`, untouched: checkpoints of the published models load, and what is
written here loads in ESPnet.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localgp.backbones.owsm.components import component_class
from localgp.backbones.owsm.files import EMBEDDED, ModelFiles, locate, read_config
from localgp.backbones.owsm.shapes import DIMENSIONS, placeholder_token_list, train_config
from localgp.backbones.owsm.tokens import OwsmTokenizer, bpe_pieces, is_special
from localgp.caches import give_numba_a_cache
from localgp.errors import BackboneError, ConfigError, LocalGPError
from localgp.failures import remedy
from localgp.io import staging
from localgp.paths import expanded
from localgp.weights import mismatches

log = logging.getLogger(__name__)

WEIGHTS = ("pretrained", "random")
CONFIG_FILE, BPE_FILE, STATS_FILE, WEIGHTS_FILE = (
    "config.yaml",
    "bpe.model",
    "feats_stats.npz",
    "valid.acc.ave.pth",
)


@dataclass
class Backbone:
    """A speech foundation model and what goes with it.

    Attributes:
        model: ``ESPnetS2TModel``.
        tokenizer: Its vocabulary.
        sample_rate: Hz.
        padded_seconds: Every input is padded to this.
        name: For run directories and tables.
        source: Where the weights came from, for people.
        train_config: ESPnet's config.yaml, paths resolved.
    """

    model: Any
    tokenizer: OwsmTokenizer
    sample_rate: int
    padded_seconds: float
    name: str
    source: str
    train_config: dict[str, Any]


def load_backbone(cfg: Mapping[str, Any]) -> Backbone:
    """Builds a backbone and loads its weights.

    Args:
        cfg: ``name``; ``path``: ``embedded``, a directory or a Hugging Face repository id; ``weights``:
            ``pretrained``, or ``random`` for the same shape with random weights, for which nothing is
            downloaded when ``name`` is one of `DIMENSIONS`.

    Raises:
        BackboneError: A model that is missing, incomplete, unsafe or of another kind.
        ConfigError: ``weights`` is neither of the two.
    """
    with _explained(cfg):
        config, files = read_files(cfg)
        model = build_model(config)
        if files is not None:
            load_weights(model, files)
        return assemble(model, config, cfg["name"], "random weights" if files is None else files.source)


def read_files(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], ModelFiles | None]:
    """ESPnet's configuration of a backbone, as `load_backbone` takes it, and its files; None for random weights."""
    if cfg["weights"] not in WEIGHTS:
        raise ConfigError(f"backbone.weights={cfg['weights']!r}: valid are {' and '.join(WEIGHTS)}")
    if cfg["weights"] == "random":
        return read_train_config(cfg), None
    files = locate(str(cfg["path"]))
    return read_config(files), files


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[OwsmTokenizer, float]:
    """Tokenizer and seconds of input of a backbone, as `load_backbone` takes it, whose weights are left unread."""
    with _explained(cfg):
        config, _ = read_files(cfg)
        return OwsmTokenizer(config["token_list"], Path(config["bpemodel"])), padded_seconds(config)


@contextlib.contextmanager
def _explained(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Makes an error of ours of whatever a model's files raise."""
    try:
        yield
    except (LocalGPError, MemoryError):
        raise
    except Exception as error:
        # The directory is somebody's YAML, NumPy and SentencePiece files, and ESPnet builds from any of it: what a
        # wrong value raises, and where, is open. A failure of the machine has its own message.
        if remedy(error) is not None:
            raise
        raise BackboneError(
            f"{cfg['path']}: config.yaml, or a file it names, is damaged or of another kind of model "
            f"({type(error).__name__}: {error}); copy the whole model again"
        ) from error


def assemble(model: Any, config: dict[str, Any], name: str, source: str) -> Backbone:
    """A `Backbone` around a model built from ``config``."""
    preprocessor = config.get("preprocessor_conf") or {}
    return Backbone(
        model=model,
        tokenizer=OwsmTokenizer(config["token_list"], Path(config["bpemodel"])),
        sample_rate=int(preprocessor.get("fs", 16000)),
        padded_seconds=padded_seconds(config),
        name=name,
        source=source,
        train_config=config,
    )


def padded_seconds(config: Mapping[str, Any]) -> float:
    """What an ESPnet configuration pads every input to; OWSM's 30 s where it does not say."""
    return float((config.get("preprocessor_conf") or {}).get("speech_length", 30))


def read_train_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ESPnet configuration of a backbone, without its weights and, for the names in `DIMENSIONS`, without
    any download: a directory given as ``path`` goes first, then the shape known by name."""
    path, name = str(cfg["path"]), str(cfg["name"])
    if path == "embedded" or expanded(path).is_dir() or name not in DIMENSIONS:
        return read_config(locate(path, need_weights=False))
    bpe = EMBEDDED / BPE_FILE
    text = [piece for piece in bpe_pieces(bpe) if not is_special(piece)]
    tokens = placeholder_token_list(DIMENSIONS[name], text)
    return train_config(DIMENSIONS[name], tokens, str(bpe), None)


def build_encoder(config: Mapping[str, Any]) -> Any:
    """The encoder alone, for counting its cost."""
    bins = int((config.get("frontend_conf") or {}).get("n_mels", 80))
    return _component("encoder", config["encoder"], config, input_size=bins)


def build_model(config: Mapping[str, Any]) -> Any:
    """ESPnet's S2T model of a configuration, randomly initialised as ESPnet's own task does it: the parts are built
    in its order, so that a seed gives the same weights.

    Published configurations carry arguments that not every ESPnet accepts; those are left out with a log line.
    """
    tokens = list(config["token_list"])
    try:
        frontend, bins = None, config.get("input_size")
        if bins is None:  # else the inputs are features
            frontend = _component("frontend", config.get("frontend") or "default", config)
            bins = frontend.output_size()
        specaug = _optional("specaug", config)
        normalize = _optional("normalize", config)
        preencoder = _optional("preencoder", config)
        if preencoder is not None:
            bins = preencoder.output_size()
        encoder = _component("encoder", config["encoder"], config, input_size=bins)
        size = encoder.output_size()
        postencoder = _optional("postencoder", config, input_size=size)
        if postencoder is not None:
            size = postencoder.output_size()
        decoder = _optional("decoder", config, vocab_size=len(tokens), encoder_output_size=size)
        ctc = _component("ctc", "ctc", config, odim=len(tokens), encoder_output_size=size)
        model = _component(
            "model",
            config.get("model", "espnet"),
            config,
            vocab_size=len(tokens),
            token_list=tokens,
            frontend=frontend,
            specaug=specaug,
            normalize=normalize,
            preencoder=preencoder,
            encoder=encoder,
            postencoder=postencoder,
            decoder=decoder,
            ctc=ctc,
        )
        if config.get("init") is not None:
            from espnet2.torch_utils.initialize import initialize

            initialize(model, config["init"])
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise BackboneError(f"ESPnet cannot build a model from this config.yaml: {error}") from error
    return model


def _optional(component: str, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component that a configuration may leave out, or None."""
    name = config.get(component)
    return None if name is None else _component(component, name, config, **arguments)


def _component(component: str, name: Any, config: Mapping[str, Any], **arguments: Any) -> Any:
    """A component as the configuration describes it; ``arguments`` are what the other components decide."""
    with quiet_espnet():
        kind = component_class(component, name)
    return kind(**arguments, **_accepted(kind, config, component))


def _accepted(kind: type, config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The arguments of one component that this ESPnet's class takes."""
    import inspect

    given = dict(config.get(f"{component}_conf") or {})
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return given
    ignored = sorted(set(given) - set(parameters))
    if ignored:
        log.warning(
            "config.yaml: %s_conf: ignored %s, which this ESPnet does not know", component, ", ".join(ignored)
        )
    accepted = {key: value for key, value in given.items() if key in parameters}
    if accepted.get("use_flash_attn"):
        accepted["use_flash_attn"] = False  # another kernel for the same result, CUDA and fp16 only
    return accepted


def load_weights(model: Any, files: ModelFiles) -> None:
    """Loads a checkpoint into a model that must have exactly its parameters; half precision is widened.

    Raises:
        BackboneError: A file that is damaged, holds anything but tensors, or does not fit.
    """
    import torch

    assert files.weights is not None
    try:
        with files.weights.open("rb") as file:  # one that may not be read is not a damaged one
            state = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{files.weights}: refused, since loading it would run code of the file's author "
            f"({str(error).splitlines()[0]}); get a checkpoint that holds only tensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise BackboneError(
            f"{files.weights}: damaged or not a checkpoint ({error}); copy it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]  # DeepSpeed's wrapping
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BackboneError(
            f"{files.weights}: not a state dictionary of tensors; give a model, not a trainer's state"
        )
    own = model.state_dict()
    problems = mismatches(own, state)
    if problems:
        shown = "\n  ".join(problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise BackboneError(
            f"{files.weights} does not fit {files.config} ({len(own)} tensors expected, {len(state)} given):\n"
            f"  {shown}{more}\n  Use the config.yaml that lies beside the checkpoint."
        )
    model.load_state_dict(state)


def write_espnet_directory(backbone: Backbone, directory: Path, *, half: bool = False) -> None:
    """Writes a model as ESPnet keeps it: ``config.yaml``, ``valid.acc.ave.pth``, ``bpe.model``,
    ``feats_stats.npz``, ``meta.yaml``. Paths inside ``config.yaml`` are relative to the directory, which can be
    moved; see `espnet_arguments` for ESPnet's own tools.

    Args:
        directory: Appears complete or not at all; other files of an existing directory stay in it.
        half: Parameters in fp16; statistics stay in fp32.
    """
    import torch

    config = {**backbone.train_config, "bpemodel": BPE_FILE}
    state = {key: value.detach().cpu() for key, value in backbone.model.state_dict().items()}
    if half:
        parameters = dict(backbone.model.named_parameters())
        state = {key: value.half() if key in parameters else value for key, value in state.items()}
    with staging(directory) as folder:
        shutil.copyfile(backbone.train_config["bpemodel"], folder / BPE_FILE)
        stats = (config.get("normalize_conf") or {}).get("stats_file")
        if stats is not None:
            shutil.copyfile(stats, folder / STATS_FILE)
            config["normalize_conf"] = {**config["normalize_conf"], "stats_file": STATS_FILE}
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        meta = {"files": {"s2t_model_file": WEIGHTS_FILE}, "yaml_files": {"s2t_train_config": CONFIG_FILE}}
        (folder / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
        torch.save(state, folder / WEIGHTS_FILE)
        directory.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda p: p.name == CONFIG_FILE):  # config.yaml goes last
            os.replace(file, directory / file.name)


def espnet_arguments(path: str | Path, work_directory: Path) -> dict[str, str]:
    """Arguments for ``espnet2.bin.s2t_inference.Speech2Text``, which takes the paths inside ``config.yaml`` as
    they stand and so relative to where it runs.

    Args:
        path: What `load_backbone` takes.
        work_directory: A copy of ``config.yaml`` with absolute paths is written here.

    Example:
        >>> from tempfile import mkdtemp
        >>> arguments = espnet_arguments("embedded", Path(mkdtemp()))
        >>> sorted(arguments)
        ['s2t_model_file', 's2t_train_config']
    """
    files = locate(str(path))
    work_directory.mkdir(parents=True, exist_ok=True)
    config = work_directory / CONFIG_FILE
    config.write_text(
        yaml.safe_dump(read_config(files), allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return {"s2t_train_config": str(config), "s2t_model_file": str(files.weights)}


@contextlib.contextmanager
def quiet_espnet() -> Iterator[None]:
    """Keeps ESPnet's import from printing (it looks for optional packages that no S2T model needs), and what it
    imports from failing where the user has no home (`localgp.caches`)."""
    give_numba_a_cache()
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
