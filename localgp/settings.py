"""The schema of the configuration: every option with what it may be and what it makes.

It is checked once, where a configuration comes in; what is behind that trusts its arguments. What an option means
stands beside it in ``conf/`` and is read from there (`localgp.conf_files`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from localgp.backbones import Family, families, family_of
from localgp.errors import LocalGPError, refuse
from localgp.extensions import KNOWN_CONTEXTS, is_dotted, own_contexts
from localgp.option_rules import (
    AMOUNT,
    BOOLEAN,
    COUNT,
    FOLDER_NAME,
    PATH,
    PROCESSES,
    TEXT,
    Rule,
    did_you_mean,
    integer,
    list_of,
    names,
    number,
    one_of,
    some_of,
)
from localgp.pruning import (
    DECODER_CONTEXTS,
    DECODER_MODULES,
    DECODER_POLICIES,
    ENCODER_POLICIES,
    FILLS,
    REDUCTIONS,
    decoder_problems,
    encoder_problems,
)
from localgp.window import MARGIN, SHORTEST


class Part(Enum):
    """What an option makes. All but `COMMAND` are stored with a run."""

    MODEL = "the model: another value is another run"
    DATA = "what it is trained and scored on: another value is another run"
    TRAINING = "its training; once that is over, it no longer matters"
    DECODING = "how its texts are found, unless asked otherwise"
    FREE = "where things lie and what is logged: it may change from command to command"
    COMMAND = "one command"


class Option(NamedTuple):
    """One option of the configuration.

    Attributes:
        before: What runs are that were made before there was the option; None where there always was.
    """

    rule: Rule
    part: Part
    before: Any = None


class Since(NamedTuple):
    """The rule of an option that came later, and what runs from before it are."""

    rule: Rule
    before: Any


def _options(part: Part, rules: Mapping[str, Rule | Since], section: str = "") -> dict[str, Option]:
    given = {key: rule if isinstance(rule, Since) else Since(rule, None) for key, rule in rules.items()}
    return {section + key: Option(rule, part, before) for key, (rule, before) in given.items()}


PRECISION = one_of("auto", "fp32", "tf32", "bf16")
INFERENCE_PRECISION = one_of("auto", "fp32", "tf32", "bf16", "int8")
DEVICE = one_of("auto", "cpu", "cuda")
THREADS = integer(1, 4096).or_null()
SHARES = list_of(number(0.0, 1.0))
LANGUAGES = names(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*", "de, fr")  # which there are, a corpus' reader knows

PRUNING: dict[str, Rule | Since] = {
    "encoder": Rule(
        lambda v: v is None or v in ENCODER_POLICIES or is_dotted(v),
        f"null, {', '.join(ENCODER_POLICIES)}, or a class of your own as module.Class",
    ),
    "encoder_modules": names(),
    "context": names(),
    "decoder": one_of(*DECODER_POLICIES).or_null(),
    "decoder_modules": some_of(*DECODER_MODULES),
    "decoder_context": some_of(*DECODER_CONTEXTS),
    "decoder_decides": Since(one_of("hypothesis", "utterance"), "hypothesis"),
    "source": Since(one_of("all", "kept"), "all"),
    "target": number(0.0, 0.999),
    "fill": Since(one_of(*FILLS), "zero"),
    "path": one_of("masked", "gathered"),
    "attention": Since(one_of("dot", "cosine"), "dot"),
    "decided": Since(one_of("each", "once"), "each"),
    "threshold": number(0.0, 1.0),
    "temperature": number(0.0, open_below=True),
    "gate_bias": number(-100.0, 100.0),
    "sparsity_weight": number(0.0),
    "sparsity_per": one_of("global", "module"),
    "sparsity_frames": one_of("all", "real"),
    "cost": Since(PATH, "equal"),
    "penalty": Since(one_of("fixed", "lagrange"), "fixed"),
    "penalty_lr": Since(number(0.0, open_below=True), 20.0),
    "bounds": Since(
        Rule(
            lambda v: v == [] or (SHARES.accepts(v) and len(v) == 2 and v[0] >= v[1]),
            "[] or [from, to], shares of which the second is no larger",
        ),
        [],
    ),
    "rise": Since(number(0.0, 1.0), 0.0),
    "keys_felt": Since(BOOLEAN, False),
    "budgets": Since(
        Rule(
            lambda v: v == [] or (SHARES.accepts(v) and len(v) == 2 and 0 < v[0] < v[1]),
            "[] or [least, most], shares kept of which the first is smaller",
        ),
        [],
    ),
}
WINDOW: dict[str, Rule | Since] = {
    "length": Since(
        Rule(
            lambda v: v in ("full", "utterance") or number(SHORTEST).accepts(v),
            f"full, utterance, or seconds, {SHORTEST:g} or more",
        ),
        "full",
    ),
    "margin": Since(number(0.0), MARGIN),
}
TRAINING: dict[str, Rule | Since] = {
    "name": FOLDER_NAME,
    "limit": COUNT.or_null(),
    "batch_size": COUNT,
    "group_tasks": BOOLEAN,
    "accumulate": COUNT,
    "precision": PRECISION,
    "optimizer": one_of("adam", "adamw", "adam8bit", "adamw8bit"),
    "objective": Since(one_of("task", "distil", "both"), "task"),
    "distil_weight": Since(number(0.0, open_below=True), 100.0),
    "distil_encoder": Since(list_of(integer(-1)), [-1]),
    "distil_decoder": Since(list_of(integer(-1)), [-1]),
    "transcripts": Since(one_of("reference", "teacher"), "reference"),
    "teacher_window": Since(one_of("full", "own"), "full"),
    "lr": number(0.0),
    "gate_lr": number(0.0, open_below=True),
    "weight_decay": number(0.0),
    "checkpointing": BOOLEAN,
    "scheduler": one_of("warmup", "linear", "constant"),
    "warmup_steps": AMOUNT,
    "max_steps": COUNT.or_null(),
    "max_epochs": COUNT.or_null(),
    "grad_clip": number(0.0),
    "val_every": COUNT.or_null(),
    "val_limit": COUNT.or_null(),
    "val_decode": AMOUNT,
    "average": COUNT,
    "init_silence": number(0.0),
    "workers": integer(0, 1024),
}
TRAINING_LOG = {
    "checkpoint_every": COUNT,
    "log_every": COUNT,
    "logger": one_of("tensorboard", "wandb", "none"),
    "resume": one_of("auto", "never"),
}
DECODE = {
    "precision": INFERENCE_PRECISION,
    "beam": COUNT,
    "ctc_weight": number(0.0, 1.0),
    "length_bonus": number(-1000.0, 1000.0),
    # Between them there is no length: the negative ones are counts of tokens.
    "maxlenratio": Rule(
        lambda v: number(-1e6, 1e6).accepts(v) and not -1.0 < v < 0.0,
        "0 (end detection), a positive ratio, or -n for n tokens",
    ),
    "minlenratio": number(-1e6, 1e6),
    "ranking": one_of("espnet", "transformers"),
    "batch": COUNT,
    "budget": number(0.0, 1.0, open_below=True).or_null(),
}
EVALUATE = {
    "split": one_of("train", "dev", "test"),
    "limit": COUNT.or_null(),
    "force": BOOLEAN,
    "normalizer": one_of("none", "basic"),
}
ANALYZE = {
    "utterance": Rule(lambda v: v is None or isinstance(v, str | int), "null, an utterance's id"),
    "tokens": Rule(lambda v: v is None or isinstance(v, list), "a list of tokens such as [▁il, ▁parlamento]"),
    "swap_utterances": AMOUNT,
    "format": one_of("svg", "pdf", "png"),
}
REPORT = {
    "results": PATH.or_null(),
    "readme": PATH.or_null(),
    "gpu": PATH.or_null(),
    "utterances": AMOUNT,
}
CORPUS = {
    "name": FOLDER_NAME,
    "reader": one_of("europarl_st", "manifest"),
    "languages": LANGUAGES.or_null(),
    "asr_direction": TEXT,
    "train_folders": some_of("train", "train-noisy"),
    "case": one_of("lower", "keep"),
    "max_seconds": number(0.0, open_below=True),
    "generate.seed": AMOUNT,
    "generate.train_segments": COUNT,
    "generate.dev_segments": COUNT,
    "generate.test_segments": COUNT,
}
BENCH = {
    "name": one_of("encoder", "decoder", "training", "runs"),
    "backbones": names(example="owsm_v3.1_small"),
    "measures": some_of("dense", "padded", "window", "pruned", "ragged", "gates", "int8", "profile", "peers"),
    "dtypes": some_of("fp32", "bf16", "int8"),
    "dtypes@encoder": some_of("fp32", "bf16"),  # 8 bits are one of its measures
    "peers": some_of("transformers", "ctranslate2"),
    "patterns": some_of("hypothesis", "utterance"),
    "batches": list_of(COUNT),
    "espnet_batches": list_of(COUNT),
    "seconds": number(0.0, open_below=True),
    "speech_seconds": number(0.0, open_below=True),
    "window_seconds": number(0.0, open_below=True),
    "recording_seconds": number(0.0, open_below=True),
    "ragged": list_of(number(0.0, open_below=True)),
    "skipped": SHARES,
    "utterances": list_of(COUNT),
    "utterances@runs": COUNT,  # of one bench, where another has the same name for something else
    "batch": COUNT,
    "beam": COUNT,
    "steps": COUNT,
    "ctc_weights": SHARES,
    "repeats": COUNT,
    "espnet_repeats": COUNT,
    "decoder_repeats": COUNT,
    "confs": names(example="row01, row05").or_null(),
    "run": PATH.or_null(),
    "run_utterances": COUNT,
    "run_batch": COUNT,
    "save_as": FOLDER_NAME.or_null(),
}
CONTEXTS = {"spk.source": PATH, "spk.shuffle": BOOLEAN, "event.source": PATH, "lang2vec.features": names()}

SCHEMA: dict[str, Option] = {
    **_options(Part.MODEL, {"name": FOLDER_NAME, "seed": AMOUNT}),
    **_options(Part.MODEL, WINDOW, "window."),
    **_options(Part.MODEL, PRUNING, "pruning."),
    **_options(Part.MODEL, CONTEXTS, "contexts."),
    **_options(
        Part.MODEL,
        {
            "name": FOLDER_NAME,
            "path": PATH,
            "checkpoint": PATH.or_null(),
            "weights": one_of("pretrained", "random"),
        },
        "backbone.",
    ),
    **_options(Part.DATA, CORPUS, "corpus."),
    **_options(Part.TRAINING, TRAINING, "training."),
    **_options(
        Part.TRAINING,
        {
            "devices": PROCESSES,
            "num_nodes": PROCESSES,
            "strategy": one_of("auto", "ddp", "fsdp"),
            "max_steps": COUNT.or_null(),
        },
        "trainer.",
    ),
    **_options(Part.DECODING, DECODE, "decode."),
    **_options(Part.FREE, TRAINING_LOG, "training."),
    **_options(
        Part.FREE,
        {"root": PATH, "manifest": PATH, "workers": integer(1, 1024), "on_error": one_of("raise", "skip")},
        "corpus.",
    ),
    # Of a run that evaluates the weights of another, where they are.
    **_options(Part.FREE, {"data_dir": PATH, "evaluate.checkpoint": PATH.or_null()}),
    **_options(Part.COMMAND, {"exp_dir": PATH, "device": DEVICE, "threads": THREADS}),
    **_options(Part.COMMAND, EVALUATE, "evaluate."),
    **_options(Part.COMMAND, ANALYZE, "analyze."),
    **_options(Part.COMMAND, REPORT, "report."),
    **_options(Part.COMMAND, BENCH, "bench."),
}
SPEECHPRUNE: dict[str, Option] = _options(
    Part.COMMAND,
    {
        "report": one_of("accuracy", "flops", "prefill", "planted"),
        "model": PATH,
        "method": one_of("both", "first", "second", "rap", "rac").or_list(),
        "rate": number(0.0, 0.999999).or_list().or_null(),
        "seed": AMOUNT,
        "device": DEVICE,
        "precision": PRECISION,
        "threads": THREADS,
        "data_dir": PATH,
        "spiral": PATH.or_null(),
        "speak": BOOLEAN,
        "limit": COUNT.or_null(),
        "shuffle": BOOLEAN,
        "answer": one_of("likelihood", "generate"),
        "query": one_of("question", "prompt"),
        "batch": COUNT,
        "chat": BOOLEAN,
        "pruner.budget": COUNT.or_null(),
        "pruner.frame": COUNT,
        "pruner.remainder": one_of("fill", "drop"),
        "pruner.scale": one_of("literal", "magnitude"),
        "positions": one_of("compact", "original"),
        "prefill.seconds": number(0.0, open_below=True),
        "prefill.rounds": COUNT,
        "planted.steps": COUNT,
        "planted.trials": COUNT,
    },
)


def _parts(kind: str, *, _root_: DictConfig) -> ListConfig:
    """Behind ``${parts:frames}`` and ``${parts:all}``: what can be gated of the layers of this configuration's
    backbone, frame by frame or also per utterance."""
    family, backbone = _family(_root_), _root_.get("backbone") or {}
    parts = getattr(family, "parts", None)  # of families whose models differ
    try:
        known = parts(str(backbone.get("path")), str(backbone.get("name"))) if parts else family.PARTS
    except (LocalGPError, OSError, UnicodeDecodeError):  # of which whoever opens the model says more
        known = family.PARTS
    return ListConfig([part for part in known if kind == "all" or part not in family.WHOLE])


def _ranking(*, _root_: DictConfig) -> str:
    """Behind ``${ranking:}``."""
    return _family(_root_).RANKING


def _family(cfg: DictConfig) -> Family:
    given: Any = OmegaConf.select(cfg, "backbone")
    backbone = OmegaConf.to_container(given) if isinstance(given, DictConfig) else {}
    assert isinstance(backbone, dict)
    try:
        return family_of(str(backbone.get("path")), str(backbone.get("name")))
    except LocalGPError:  # of which whoever opens it says more
        return families()["owsm"]


OmegaConf.register_new_resolver("parts", _parts, replace=True)
OmegaConf.register_new_resolver("ranking", _ranking, replace=True)
SCHEMAS = {"config": SCHEMA, "speechprune": SPEECHPRUNE}  # by the configuration's name


def check(cfg: DictConfig, schema: Mapping[str, Option] = SCHEMA) -> None:
    """Refuses a configuration with options or values that cannot be.

    Raises:
        ConfigError: Options that there are not, or values that cannot be; all of them are named.
    """
    refuse(problems_of(cfg, schema))


def problems_of(cfg: DictConfig, schema: Mapping[str, Option] = SCHEMA) -> list[str]:
    """What is wrong with a configuration, a line each."""
    problems = [problem for key in keys_of(cfg) if (problem := _key_problem(key, cfg, schema))]
    for key in schema:
        try:
            present, value = _look_up(cfg, key)
        except OmegaConfBaseException as error:  # a value that is missing, or refers to one that is
            problems.append(f"{key}: {str(error).splitlines()[0]}")
            continue
        rule = rule_of(key, cfg, schema)
        if value == _MISSING:
            problems.append(f"{key} has no value; give {key}=...; valid: {rule.valid}")
        elif present and not rule.accepts(value):
            problems.append(f"{key} is {value!r}; valid: {rule.valid}")
    if schema is SCHEMA:
        problems += _problems_together(cfg, problems)
    return problems


def _key_problem(key: str, cfg: DictConfig, schema: Mapping[str, Option]) -> str | None:
    if is_option(key, schema):
        return None
    within = [name for name in schema if name.startswith(f"{key}.")]
    if not within:
        return unknown(key, schema)
    value = OmegaConf.select(cfg, key)
    if "." in key and value is None:
        return None  # an optional section, such as corpus.generate
    return f"{key} is {value!r}, and a section: give its options, such as {within[0]}=..."


def _problems_together(cfg: DictConfig, found: list[str]) -> Iterator[str]:
    """What cannot be of values that can be, each by itself."""
    training, trainer = cfg.get("training"), cfg.get("trainer")
    if OmegaConf.is_dict(training) and OmegaConf.is_dict(trainer):
        lengths = (training.get("max_steps"), training.get("max_epochs"), trainer.get("max_steps"))
        if all(length is None for length in lengths):
            yield "training.max_steps and training.max_epochs are null; set one of them"
    weight = OmegaConf.select(cfg, "decode.ctc_weight")
    if isinstance(weight, int | float) and weight > 0 and not _family(cfg).CTC:
        yield f"decode.ctc_weight is {weight}, but {cfg.backbone.name} has no CTC; set it to 0"
    if any("pruning" in problem for problem in found):
        return
    yield from encoder_problems(cfg.pruning, cfg.get("contexts"))
    yield from decoder_problems(cfg.pruning)
    inner = [k for k in OmegaConf.select(cfg, "training.distil_encoder") or [] if k != -1]
    if cfg.pruning.encoder in REDUCTIONS and inner and cfg.training.objective != "task":
        yield (
            f"training.distil_encoder has {', '.join(map(str, inner))}, and pruning.encoder={cfg.pruning.encoder} has "
            "fewer frames there; valid with it: [-1] or []"
        )
    seen = {*cfg.pruning.context, *cfg.pruning.decoder_context}
    for name in own_contexts(cfg.get("contexts")):
        if name not in seen:
            near = did_you_mean(name, KNOWN_CONTEXTS)
            yield (
                f"contexts.{name} is seen by no gates{near}; an extractor of your own is used where pruning.context "
                f"has its name: pruning.context=[front,{name}]"
            )


def value_problem(key: str, value: Any) -> str | None:
    """What is wrong with the value of one option, for callers from Python; None if nothing is.

    Examples:
        >>> value_problem("device", "gpu")
        "device is 'gpu'; valid: auto, cpu, cuda"
    """
    rule = SCHEMA[key].rule
    return None if rule.accepts(value) else f"{key.rpartition('.')[2]} is {value!r}; valid: {rule.valid}"


def require(values: Mapping[str, Any]) -> None:
    """Checks values of options, such as ``{"decode.beam": 5}``, that come from Python.

    Raises:
        ConfigError: Some cannot be; all of them are named.
    """
    refuse(problem for key, value in values.items() if (problem := value_problem(key, value)))


def is_option(key: str, schema: Mapping[str, Option] = SCHEMA) -> bool:
    """Whether a key may be there: one of the schema, or an option of a context extractor of the user's own."""
    section, _, rest = key.partition(".")
    own = schema is SCHEMA and section == "contexts" and rest.partition(".")[0] not in ("", *KNOWN_CONTEXTS)
    return own or key in schema


def unknown(key: str, schema: Mapping[str, Option] = SCHEMA, others: tuple[str, ...] = ()) -> str:
    """The message for a key that is not there; ``others``: names besides the options that may be meant."""
    known = [*others, *(name for name in schema if "@" not in name)]
    return f"there is no option {key}{did_you_mean(key, known) or '; --help lists those that there are'}"


def rule_of(key: str, cfg: DictConfig, schema: Mapping[str, Option] = SCHEMA) -> Rule:
    """The rule of a key, of the chosen bench where that has one of its own."""
    bench = cfg.get("bench")
    name = bench.get("name") if OmegaConf.is_dict(bench) else None
    return schema.get(f"{key}@{name}", schema[key]).rule


def keys_of(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values; lists are values."""
    for key in map(str, cfg):
        value = cfg._get_node(key)
        if OmegaConf.is_dict(value) and not value._is_none():  # type: ignore[union-attr]
            yield from keys_of(value, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{key}"


_MISSING = "???"  # OmegaConf's mark of a value that has to be given


def _look_up(cfg: DictConfig, key: str) -> tuple[bool, Any]:
    """Whether a key is there, and its value as plain Python."""
    parent, _, leaf = key.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    if not OmegaConf.is_dict(section):
        return False, None
    if OmegaConf.is_missing(section, leaf):
        return True, _MISSING
    if leaf not in section:
        return False, None
    value = section[leaf]
    return True, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
