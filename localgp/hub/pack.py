"""A trained run as an archive that ESPnet loads, and as a folder for the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from localgp import __version__
from localgp.archive import write_zip
from localgp.backbones import family_of
from localgp.config_parts import PORTABLE, with_parts
from localgp.errors import CheckpointError, ConfigError, HubError
from localgp.evaluation.results import scores_of
from localgp.hub.card import licence_of, model_card
from localgp.hub.licences import licence_identifier
from localgp.hub.load import CONFIG, EXTRAS, GATES, METRICS, WEIGHTS, load
from localgp.io import filled, staging, sweep
from localgp.locks import held
from localgp.paths import expanded
from localgp.run import variant_name
from localgp.stored import read_yaml_mapping, section
from localgp.weights import GATES as GATE_TENSORS
from localgp.weights import save_weights
from localgp.window import upgraded


def pack(
    run: Path,
    output: Path,
    *,
    formats: tuple[str, ...] | None = None,
    name: str | None = None,
    licence: str | None = None,
    without_scores: bool = False,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Packs a finished run.

    Args:
        run: A run directory of `localgp.train`.
        output: Where ``<name>.zip`` and the folder ``<name>`` go.
        formats: Of ``espnet`` and ``huggingface``; None: all that the model can be had in.
        name: Of the packed model; by default ``localgp-<backbone>-<conf>-<corpus>-seed<k>``, where ``<conf>`` is
            the variant's, such as ``row05-target0.5``.
        licence: Identifier of the hub's; by default what backbone and corpus imply.
        without_scores: Pack a run that was not evaluated.
        overwrite: Replace what is packed under that name.

    Returns:
        Path by format.

    Raises:
        CheckpointError: No finished run there, or not evaluated; or something is in the packed model's place.
        ConfigError: A licence that is not known.
    """
    stored = run / "config.yaml"
    if not stored.is_file():
        raise CheckpointError(
            f"{run} is not a run directory (no config.yaml); give one, such as exp/mini/mini/row05/seed1"
        )
    config = portable(upgraded(read_yaml_mapping(stored)))
    name = name or packed_name(config)
    places = {"espnet": output / f"{name}.zip", "huggingface": output / name}
    packed = {form: places[form] for form in formats or places}
    licence = licence_of(config) if licence is None else licence_identifier(licence)
    with held(output / f".{name}.lock", f"packing {output / name}"):
        _check_free(packed, overwrite)
        sweep(output, name)
        return _pack(run, config, packed, licence, name, without_scores, every=formats is None)


def _pack(
    run: Path,
    config: dict[str, Any],
    packed: dict[str, Path],
    licence: str,
    name: str,
    without_scores: bool,
    *,
    every: bool,
) -> dict[str, Path]:

    loaded = load(str(run), device="cpu")
    lead = loaded.metrics
    loaded.metrics = scores_of(run, run / "checkpoints" / WEIGHTS, lead)
    if not loaded.metrics and not without_scores:
        lacking = f"{METRICS} is of other weights than its own" if lead else f"it has no {METRICS}"
        raise CheckpointError(
            f"{run}: {lacking}, and a card without scores says little. Evaluate it first (python -m "
            f"localgp.evaluate conf={config['name']}), or pack it as it is: --without-scores"
        )
    if every and loaded.backbone.key != "espnet":
        packed = {form: place for form, place in packed.items() if form != "espnet"}
    if "espnet" in packed and loaded.backbone.key != "espnet":
        raise ConfigError(
            f"{loaded.backbone.name} is no model of ESPnet's; pack it with --format huggingface"
        )
    if "espnet" in packed:
        _pack_espnet(loaded, config, packed["espnet"], licence, name)
    if "huggingface" in packed:
        write = _pack_beside if loaded.backbone.saves_hub_folder else _pack_folder
        write(loaded, config, packed["huggingface"], licence, name)
    return packed


def packed_name(config: dict[str, Any]) -> str:
    """A name that no other run's model has: backbone, variant, corpus and seed.

    Raises:
        CheckpointError: A configuration that is not a run's.
    """
    corpus = section(config, "corpus").get("name", "corpus")
    try:
        return f"localgp-{config['backbone']['name']}-{variant_name(config)}-{corpus}-seed{config.get('seed', 1)}"
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the run's config.yaml is not a run's configuration ({error!r}); restore it, or give another run"
        ) from error


def _check_free(packed: dict[str, Path], overwrite: bool) -> None:
    """Refuses to replace what is packed already.

    Raises:
        CheckpointError: Something is there that may not be replaced.
    """
    for form, place in packed.items():
        if not place.exists():
            continue
        if not (place.is_file() if form == "espnet" else _is_packed(place)):
            raise CheckpointError(
                f"{place} exists and is not a packed model; choose another place: --output DIR, or --name NAME"
            )
        if not overwrite:
            raise CheckpointError(
                f"{place} exists: --overwrite replaces it, --name NAME or --output DIR puts this model elsewhere"
            )


def _is_packed(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / EXTRAS / "config.yaml").is_file()


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without what only its own machine has, such as where its data lie."""
    kept = with_parts(config, *PORTABLE)
    backbone = kept.get("backbone")
    if isinstance(backbone, dict):
        if expanded(str(backbone.get("path"))).exists():
            family = family_of(str(backbone["path"]), str(backbone.get("name")))
            backbone = {**backbone, "path": family.KEY}
        kept["backbone"] = {**backbone, "checkpoint": None}  # there is but one in what is packed
    if isinstance(kept.get("contexts"), dict):
        kept["contexts"] = {name: _portable_context(section) for name, section in kept["contexts"].items()}
    return kept


def _portable_context(section: Any) -> Any:
    """An extractor's local file or directory, by its own name under ``models/`` of wherever the model is loaded."""
    if not isinstance(section, dict) or section.get("source", "mini") == "mini":
        return section
    path = expanded(str(section["source"]))
    return {**section, "source": f"models/{path.name}"} if path.is_absolute() or path.exists() else section


def _pack_espnet(loaded: Any, config: dict[str, Any], archive: Path, licence: str, name: str) -> None:
    """meta.yaml, config.yaml, the checkpoint, BPE and statistics at the root, as ESPnet's ``pack`` has them; the
    gates and what belongs to them in a folder that ESPnet passes by."""
    import espnet
    import torch

    with staging(archive) as folder:
        loaded.backbone.save(folder)
        meta = yaml.safe_load((folder / "meta.yaml").read_text(encoding="utf-8"))
        meta |= {"espnet": espnet.__version__, "torch": str(torch.__version__), "localgp": __version__}
        (folder / "meta.yaml").write_text(yaml.safe_dump(meta), encoding="utf-8")
        _write_extras(loaded, config, folder / EXTRAS)
        card = model_card(
            config,
            loaded.metrics,
            licence=licence,
            name=archive.name,
            elsewhere=_IN_ESPNET.format(
                name=archive.name, **_INFERENCE[loaded.backbone.shape.decoder_layers > 0]
            ),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_zip(archive, folder, first="meta.yaml")


def _write_extras(loaded: Any, config: dict[str, Any], folder: Path) -> None:
    """The gates and what belongs to them, beside a model that others load without."""
    folder.mkdir()
    gates = {k: v for k, v in loaded.model.state_dict().items() if k.startswith(GATE_TENSORS)}
    if gates:
        save_weights(gates, folder / GATES)
    _write_config(config, folder / "config.yaml")
    _write_metrics(loaded.metrics, folder / METRICS)


_IN_ESPNET = """## In ESPnet

ESPnet runs every module on every frame: what it computes is this model with its gates forced open.

```python
from {module} import {kind}
from espnet2.main_funcs.pack_funcs import unpack

speech2text = {kind}(**unpack("{name}", "unpacked"), lang_sym="<deu>", task_sym="<asr>")
```
"""
_INFERENCE = {
    True: {"module": "espnet2.bin.s2t_inference", "kind": "Speech2Text"},
    False: {"module": "espnet2.bin.s2t_inference_ctc", "kind": "Speech2TextGreedySearch"},
}  # with a decoder, and without


_IN_TRANSFORMERS = """## In transformers

`transformers` runs every module on every frame: what it computes is this model with its gates forced open.

```python
from transformers import WhisperForConditionalGeneration, WhisperProcessor

model = WhisperForConditionalGeneration.from_pretrained("{0}")
processor = WhisperProcessor.from_pretrained("{0}")
```
"""


def _pack_beside(loaded: Any, config: dict[str, Any], folder: Path, licence: str, name: str) -> None:
    """The model as its own library keeps it; the gates and what belongs to them in a folder that it passes by."""
    with filled(folder) as new:
        loaded.backbone.save(new)
        _write_extras(loaded, config, new / EXTRAS)
        card = _card(loaded, config, licence, name, _IN_TRANSFORMERS)
        (new / "README.md").write_text(card, encoding="utf-8")


def _pack_folder(loaded: Any, config: dict[str, Any], folder: Path, licence: str, name: str) -> None:
    backbone = loaded.backbone
    with filled(folder) as new:
        backbone.save(new / backbone.key, weights=False)
        save_weights(loaded.model.state_dict(), new / WEIGHTS)
        _write_config(config, new / CONFIG)
        _write_metrics(loaded.metrics, new / METRICS)
        # What the hub shows beside a model, and counts downloads by.
        summary = {
            "model_type": "localgp",
            "localgp_version": __version__,
            "backbone": config["backbone"]["name"],
            "pruning": config["pruning"],
        }
        (new / "config.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        card = _card(loaded, config, licence, name)
        (new / "README.md").write_text(card, encoding="utf-8")


def _card(loaded: Any, config: dict[str, Any], licence: str, name: str, elsewhere: str = "") -> str:
    return model_card(
        config,
        loaded.metrics,
        licence=licence,
        name=name,
        library=loaded.backbone.library,
        elsewhere=elsewhere.format(name),
    )


def _write_config(config: dict[str, Any], path: Path) -> None:
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _write_metrics(metrics: dict[str, Any], path: Path) -> None:
    if metrics:
        path.write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Uploads a packed folder to the Hugging Face hub; returns its address.

    Raises:
        CheckpointError: Not a packed folder.
        HubError: No network, no login, no such place.
    """
    from huggingface_hub import HfApi

    missing = [name for name in (WEIGHTS, "README.md") if not (folder / name).is_file()]
    missing += [] if _is_packed(folder) else [CONFIG]
    if missing:
        raise CheckpointError(
            f"{folder} is not a packed model ({', '.join(missing)} missing); make one: python -m localgp.pack RUN"
        )
    try:
        api = HfApi(library_name="localgp", library_version=__version__)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=f"{folder.name} by localgp {__version__}"
        )
    except Exception as error:  # the hub client raises its own, its HTTP library's and OS errors alike
        details = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        raise HubError(
            f"{folder} could not be pushed to {repo_id} ({type(error).__name__}: {details}).\n"
            "  Log in once:            hf auth login\n"
            f"  Without a network here: copy the folder, then  hf upload {repo_id} {folder}\n"
            "  HF_HUB_OFFLINE must not be set, and the owner before the slash must be you or your organisation."
        ) from error
    return str(address)
