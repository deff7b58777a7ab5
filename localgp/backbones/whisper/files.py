"""Where a Whisper model's files are: a directory as `transformers` saves it, or a Hugging Face repository.

Weights are read from safetensors alone: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from localgp.archive import opened
from localgp.backbones.whisper.shapes import DIMENSIONS, arguments
from localgp.backbones.whisper.tokens import WhisperTokens
from localgp.download import HUB_ID, download
from localgp.errors import BackboneError, ConfigError
from localgp.failures import explained
from localgp.io import staging

CONFIG_FILE, GENERATION_FILE, FEATURES_FILE = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
)
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")
_PATTERNS = [
    "*.json",
    "*.txt",
    "model*.safetensors",
]  # of a hub repository; other frameworks' weights are left
_FEATURES = {  # what ours are, and every published model's
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 400,
    "dither": 0.0,
    "do_normalize": False,
}


@dataclass(frozen=True)
class WhisperFiles:
    """What makes a Whisper model.

    Attributes:
        directory: Where its files are; None where only its shape is known.
        config: Arguments of ``WhisperConfig``.
        weights: Whether its weights are wanted.
        source: Where it came from, for people.
    """

    directory: Path | None
    config: dict[str, Any]
    weights: bool
    source: str

    def tokens(self) -> WhisperTokens:
        if self.directory is None:
            return WhisperTokens.placeholder(int(self.config["vocab_size"]))
        return WhisperTokens.read(self.directory)


def locate(cfg: Mapping[str, Any]) -> WhisperFiles:
    """The files of a backbone, as `localgp.backbones.open_backbone` takes it.

    Raises:
        BackboneError: Nothing there, a file of it is missing, or it is another kind of model.
        ConfigError: One of several checkpoints is asked for.
    """
    path, name = str(cfg["path"]), str(cfg["name"])
    if cfg.get("checkpoint") is not None:
        raise ConfigError(
            f"backbone.checkpoint={cfg['checkpoint']}: only ESPnet's directories hold several checkpoints; leave it out"
        )
    wanted = cfg["weights"] == "pretrained"
    directory = opened(path)
    if directory.is_dir():
        return _files_of(directory, str(directory), wanted)
    if not wanted and name in DIMENSIONS:
        return WhisperFiles(None, arguments(DIMENSIONS[name]), False, name)
    if directory.is_file():
        raise BackboneError(
            f"backbone.path={path} is a file; give the directory that holds {CONFIG_FILE}, or a zip or tar of it"
        )
    if HUB_ID.match(path):
        fetched = download(
            path,
            _PATTERNS if wanted else _PATTERNS[:2],
            option="backbone.path=",
            instead="The right shape without any download: backbone.weights=random",
            error=BackboneError,
        )
        return _files_of(fetched, path, wanted)
    raise BackboneError(
        f"backbone.path={path}: no such directory, and not a Hugging Face repository id (owner/name); valid are a "
        "directory that transformers saved Whisper in, or an id such as openai/whisper-base"
    )


def _files_of(directory: Path, source: str, wanted: bool) -> WhisperFiles:
    config = read_json(directory / CONFIG_FILE)
    if config.get("model_type") != "whisper":
        raise BackboneError(
            f"{directory / CONFIG_FILE} is of a model of type {config.get('model_type')!r}, valid: whisper"
        )
    if wanted and not any((directory / name).is_file() for name in WEIGHTS_FILES):
        there = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
        raise BackboneError(
            f"{directory} has no {WEIGHTS_FILES[0]}. It holds: {there}. Weights are read from safetensors alone, since "
            "loading others could run code of their author: copy the whole repository again, or save the model anew "
            "with transformers: model.save_pretrained(DIR)"
        )
    if (directory / FEATURES_FILE).is_file():
        _check_features(directory / FEATURES_FILE, config)
    return WhisperFiles(directory, config, wanted, source)


def _check_features(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses a feature extractor's settings that are not Whisper's.

    Raises:
        BackboneError: Features that Whisper does not have.
    """
    given = read_json(file)
    bins = config.get("num_mel_bins", 80)
    wrong = [
        f"{key} {given[key]!r} (valid: {value!r})"
        for key, value in {**_FEATURES, "feature_size": bins}.items()
        if given.get(key, value) != value
    ]
    if wrong:
        raise BackboneError(f"{file}: not Whisper's features: {', '.join(wrong)}; use a model that has those")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        BackboneError: Missing, or no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BackboneError(f"{file} is missing; copy the whole model again") from error
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{file}: not readable ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{file}: not a JSON object; copy it again")
    return content


def build_whisper(files: WhisperFiles) -> Any:
    """The model, ``WhisperForConditionalGeneration`` in fp32, randomly initialised where no weights are wanted.

    Raises:
        BackboneError: Weights that are damaged or of another model, or no `transformers` here.
    """
    import torch

    try:
        from transformers import WhisperConfig, WhisperForConditionalGeneration
    except ImportError as error:
        raise BackboneError(
            f"Whisper is read through transformers, which is not here ({error}); pip install 'localgp[whisper]'"
        ) from error
    if not files.weights:
        config = WhisperConfig(**files.config)
        config._attn_implementation = "eager"
        model = WhisperForConditionalGeneration(config)
        if files.directory is not None and (files.directory / GENERATION_FILE).is_file():
            model.generation_config = _generation(files.directory)
        return model
    assert files.directory is not None

    read: Any = WhisperForConditionalGeneration.from_pretrained
    try:
        with _quiet():
            model, report = read(
                str(files.directory),
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BackboneError(
            f"{files.directory}: its weights are damaged, or not all there ({error}); copy the model again"
        ) from error
    problems = [f"{name}: not in the file" for name in sorted(report["missing_keys"])]
    problems += [f"{name}: not in the model" for name in sorted(report["unexpected_keys"])]
    problems += [
        f"{name}: {given} in the file, {own} in the model" for name, given, own in report["mismatched_keys"]
    ]
    if problems:
        shown = "\n  ".join(problems[:6])
        more = f"\n  and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise BackboneError(
            f"{files.directory}: the weights do not fit {CONFIG_FILE}:\n  {shown}{more}\n  "
            "Use the config.json that lies beside the weights."
        )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that `transformers` draws for every tensor."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _generation(directory: Path) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(str(directory))


def tokens_of(net: Any, vocabulary: Any = None) -> WhisperTokens:
    """The vocabulary of a model that is there already; see `localgp.backbones.whisper.model.adopt`.

    Raises:
        BackboneError: It is nowhere.
    """

    from transformers import AutoTokenizer

    if vocabulary is None or isinstance(vocabulary, str | Path):
        place = str(vocabulary or getattr(net, "name_or_path", ""))
        try:
            vocabulary = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"no tokenizer at {place!r}, where the model came from; give its processor or its directory: "
                "localgp.gate(model, ..., vocabulary=processor)"
            ) from error
    tokenizer = getattr(vocabulary, "tokenizer", vocabulary)
    if not hasattr(tokenizer, "save_pretrained"):
        raise BackboneError(
            f"vocabulary is a {type(vocabulary).__name__}; valid: WhisperProcessor, WhisperTokenizer, a directory"
        )
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        net.generation_config.save_pretrained(folder)
        return WhisperTokens.read(Path(folder))


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[WhisperTokens, float]:
    """Tokens and seconds of input of a backbone whose weights are left unread."""
    with explained(cfg["path"]):
        files = locate(cfg)
        return files.tokens(), int(files.config.get("max_source_positions", 1500)) / 50


def write_directory(net: Any, tokens: WhisperTokens, directory: Path, *, weights: bool = True) -> None:
    """Writes a model as `transformers` saves it, with tokenizer and features, so that
    ``WhisperForConditionalGeneration.from_pretrained`` and ``WhisperProcessor.from_pretrained`` load it.

    Args:
        directory: Appears complete or not at all; other files of an existing directory stay in it.
        weights: Else what ``backbone.weights=random`` needs alone.
    """
    with staging(directory) as folder:
        if weights:
            with _quiet():
                net.save_pretrained(str(folder))
        else:
            net.config.save_pretrained(str(folder))
            net.generation_config.save_pretrained(str(folder))
        features = {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": net.config.num_mel_bins,
            "chunk_length": net.config.max_source_positions // 50,
            "padding_value": 0.0,
            **{key: value for key, value in _FEATURES.items() if key != "do_normalize"},
        }
        (folder / FEATURES_FILE).write_text(json.dumps(features, indent=2) + "\n", encoding="utf-8")
        tokens.write(folder)
        directory.mkdir(exist_ok=True)
        permissions = (
            folder / FEATURES_FILE
        ).stat().st_mode & 0o777  # weights are written for their owner alone
        for file in folder.iterdir():
            file.chmod(permissions)
        for file in sorted(folder.iterdir(), key=lambda p: p.name == CONFIG_FILE):  # config.json goes last
            file.replace(directory / file.name)
