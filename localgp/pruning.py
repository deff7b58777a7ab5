"""What ``pruning`` of a configuration may be: names, and which of them go together; `localgp.settings` asks.

Nothing here imports PyTorch, so that every command can refuse a configuration before it does anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from localgp.backbones import families
from localgp.errors import ConfigError
from localgp.extensions import is_dotted, own_contexts

ENCODER_POLICIES = (
    "local",
    "global",
    "random",
    "vad",
    "similar",
    "speechprune",
    "topk",
    "layerdrop",
    "eas",
    "atome",
    "open",
)
REDUCTIONS = ("eas", "atome")  # take frames out for good, from some layer on
FILLED = ("local", "random", "similar", "open")  # gates that a pair's second frame alone can skip
FILLS = ("zero", "pair")
DECODER_POLICIES = ("local", "global", "open")
DECODER_MODULES = ("self_attention", "source_attention", "ffn")  # of every family
ENCODER_CONTEXTS = ("front", "spk", "event")
PER_UTTERANCE = ("spk",)  # one vector, the same for every frame
DECODER_CONTEXTS = ("front", "task", "lang2vec")


def encoder_modules(*, whole: bool = False) -> list[str]:
    """Parts of an encoder's layer that can be gated, of all families; with ``whole`` those that are gated per utterance
    or not at all. Which a backbone has is known when it is there."""
    names = [name for family in families().values() for name in (family.WHOLE if whole else family.PARTS)]
    return list(dict.fromkeys(names))


def check_gated(gated: Iterable[str], valid: Sequence[str]) -> None:
    """Refuses gates that would do nothing.

    Raises:
        ConfigError: A gate of a module that is not there, which would do nothing.
    """
    unknown = sorted(set(gated) - set(valid))
    if unknown:
        raise ConfigError(f"the gate policy gates {', '.join(unknown)}; valid: {', '.join(valid)}")


def encoder_problems(pruning: Any, contexts: Mapping[str, Any] | None = None) -> Iterator[str]:
    """What cannot be in ``cfg.pruning``, of the encoder's gates.

    Args:
        contexts: ``cfg.contexts``, where the user's own are.
    """
    policy = pruning.get("encoder")
    modules, seen = list(pruning.get("encoder_modules", ())), list(pruning.get("context", ()))
    yield from _not_among("encoder_modules", modules, encoder_modules())
    yield from _not_among("context", seen, (*ENCODER_CONTEXTS, *own_contexts(contexts)))
    if pruning.get("fill", "zero") == "pair":
        if policy not in FILLED and not is_dotted(policy or ""):
            yield (
                f"pruning.fill is 'pair', and pruning.encoder={policy or 'null'} does not choose among the second "
                f"frames of pairs; valid with it: {', '.join(FILLED)}, or a class of your own"
            )
        if pruning.get("target", 0) > 0.5:
            yield (
                f"pruning.target is {pruning['target']:g}, and with pruning.fill=pair the first of two frames always "
                "runs; valid: 0 to 0.5"
            )
        if pruning.get("budgets") and pruning["budgets"][0] < 0.5:
            yield (
                f"pruning.budgets is {list(pruning['budgets'])}, and with pruning.fill=pair the first of two frames "
                "always runs; valid: 0.5 or more"
            )
    if policy is None:
        if pruning.get("source", "all") == "kept":
            yield "pruning.source is 'kept', and the encoder has no gates that keep; set pruning.encoder, or source=all"
        return
    if not modules:
        yield f"pruning.encoder_modules is []; valid: one or more of {', '.join(encoder_modules())}"
    whole = [name for name in modules if name in encoder_modules(whole=True)]
    if whole and policy not in ("global", "open", "layerdrop") and not is_dotted(policy):
        yield (
            f"pruning.encoder_modules has {', '.join(whole)}, whose convolution needs neighbouring frames: it cannot "
            "be gated frame by frame (paper, section 3.2); leave it out"
        )
    if policy == "global" and seen != ["front"]:
        yield f"pruning.context is {seen}; GlobalGP pools [front] and nothing else"
    if pruning.get("source", "all") == "kept" and policy in (*REDUCTIONS, "global", "layerdrop"):
        yield (
            f"pruning.source is 'kept', and pruning.encoder={policy} decides of no frame by itself; valid with it: "
            "local, random, vad, similar, speechprune, topk, open, or a class of your own"
        )
    if pruning.get("budgets") and policy not in ("local", "topk", *REDUCTIONS):
        yield (
            f"pruning.budgets is {list(pruning.budgets)}, pruning.encoder {policy!r}; valid with budgets: local, topk, "
            f"{', '.join(REDUCTIONS)}"
        )


def decoder_problems(pruning: Any) -> Iterator[str]:
    """What cannot be in ``cfg.pruning``, of the decoder's gates."""
    policy = pruning.get("decoder")
    modules, contexts = list(pruning.get("decoder_modules", ())), list(pruning.get("decoder_context", ()))
    if policy is None:
        return
    if not modules:
        yield f"pruning.decoder_modules is []; valid: one or more of {', '.join(DECODER_MODULES)}"
    if policy == "global" and not contexts:
        yield "pruning.decoder_context is []; GlobalGP decides from it alone: give front, task or lang2vec"


def _not_among(key: str, given: Sequence[Any], valid: Sequence[str]) -> Iterator[str]:
    unknown = [name for name in given if name not in valid]
    if unknown:
        yield f"pruning.{key} has {', '.join(map(repr, unknown))}; valid: {', '.join(valid)}"
