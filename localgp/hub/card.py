"""The model card: everything in it is read from the run, nothing is written by hand."""

from __future__ import annotations

import shlex
from typing import Any

import yaml
from omegaconf import OmegaConf

from localgp import __version__
from localgp.backbones import families
from localgp.cli import CONF_DIR
from localgp.errors import ConfigError
from localgp.extensions import named_in
from localgp.hub.load import base_config
from localgp.tables import Column, render

# Fine-tuned weights carry the licences of what they came from. The mini corpus and backbone are made by this code.
_WEIGHTS = {
    "mini": "apache-2.0",
    **{f"owsm_v3.1_{size}": "cc-by-4.0" for size in ("base", "small", "medium")},
    **dict.fromkeys(families()["whisper"].NAMES, "mit"),
}
_DATA = {"mini": None, "europarl_st": "cc-by-nc-4.0"}  # None: adds nothing


def licence_of(config: dict[str, Any]) -> str:
    """The licence that a fine-tuned model has by its backbone and corpus.

    Raises:
        ConfigError: One of the two is the user's own.
    """
    backbone, corpus = str(config["backbone"]["name"]), str((config.get("corpus") or {}).get("name"))
    weights = _WEIGHTS.get(backbone)
    if weights is None or corpus not in _DATA:
        raise ConfigError(
            f"the licence of a model from backbone {backbone!r} and corpus {corpus!r} is not known here; "
            "give it: --licence cc-by-4.0 (an identifier of the Hugging Face hub)"
        )
    return _DATA[corpus] or weights


def training_command(config: dict[str, Any]) -> str:
    """The command that trains this model: the groups, and every option that differs from theirs."""
    groups = [f"corpus={_group(config, 'corpus')}", f"backbone={_group(config, 'backbone')}"]
    if config["backbone"].get("path") in {family.KEY for family in families().values()}:  # its own machine's
        config = {**config, "backbone": {**config["backbone"], "path": "DIR"}}
    conf = f"conf={config['name']}"
    try:
        base = base_config(*groups, conf)
    except Exception:  # a name that the user gave: the defaults are what it is compared with
        conf = f"name={config['name']}"
        base = base_config(*groups, "conf=row01", conf)

    plain: Any = OmegaConf.to_container(base, resolve=True)
    sections = ("seed", "pruning", "training", "trainer", "corpus", "backbone", "contexts")
    changed = [
        override
        for section in sections
        if section in config and section in plain
        for override in _changes(section, plain[section], config[section])
    ]
    return " ".join(["python -m localgp.train", *map(shlex.quote, [*groups, conf, *changed])])


def _group(config: dict[str, Any], section: str) -> str:

    name = str((config.get(section) or {}).get("name"))
    if (CONF_DIR / section / f"{name}.yaml").is_file():
        return name
    return {"corpus": "manifest", "backbone": "path"}[section]


def _changes(prefix: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key, value in new.items()
            if key in old
            for change in _changes(f"{prefix}.{key}", old[key], value)
        ]
    if old == new:
        return []
    written = "null" if new is None else str(new).lower() if isinstance(new, bool) else str(new)
    return [f"{prefix}={written}".replace("'", "")]


def model_card(
    config: dict[str, Any],
    metrics: dict[str, Any],
    *,
    licence: str,
    name: str,
    library: str = "",
    elsewhere: str = "",
) -> str:
    """README.md of a packed model.

    Args:
        config: The run's configuration.
        metrics: Its metrics.json; empty where it was packed without scores.
        name: Of the packed model, for the examples.
        library: That the backbone is of, as the hub tags its models.
        elsewhere: How to load it there, in Markdown.
    """
    languages = sorted(key for key in metrics.get("wer", {}) if key != "average")
    pruning = config["pruning"]
    head: dict[str, Any] = {
        "license": licence,
        "language": languages or [str(code) for code in (config.get("corpus") or {}).get("languages") or []],
        "library_name": "localgp",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["localgp", *filter(None, [library]), "speech-translation", "dynamic-pruning"],
    }
    needed = _extractors(config)
    source = str(config["backbone"].get("path", ""))
    if "/" in source and str(config["backbone"]["name"]) in _WEIGHTS:
        head["base_model"] = source
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    gates = [f"encoder: {pruning['encoder'] or 'none'}"]
    if pruning["encoder"]:
        gates[0] += (
            f" on {', '.join(pruning['encoder_modules'])}, context {', '.join(pruning['context']) or 'none'}"
        )
    gates.append(f"decoder: {pruning['decoder'] or 'none'}")
    if pruning["decoder"]:
        gates[1] += f" on {', '.join(pruning['decoder_modules'])}"
    corpus = config.get("corpus") or {}
    parts = [
        f"---\n{front}---\n",
        f"# {name}\n",
        f"{config['backbone']['name']} fine-tuned on {corpus.get('name', 'an unnamed corpus')} with context-driven "
        f"dynamic pruning (localgp {__version__}): gates decide frame by frame "
        "which modules run.\n",
        f"- Gates: {'; '.join(gates)}; target sparsity {pruning['target']:.0%}.",
        f"- Licence: {licence}.",
        *(
            [f"- Context extractors, needed wherever it is loaded and no part of it: {'; '.join(needed)}."]
            if needed
            else []
        ),
        f"- Trained with:\n\n```bash\n{training_command(config)}\n```\n",
        "## Scores\n",
        _scores(metrics),
        "## Use\n",
        f"```bash\npython -m localgp.transcribe speech.m4a --model {name} --src deu --tgt fra --format srt\n```\n",
        f'```python\nimport localgp\n\nmodel = localgp.load("{name}"{_allowed(config)})\n'
        'print(model.transcribe("speech.m4a", src="deu", tgt="fra").text)\n```\n',
    ]
    if elsewhere:
        parts.append(elsewhere)
    return "\n".join(parts)


def _allowed(config: dict[str, Any]) -> str:
    """What the reader has to have and to allow: classes of the user's own that the model names."""
    named = list(named_in(config).values())
    return f", extensions={named}" if named else ""


def _contexts(gflops: dict[str, Any]) -> str:
    each = ", ".join(f"{name} {value:.3f}" for name, value in (gflops.get("contexts") or {}).items())
    return each or f"{gflops.get('context', 0.0):.3f}"


def _extractors(config: dict[str, Any]) -> list[str]:
    """What the gates' contexts are extracted with; looked for anew wherever the model is loaded."""

    from localgp.contexts.extract import needed_contexts

    found = []
    for name in needed_contexts(OmegaConf.create({"pruning": config["pruning"]})):
        source = config.get("contexts", {}).get(name, {}).get("source", "mini")
        found.append(f"`{name}` " + ("embedded in localgp" if source == "mini" else f"from `{source}`"))
    return found


def _scores(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "Not evaluated.\n"
    data = metrics.get("data", {})
    part = "whole" if data.get("whole_split") else "part of the"
    name = Column("", lambda metrics: "WER / BLEU")
    scored = [Column(task, (kind, task), ".1f") for kind in ("wer", "bleu") for task in metrics[kind]]
    lines = [
        f"{data.get('corpus')}, {part} {data.get('split')} set, {data.get('utterances')} utterances, "
        f"seed {metrics.get('seed')}, commit {str(metrics.get('commit'))[:12]}.\n",
        render([metrics], [name, *scored]).markdown() + "\n",
    ]
    if metrics.get("kept"):
        lines.append(
            "Share of frames on which a module runs: "
            + ", ".join(f"{module} {value:.1%}" for module, value in metrics["kept"].items())
            + ".\n"
        )
    gflops = metrics.get("gflops", {})
    if gflops:
        lines.append(
            f"Encoder with gates: {gflops['encoder']:.3f} GFLOPs, dense {gflops.get('dense', 0):.3f}; extracting "
            f"contexts: {_contexts(gflops)}; together {gflops['total']:.3f} ({gflops['convention']}).\n"
        )
    decode = ", ".join(f"{key} {value}" for key, value in metrics.get("decode", {}).items())
    lines.append(f"Decoding: {decode}. {' '.join(str(v) for v in metrics.get('signature', {}).values())}\n")
    return "\n".join(lines)
