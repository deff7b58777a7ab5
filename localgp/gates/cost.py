"""What deciding costs, in the paper's convention.

fvcore counts matrix products and not our element-wise form of some, so LocalGP's is by formula alone.
"""

from __future__ import annotations

from typing import Any

from localgp.backbones.cost import norm_cost
from localgp.gates.base import GatePolicy
from localgp.gates.global_ import GlobalGates
from localgp.gates.local import LocalGates
from localgp.pruning import PER_UTTERANCE


def gates_cost(policy: GatePolicy | None, rows: int, *, decoder: bool = False) -> float:
    """LocalGP at every row (frame or token), GlobalGP once per utterance or sequence, the controls nothing; FLOPs.

    Args:
        decoder: Whose contexts are one vector each; the biases of their alignment are counted, as they always were.
    """
    if isinstance(policy, LocalGates):
        return _local(policy, rows, decoder)
    if isinstance(policy, GlobalGates):  # averaging over time is not counted by fvcore
        parts: Any = policy.predictor
        norm, hidden, out = parts[0], parts[1], parts[3]
        return float(norm_cost(norm.weight.numel()) + hidden.weight.numel() + out.weight.numel())
    counted = getattr(policy, "flops", None)  # of a policy of the user's own
    return float(counted(rows)) if callable(counted) else 0.0


def _local(policy: LocalGates, rows: int, decoder: bool) -> float:
    """Products with keys and values, heads, the values' projections (one per layer but the last), and for each context
    its alignment to D and its value's projection, once where it is one vector."""
    contexts, layers = len(policy.needs), len(policy.layers)
    heads: Any = policy.layers[0].heads
    size = policy.context_value.in_features
    each = sum(2 * (contexts + layer) * size for layer in range(layers))
    each += layers * len(heads) * 2 * size + (layers - 1) * size**2
    total = rows * each
    for name, align in policy.align.items():
        times = 1 if decoder or name in PER_UTTERANCE else rows
        products = sum(p.numel() for p in align.parameters() if decoder or p.ndim == 2)
        total += times * (products + size**2)
    return float(total)
