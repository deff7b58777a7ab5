"""Every value of a configuration against what it may be, all problems in one message.

A key that is not listed here is free, or is checked where it is used, with what only that place knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from localgp.errors import refuse
from localgp.pruning.options import decoder_problems, encoder_problems, padding_problems


@dataclass(frozen=True)
class Rule:
    """A test of a value, and in words what passes it."""

    accepts: Callable[[Any], bool]
    valid: str

    def or_null(self) -> Rule:
        """The same, or null."""
        return Rule(lambda value: value is None or self.accepts(value), f"null, {self.valid}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def integer(least: int, most: int = 2**31) -> Rule:
    """A whole number; neither a boolean nor 3.0 is one."""
    return Rule(lambda v: _is_int(v) and least <= v <= most, f"a whole number, {least} or more")


def number(least: float, most: float = math.inf, *, open_below: bool = False) -> Rule:
    """A finite number; ``open_below``: not ``least`` itself."""
    words = f"a number {'above' if open_below else 'from'} {least:g}"
    words += f" to {most:g}" if most < math.inf else ""
    return Rule(
        lambda v: _is_number(v) and (least < v if open_below else least <= v) and v <= most,
        words + (" or more" if most == math.inf and not open_below else ""),
    )


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(lambda v: isinstance(v, str) and v in choices, ", ".join(choices))


def names(pattern: str = r".+") -> Rule:
    """A list of texts that match a regular expression, each from end to end; it may be empty."""
    return Rule(
        lambda v: isinstance(v, list) and all(isinstance(x, str) and re.fullmatch(pattern, x) for x in v),
        "a list of names such as [a, b]",
    )


BOOLEAN = Rule(lambda v: isinstance(v, bool), "true, false")
PATH = Rule(lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v, "a path")
# What names a folder must not lead out of where the folder belongs.
FOLDER_NAME = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", v) is not None,
    "letters, digits, '.', '_', '+' and '-'",
)
_MISSING = "???"  # OmegaConf's mark of a value that has to be given
COUNT, AMOUNT = integer(1), integer(0)
TEXT = Rule(lambda v: isinstance(v, str), "a text")
PROCESSES = Rule(lambda v: v == "auto" or (_is_int(v) and v >= 1), "auto, or 1 and more")
PRECISION = one_of("auto", "fp32", "bf16")

RULES: dict[str, Rule] = {
    "name": FOLDER_NAME,
    "seed": integer(0),
    "device": one_of("auto", "cpu", "cuda"),
    "threads": integer(1, 4096).or_null(),
    "data_dir": PATH,
    "exp_dir": PATH,
    "trainer.devices": PROCESSES,
    "trainer.num_nodes": PROCESSES,
    "trainer.strategy": one_of("auto", "ddp", "fsdp"),
    "trainer.max_steps": COUNT.or_null(),
    "pruning.encoder": TEXT.or_null(),
    "pruning.decoder": TEXT.or_null(),
    "pruning.encoder_modules": names(),
    "pruning.decoder_modules": names(),
    "pruning.context": names(),
    "pruning.decoder_context": names(),
    "pruning.target": number(0.0, 0.999),
    "pruning.path": one_of("masked", "gathered"),
    "pruning.attention": one_of("dot", "cosine"),
    "pruning.threshold": number(0.0, 1.0),
    "pruning.temperature": number(0.0, open_below=True),
    "pruning.gate_bias": number(-100.0, 100.0),
    "pruning.sparsity_weight": number(0.0),
    "pruning.sparsity_per": one_of("global", "module"),
    "pruning.sparsity_frames": one_of("all", "real"),
    "padding": TEXT,
    "contexts.spk.source": PATH,
    "contexts.spk.shuffle": BOOLEAN,
    "contexts.event.source": PATH,
    "contexts.lang2vec.features": names(),
    "decode.precision": PRECISION,
    "decode.beam": COUNT,
    "decode.ctc_weight": number(0.0, 1.0),
    "decode.length_bonus": number(-1000.0, 1000.0),
    "decode.maxlenratio": number(-1e6, 1e6),
    "decode.minlenratio": number(-1e6, 1e6),
    "decode.batch": COUNT,
    "evaluate.split": one_of("train", "dev", "test"),
    "evaluate.limit": COUNT.or_null(),
    "evaluate.checkpoint": PATH.or_null(),
    "evaluate.force": BOOLEAN,
    "evaluate.normalizer": one_of("none", "basic"),
    "training.limit": COUNT.or_null(),
    "training.batch_size": COUNT,
    "training.group_tasks": BOOLEAN,
    "training.accumulate": COUNT,
    "training.precision": PRECISION,
    "training.optimizer": one_of("adam", "adamw", "adam8bit", "adamw8bit"),
    "training.lr": number(0.0, open_below=True),
    "training.gate_lr": number(0.0, open_below=True),
    "training.weight_decay": number(0.0),
    "training.checkpointing": BOOLEAN,
    "training.scheduler": one_of("warmup", "linear", "constant"),
    "training.warmup_steps": AMOUNT,
    "training.max_steps": COUNT.or_null(),
    "training.max_epochs": COUNT.or_null(),
    "training.grad_clip": number(0.0),
    "training.val_every": COUNT.or_null(),
    "training.val_limit": COUNT.or_null(),
    "training.val_decode": AMOUNT,
    "training.average": COUNT,
    "training.checkpoint_every": COUNT,
    "training.log_every": COUNT,
    "training.init_silence": number(0.0),
    "training.workers": integer(0, 1024),
    "training.logger": one_of("tensorboard", "wandb", "none"),
    "training.resume": one_of("auto", "never"),
    "corpus.name": FOLDER_NAME,
    "corpus.reader": one_of("europarl_st", "manifest"),
    "corpus.root": PATH,
    "corpus.manifest": PATH,
    "corpus.languages": names(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*").or_null(),
    "corpus.case": one_of("lower", "keep"),
    "corpus.max_seconds": number(0.0, open_below=True),
    "corpus.on_error": one_of("raise", "skip"),
    "corpus.workers": integer(1, 1024),
    "corpus.generate.seed": integer(0),
    "corpus.generate.train_segments": COUNT,
    "corpus.generate.dev_segments": COUNT,
    "corpus.generate.test_segments": COUNT,
    "backbone.name": FOLDER_NAME,
    "backbone.path": PATH,
    "backbone.weights": one_of("pretrained", "random"),
}


def check_config(cfg: DictConfig) -> None:
    """Raises:
    ConfigError: One or more values that cannot be; all of them are named.
    """
    problems = []
    for key, rule in RULES.items():
        try:
            present, value = _look_up(cfg, key)
        except OmegaConfBaseException as error:  # a value that is missing, or refers to one that is
            problems.append(f"{key}: {str(error).splitlines()[0]}")
            continue
        if value == _MISSING:
            problems.append(f"{key} has no value; give {key}=...; valid: {rule.valid}")
        elif present and not rule.accepts(value):
            problems.append(f"{key} is {value!r}; valid: {rule.valid}")
    training = cfg.get("training")
    trainer = cfg.get("trainer")
    if OmegaConf.is_dict(training) and OmegaConf.is_dict(trainer):
        lengths = (training.get("max_steps"), training.get("max_epochs"), trainer.get("max_steps"))
        if all(length is None for length in lengths):
            problems.append("training.max_steps and training.max_epochs are null; set one of them")
    if not any(problem.startswith(("pruning", "padding")) for problem in problems):
        problems += encoder_problems(cfg.pruning, cfg.get("contexts"))
        problems += [*decoder_problems(cfg.pruning), *padding_problems(cfg)]
    refuse(dict.fromkeys(problems))  # encoder's and decoder's gates share a target, and what is wrong with it


def _look_up(cfg: DictConfig, key: str) -> tuple[bool, Any]:
    """Whether a key is there, and its value as plain Python."""
    parent, _, leaf = key.rpartition(".")
    section = OmegaConf.select(cfg, parent) if parent else cfg
    if section is None and parent.count("."):
        return False, None  # an optional section, such as corpus.generate
    if not OmegaConf.is_dict(section):
        return True, section  # something else is where the section has to be
    if OmegaConf.is_missing(section, leaf):
        return True, _MISSING
    if leaf not in section:
        return False, None
    value = section[leaf]
    return True, OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
