"""Where a backbone's files are: a directory, the embedded one, or a Hugging Face repository.

ESPnet's published models are not flat. ``meta.yaml`` names the configuration and the checkpoint, and the
configuration names the BPE model and the feature statistics relative to the root of the repository.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localgp.archive import opened
from localgp.backbones.owsm.shapes import DIMENSIONS, placeholder_token_list, train_config
from localgp.backbones.owsm.supported import is_ctc
from localgp.backbones.owsm.tokens import OwsmCtcTokenizer, OwsmTokenizer, bpe_pieces, is_special
from localgp.download import HUB_ID, download
from localgp.errors import BackboneError, ConfigError
from localgp.failures import explained
from localgp.io import staging

log = logging.getLogger(__name__)

CONFIG_FILE, BPE_FILE, STATS_FILE, WEIGHTS_FILE = (
    "config.yaml",
    "bpe.model",
    "feats_stats.npz",
    "valid.acc.ave.pth",
)
EMBEDDED = Path(__file__).parent / "mini"
_PATTERNS = ["*.yaml", "*.pth", "*.model", "*.npz", "*.txt"]  # of a hub repository; training plots are left


@dataclass(frozen=True)
class ModelFiles:
    """The files of one ESPnet S2T model.

    Attributes:
        root: What relative paths inside the configuration start from.
        config: ESPnet's training configuration.
        weights: The checkpoint; None where only the shape is wanted.
        source: Where they came from, for people.
    """

    root: Path
    config: Path
    weights: Path | None
    source: str


def locate(path: str, *, need_weights: bool = True, checkpoint: str | None = None) -> ModelFiles:
    """Finds the files of a model.

    Args:
        path: ``embedded``, a directory, an archive of one, or a Hugging Face repository id.
        need_weights: Whether a checkpoint has to be there.
        checkpoint: Name of the one to take, beside the configuration; None for the only or the averaged one.

    Raises:
        BackboneError: Nothing there, or a file of it is missing or ambiguous.
    """
    if path == "embedded":
        return _files_of(EMBEDDED, "the package (embedded)", need_weights, checkpoint)
    directory = opened(path)
    if directory.is_dir():
        return _files_of(directory, path, need_weights, checkpoint)
    if directory.is_file():
        raise BackboneError(
            f"backbone.path={path} is a file; give the directory that holds config.yaml, or a zip or tar of it"
        )
    if HUB_ID.match(path):
        fetched = download(
            path,
            _PATTERNS,
            option="backbone.path=",
            instead="The right shape without any download: backbone.weights=random",
            error=BackboneError,
        )
        return _files_of(fetched, path, need_weights, checkpoint)
    raise BackboneError(
        f"backbone.path={path}: no such directory, and not a Hugging Face repository id (owner/name); valid are "
        "'embedded', a directory with config.yaml and *.pth, an archive of one, or an id such as "
        "espnet/owsm_v3.1_ebf_base"
    )


def _files_of(directory: Path, source: str, need_weights: bool, checkpoint: str | None) -> ModelFiles:
    meta = directory / "meta.yaml"
    named = _read_meta(meta) if meta.is_file() else {}
    config = directory / named.get("s2t_train_config", "config.yaml")
    if not config.is_file():
        nested = sorted(directory.glob("exp*/*/config.yaml"))
        nested = [p for p in nested if list(p.parent.glob("*.pth"))] or nested
        if len(nested) > 1:
            raise BackboneError(
                f"{directory} holds several models: {', '.join(str(p.parent) for p in nested)}; "
                "give one of them as backbone.path"
            )
        if nested:
            config = nested[0]
    weights = directory / named["s2t_model_file"] if "s2t_model_file" in named else None
    if checkpoint is not None:
        weights = _named_checkpoint(config.parent, checkpoint)
    elif need_weights and (weights is None or not weights.is_file()):
        weights = _choose_checkpoint(config.parent)
    missing = [] if config.is_file() else ["config.yaml (ESPnet's training configuration)"]
    if need_weights and weights is None:
        missing.append("*.pth (the checkpoint)")
    if missing:
        there = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
        raise BackboneError(
            f"{directory} is not a complete ESPnet S2T model: missing {' and '.join(missing)}. It holds: {there}. "
            "Copy the whole model repository, with its data/ and exp/ folders."
        )
    return ModelFiles(directory, config, weights, source)


def _read_meta(path: Path) -> dict[str, str]:
    """File names by role from ESPnet's meta.yaml."""
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {**(meta.get("yaml_files") or {}), **(meta.get("files") or {})}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise BackboneError(f"{path}: cannot be read ({error}); delete it or copy it again") from error


def _named_checkpoint(directory: Path, name: str) -> Path:
    if not (directory / name).is_file():
        there = ", ".join(sorted(path.name for path in directory.glob("*.pth"))) or "none"
        raise BackboneError(
            f"backbone.checkpoint={name}: {directory} has no such file; its checkpoints: {there}"
        )
    return directory / name


def _choose_checkpoint(directory: Path) -> Path | None:
    """The one checkpoint; of the many of a training directory the averaged one, links followed: what ESPnet decodes
    with where its links name more than one, ``valid.acc.ave.pth``."""
    named = sorted(directory.glob("*.pth"))
    found = [path for path in named if path.exists()]
    if named and not found:
        raise BackboneError(
            f"{named[0]} is a link to {os.readlink(named[0])}, which is not there; copy the checkpoint itself"
        )
    if len(found) <= 1:
        return found[0] if found else None
    averaged = [path for path in found if path.name.startswith("valid.") and ".ave" in path.name]
    usual = [path for path in averaged if path.name.endswith(".ave.pth")]
    preferred = [path for path in usual if path.name == "valid.acc.ave.pth"]
    for group in (preferred, usual, averaged):
        files = {path.resolve() for path in group}
        if len(files) == 1:
            chosen = files.pop()
            others = [path.name for path in found if path.resolve() != chosen]
            if others:
                log.warning("%s: took %s, left %s", directory, chosen.name, ", ".join(others))
            return chosen
    raise BackboneError(
        f"{directory} holds {len(found)} checkpoints and not one averaged: {', '.join(p.name for p in found)}; "
        f"choose one of them: backbone.checkpoint={found[-1].name}"
    )


def read_config(files: ModelFiles) -> dict[str, Any]:
    """ESPnet's configuration, with the paths inside it resolved."""
    try:
        # libyaml's loader where there is one: Python's takes seconds over a list of 50,000 tokens.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load(files.config.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BackboneError(f"{files.config}: not a readable YAML file ({error}); copy it again") from error
    if not isinstance(config, dict) or "token_list" not in config or "encoder" not in config:
        raise BackboneError(
            f"{files.config}: not the configuration of an ESPnet S2T model (no token_list or no encoder)"
        )
    config = dict(config)
    config["bpemodel"] = str(_resolve(files, config.get("bpemodel"), "bpemodel", "the BPE model"))
    if isinstance(config["token_list"], str):
        listed = _resolve(files, config["token_list"], "token_list", "the token list")
        tokens = listed.read_text(encoding="utf-8").split("\n")
        config["token_list"] = tokens[:-1] if tokens[-1] == "" else tokens
    if config.get("normalize") == "global_mvn":
        stats = (config.get("normalize_conf") or {}).get("stats_file")
        resolved = _resolve(files, stats, "normalize_conf.stats_file", "the feature statistics")
        config["normalize_conf"] = {**config["normalize_conf"], "stats_file": str(resolved)}
    return config


def _resolve(files: ModelFiles, named: str | None, key: str, what: str) -> Path:
    """A path named in the configuration, looked for in the model's own folders alone: relative to the root, to the
    configuration, or, with a folder in it, to one above (a user may give ``exp/<name>``); else just beside the
    configuration. Where the program runs does not matter: another model's file of the same name may lie there."""
    if not named:
        raise BackboneError(f"{files.config}: {key} is not set; it has to name {what}")
    path = Path(named)
    beside = files.config.parent / path.name
    if path.is_absolute():  # of the machine that it was trained on
        tried = [files.root / path.name, beside, path]
    else:
        folders = [
            files.config.absolute().parent,
            files.config.resolve().parent,
        ]  # apart where exp/ is a link
        above = [parent for folder in folders for parent in folder.parents[:3]] if len(path.parts) > 1 else []
        tried = [start / path for start in (files.root, *folders, *above)] + [beside]
    for candidate in tried:
        if candidate.is_file():
            return candidate.resolve()
    places = dict.fromkeys(
        str(place) for place in (files.root / (path.name if path.is_absolute() else path), beside)
    )
    raise BackboneError(
        f"{files.config} names {what} {named!r} ({key}), and it is not there; copy it to {' or to '.join(places)}"
    )


def read_files(cfg: Mapping[str, Any]) -> tuple[dict[str, Any], ModelFiles | None]:
    """ESPnet's configuration of a backbone, as `localgp.backbones.open_backbone` takes it, and its files; None for
    random weights."""
    checkpoint = cfg.get("checkpoint")
    if cfg["weights"] == "random":
        if checkpoint is not None:
            raise ConfigError(
                f"backbone.checkpoint={checkpoint} and backbone.weights=random exclude each other"
            )
        return read_train_config(cfg), None
    files = locate(str(cfg["path"]), checkpoint=checkpoint)
    return read_config(files), files


def read_vocabulary(cfg: Mapping[str, Any]) -> tuple[OwsmTokenizer, float]:
    """Tokenizer and seconds of input of a backbone whose weights are left unread."""
    with explained(cfg["path"], "config.yaml, or a file it names,"):
        config, _ = read_files(cfg)
        return tokenizer_of(config), padded_seconds(config)


def tokenizer_of(config: Mapping[str, Any]) -> OwsmTokenizer:
    """The vocabulary of an ESPnet configuration."""
    symbols = config.get("preprocessor_conf") or {}
    kind = OwsmCtcTokenizer if is_ctc(config) else OwsmTokenizer
    return kind(config["token_list"], Path(config["bpemodel"]), symbols)


def padded_seconds(config: Mapping[str, Any]) -> float:
    """What an ESPnet configuration pads every input to; OWSM's 30 s where it does not say."""
    return float((config.get("preprocessor_conf") or {}).get("speech_length", 30))


def read_train_config(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The ESPnet configuration of a backbone, without its weights and, for the names in `DIMENSIONS`, without
    any download: a directory given as ``path`` goes first, then the shape known by name."""
    path, name = str(cfg["path"]), str(cfg["name"])
    if path == "embedded" or opened(path).is_dir() or name not in DIMENSIONS:
        return read_config(locate(path, need_weights=False))
    bpe = EMBEDDED / BPE_FILE
    text = [piece for piece in bpe_pieces(bpe) if not is_special(piece)]
    tokens = placeholder_token_list(DIMENSIONS[name], text)
    return train_config(DIMENSIONS[name], tokens, str(bpe), None)


def write_espnet_directory(
    net: Any, train_config: Mapping[str, Any], directory: Path, *, half: bool = False, weights: bool = True
) -> None:
    """Writes a model as ESPnet keeps it: ``config.yaml``, ``valid.acc.ave.pth``, ``bpe.model``,
    ``feats_stats.npz``, ``meta.yaml``. Paths inside ``config.yaml`` are relative to the directory, which can be
    moved; see `espnet_arguments` for ESPnet's own tools.

    Args:
        net: ``ESPnetS2TModel``.
        train_config: Its config.yaml, paths resolved.
        directory: Appears complete or not at all; other files of an existing directory stay in it.
        half: Parameters in fp16; statistics stay in fp32.
        weights: Write the checkpoint, and ``meta.yaml``, which names it.
    """
    config = {**train_config, "bpemodel": BPE_FILE}
    with staging(directory) as folder:
        shutil.copyfile(train_config["bpemodel"], folder / BPE_FILE)
        stats = (config.get("normalize_conf") or {}).get("stats_file")
        if stats is not None:
            shutil.copyfile(stats, folder / STATS_FILE)
            config["normalize_conf"] = {**config["normalize_conf"], "stats_file": STATS_FILE}
        text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        if weights:
            _write_weights(net, folder, half)
        directory.mkdir(exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda p: p.name == CONFIG_FILE):  # config.yaml goes last
            os.replace(file, directory / file.name)


def _write_weights(net: Any, directory: Path, half: bool) -> None:
    import torch

    state = {key: value.detach().cpu() for key, value in net.state_dict().items()}
    if half:
        parameters = dict(net.named_parameters())
        state = {key: value.half() if key in parameters else value for key, value in state.items()}
    meta = {"files": {"s2t_model_file": WEIGHTS_FILE}, "yaml_files": {"s2t_train_config": CONFIG_FILE}}
    (directory / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
    torch.save(state, directory / WEIGHTS_FILE)


def espnet_arguments(path: str | Path, work_directory: Path) -> dict[str, str]:
    """Arguments for ``espnet2.bin.s2t_inference.Speech2Text``, which takes the paths inside ``config.yaml`` as
    they stand and so relative to where it runs.

    Args:
        path: What `load_backbone` takes.
        work_directory: A copy of ``config.yaml`` with absolute paths is written here.

    Examples:
        >>> from tempfile import mkdtemp
        >>> arguments = espnet_arguments("embedded", Path(mkdtemp()))
        >>> sorted(arguments)
        ['s2t_model_file', 's2t_train_config']
    """
    from localgp.backbones.owsm.build import accepted

    files = locate(str(path))
    work_directory.mkdir(parents=True, exist_ok=True)
    config = work_directory / CONFIG_FILE
    text = yaml.safe_dump(accepted(read_config(files)), allow_unicode=True, sort_keys=False)
    config.write_text(text, encoding="utf-8")
    return {"s2t_train_config": str(config), "s2t_model_file": str(files.weights)}
