"""How much is to be skipped, and how a training is held to it.

Shape legend: B utterances or sequences, T frames or tokens, G gates (of all layers and parts).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localgp.backbones.base import Backbone, Side
from localgp.backbones.cost import DecoderCost, EncoderCost
from localgp.errors import ConfigError
from localgp.gates.gumbel import Gate
from localgp.gates.loss import kept_ratios

_LOOSENED = 1 / 3  # of a training, after which bounds are as loose as they get
_TOKENS = 50  # of the sequence for which a decoder's parts are weighed


class SparsityTarget(nn.Module):
    """The term that pulls the share that is kept toward ``1 - target``, of one side's gates.

    Args:
        target: Share to skip, in [0, 1].
        per: ``global``: one ratio over all layers and parts, which may then differ from each other; ``module``: each
            kind of part has the target.
        costs: What a part counts in the one ratio; None: all alike.
        weight: Of squared plus absolute distance. The square alone has a vanishing pull near the target, the absolute
            value alone was found not to reach it (GlobalGP).
        lagrange: In place of the weight, multipliers of distance and squared distance that grow by gradient ascent
            until the target is met (CoFi).
        step: Of that ascent.
        bounds: How far each gate of each layer is held near the target, at the beginning and from a third of the
            training on: 1 on it, 0 anywhere (dynconv). Keeps one part of one layer from closing for good before the
            others have moved. None: nowhere.
        rise: The share of the training over which the target rises from 0.
    """

    multipliers: Tensor

    def __init__(
        self,
        target: float,
        *,
        per: str = "global",
        costs: Mapping[str, float] | None = None,
        weight: float = 100.0,
        lagrange: bool = False,
        step: float = 20.0,
        bounds: Sequence[float] | None = None,
        rise: float = 0.0,
    ) -> None:
        super().__init__()
        self.target, self.per, self.costs, self.weight = target, per, costs, weight
        self.lagrange, self.step, self.rise = lagrange, step, rise
        self.bounds = tuple(bounds) if bounds else None
        if lagrange:
            self.register_buffer("multipliers", torch.zeros(2))

    def at(self, progress: float) -> float:
        """The target at a moment of the training, from 0 to 1."""
        return self.target * min(1.0, progress / self.rise) if self.rise else self.target

    def forward(
        self,
        layers: Sequence[Mapping[str, Gate]],
        frames_BT: Tensor,
        progress: float = 1.0,
        total: Callable[[Tensor], Tensor] | None = None,
        kept: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The term with its weight, and the distance that is reported.

        Args:
            layers: Per layer, part to gate.
            frames_BT: 1 for the frames that count.
            progress: Of the training, from 0 to 1.
            total: As in `localgp.gates.loss.kept_ratios`: the term is not linear, so its mean over processes would be
                another one.
            kept: Share to keep in this step, in place of the target's.
        """
        names = sorted({name for layer in layers for name in layer})
        of_names = [[layer[name].decision for layer in layers if name in layer] for name in names]
        every_G = kept_ratios([gate for gates in of_names for gate in gates], frames_BT, total)
        ratios = torch.stack([part.mean() for part in every_G.split([len(gates) for gates in of_names])])
        kept = 1 - self.at(progress) if kept is None else kept
        if self.per == "module":
            distance = ratios - kept
        elif self.costs is None:
            distance = ratios.mean(dim=0, keepdim=True) - kept
        else:
            counts = [self.costs[name] * len(gates) for name, gates in zip(names, of_names, strict=True)]
            weights = ratios.new_tensor(counts)
            distance = ((ratios * weights).sum() / weights.sum()).view(1) - kept
        reported = (distance.square() + distance.abs()).mean()
        term = self._held(distance) if self.lagrange else self.weight * reported
        if self.bounds is not None:
            term = term + self.weight * self._outside(every_G, kept, progress)
        return term, reported

    def _held(self, distance: Tensor) -> Tensor:
        away = torch.stack([distance.mean(), distance.square().mean()])
        if self.training:
            self.multipliers += self.step * away.detach()
        return (self.multipliers.clone() * away).sum()

    def _outside(self, every_G: Tensor, kept: float, progress: float) -> Tensor:
        assert self.bounds is not None
        tight, loose = self.bounds
        near = tight + (loose - tight) * min(1.0, progress / _LOOSENED)
        below, above = (near * kept - every_G).relu(), (every_G - 1 + near * (1 - kept)).relu()
        return ((below + above).square() + below + above).mean()


def sparsity_target(pruning: Any, backbone: Backbone, side: Side) -> SparsityTarget:
    """What ``cfg.pruning`` asks of one side's gates.

    Raises:
        ConfigError: There is no table of seconds, or none of these parts.
    """
    modules = pruning.encoder_modules if side == "encoder" else pruning.decoder_modules
    return SparsityTarget(
        pruning.target,
        per=pruning.sparsity_per,
        costs=part_costs(str(pruning.cost), backbone, side, list(modules)),
        weight=pruning.sparsity_weight,
        lagrange=pruning.penalty == "lagrange",
        step=pruning.penalty_lr,
        bounds=list(pruning.bounds) or None,
        rise=pruning.rise,
    )


def part_costs(cost: str, backbone: Backbone, side: Side, modules: Sequence[str]) -> dict[str, float] | None:
    """What each kind of part counts.

    Args:
        cost: ``equal``, ``flops``, or a file that ``bench=encoder`` or ``bench=decoder`` wrote with
            ``bench.save_as``, whose seconds by part are taken.
    """
    if cost == "equal":
        return None
    if cost != "flops":
        return _seconds(Path(cost), modules)
    frames = backbone.timeline.frames(backbone.timeline.feature_frames(backbone.samples))
    if side == "encoder":
        encoder = EncoderCost(backbone, backbone.timeline.feature_frames(backbone.samples))
        return {name: encoder.part(name) for name in modules}
    decoder = DecoderCost(backbone, frames)
    return {name: decoder.part(name, _TOKENS, _TOKENS * (_TOKENS + 1) / 2) for name in modules}


def _seconds(path: Path, modules: Sequence[str]) -> dict[str, float]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        found = {row["part"]: float(row["seconds"]) for row in rows if row.get("part") in modules}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"pruning.cost={path} is no file that bench wrote ({type(error).__name__}: {error}); valid: equal, flops, "
            "or one of `python -m localgp.bench bench=encoder bench.measures=[profile] bench.save_as=NAME`"
        ) from error
    missing = [name for name in modules if not found.get(name, 0.0) > 0]
    if missing:
        raise ConfigError(
            f"pruning.cost={path} has no seconds of {', '.join(missing)}; measure them with bench"
        )
    return found
