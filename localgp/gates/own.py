"""A gate policy of the user's own, named by ``pruning.encoder=module.Class``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from localgp.errors import ConfigError
from localgp.extensions import make
from localgp.gates.base import GatePolicy

_KEY = "pruning.encoder"
_COMPUTED = ("front", "energy")  # contexts that the encoder makes itself


def build_own(path: str, offered: Mapping[str, Any]) -> GatePolicy:
    """The policy that a dotted path names.

    Args:
        offered: Keyword arguments for its constructor, which gets those that it takes.

    Raises:
        ConfigError: There is no such class, or it is no policy.
    """
    policy = make(path, _KEY, offered)
    wrong = []
    if not isinstance(policy, nn.Module):
        wrong.append("it is no torch.nn.Module")
    wrong += [
        f"it has no {name}(...)" for name in ("begin", "gate") if not callable(getattr(policy, name, None))
    ]
    gated = getattr(policy, "modules_gated", None)
    parts = offered["backbone"].part_names("encoder")
    if not gated or not set(gated) <= set(parts):
        wrong.append(f"modules_gated is {gated!r}, valid: some of {', '.join(parts)}")
    contexts = [*offered["context_sizes"], *_COMPUTED]
    needs = getattr(policy, "needs", None)
    if needs is None or not set(needs) <= set(contexts):
        wrong.append(
            f"needs is {needs!r}, valid: some of {', '.join(dict.fromkeys(contexts))} (pruning.context gives others)"
        )
    if wrong:
        raise ConfigError(f"{_KEY}={path} is no gate policy: {'; '.join(wrong)}")
    return cast(GatePolicy, policy)  # by what it has, not by what it is derived from
