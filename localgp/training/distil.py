"""A model learns from itself as it was: its states against those of its own dense, frozen, usually padded self.

Shape legend: B utterances, N samples, T encoder frames, Q sequences, L tokens, D model size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.corpora.rows import list_tasks
from localgp.decoder.train import decode_tokens
from localgp.encoder.run import EncoderOutput, States
from localgp.errors import ConfigError
from localgp.evaluation.decode import decode_rows
from localgp.model import GatedS2T, Losses
from localgp.search.options import DecodeOptions
from localgp.window import Window

_CACHED_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Layers:
    """Whose states are compared: 1 after the first layer, -1 after all of them and the last norm.

    Raises:
        ConfigError: Layers that there are not, or none at all.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    def check(self, backbone: Backbone) -> None:
        counts = {"encoder": backbone.shape.encoder_layers, "decoder": backbone.shape.decoder_layers}
        for side, count in counts.items():
            wrong = [k for k in getattr(self, side) if k != -1 and not 1 <= k <= count]
            if wrong:
                raise ConfigError(
                    f"training.distil_{side} has {', '.join(map(str, wrong))}; valid: 1 to {count}, or -1 for "
                    "its output"
                )
        if not self.encoder and not self.decoder:
            raise ConfigError(
                "training.distil_encoder and training.distil_decoder are []; give layers of one of them"
            )


class Teacher:
    """The model as it is now, without gates.

    Where its weights are not trained, they are held once.

    Args:
        backbone: Which is going to be trained.
        layers: Whose states are wanted.
        window: What it hears: the full one, or the student's own where the weights were trained for that already.
        repeats: Batches show the same input again, so that states are kept for later; up to 2 GiB of them.
    """

    def __init__(
        self, backbone: Backbone, layers: Layers, window: Window | None = None, *, repeats: bool = False
    ) -> None:
        layers.check(backbone)
        self.layers, self._repeats = layers, repeats
        self.backbone = backbone
        if any(p.requires_grad for p in backbone.net.parameters()):
            # Its vocabulary has no weights, and may be no thing to be copied; what a forward pass left behind neither.
            left = [v for part in backbone.net.modules() for v in vars(part).values() if _is_result(v)]
            kept: dict[int, Any] = {id(value): None for value in left}
            self.backbone = copy.deepcopy(backbone, kept | {id(backbone.tokenizer): backbone.tokenizer})
            self.backbone.net.requires_grad_(False).eval()
        self._model = GatedS2T(self.backbone, window=window or Window())
        self._kept: dict[Any, tuple[dict[int, Tensor], dict[int, list[Tensor]]]] = {}
        self._bytes = 0

    @torch.no_grad()
    def states(self, batch: dict[str, Any], own_BT: Tensor, own_QL: Tensor) -> tuple[States, States]:
        """Of the encoder, (B, T, D), and of the decoder, (Q, L, D).

        Args:
            batch: See `localgp.training.data.Collate`.
            own_BT, own_QL: True for the frames and tokens that the student began with.
        """
        frames, tokens = own_BT.sum(1).tolist(), own_QL.sum(1).tolist()
        keys = list(zip(batch["utt_ids"], _tasks_of(batch), frames, strict=True))
        if all(key in self._kept for key in keys):
            found = [self._kept[key] for key in keys]
            encoder = {k: _stacked([one[k] for one, _ in found], own_BT) for k in self.layers.encoder}
            decoder = {
                k: _stacked([row for _, one in found for row in one[k]], own_QL) for k in self.layers.decoder
            }
            return encoder, decoder
        encoder, decoder = self._computed(batch)
        encoder = {k: x_BTD[:, : own_BT.shape[1]] for k, x_BTD in encoder.items()}
        if self._repeats:
            for b, (key, count) in enumerate(zip(keys, frames, strict=True)):
                rows = (batch["utterance"] == b).nonzero().flatten().tolist()
                self._keep(
                    key,
                    {k: x_BTD[b, :count].cpu().clone() for k, x_BTD in encoder.items()},
                    {k: [x_QLD[q, : tokens[q]].cpu().clone() for q in rows] for k, x_QLD in decoder.items()},
                )
        return encoder, decoder

    def _computed(self, batch: dict[str, Any]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        backbone, net = self.backbone, self.backbone.net
        net.to(batch["speech"].device)
        speech_BN = F.pad(batch["speech"], (0, max(0, backbone.samples - batch["speech"].shape[1])))
        training = net.training
        net.eval()
        try:
            encoded = self._model.encode(speech_BN, batch["signal"][:, 1], keep=self.layers.encoder)
            decoder: States = {}
            if self.layers.decoder:
                given, owner_Q = backbone.decoder_input(batch), batch["utterance"]
                decoder = decode_tokens(
                    backbone,
                    encoded.x.index_select(0, owner_Q),
                    encoded.lengths.index_select(0, owner_Q),
                    given.tokens,
                    given.lengths,
                    keep=self.layers.decoder,
                ).states
        finally:
            net.train(training)
        return dict(encoded.states), dict(decoder)

    def _keep(self, key: Any, encoder: dict[int, Tensor], decoder: dict[int, list[Tensor]]) -> None:
        parts = [*encoder.values(), *(row for rows in decoder.values() for row in rows)]
        size = sum(x.numel() * x.element_size() for x in parts)
        if key not in self._kept and self._bytes + size <= _CACHED_BYTES:
            self._kept[key] = encoder, decoder
            self._bytes += size


def written_by(backbone: Backbone, rows: Any, device: torch.device) -> dict[str, dict[str, str]]:
    """Task name to utterance id to what a backbone writes, greedily: in place of transcripts and translations."""

    training = backbone.net.training
    model = GatedS2T(backbone).to(device).eval()
    written = decode_rows(model, rows, list_tasks(rows), DecodeOptions(beam=1, maxlenratio=0.4)).text
    backbone.net.train(training)
    return written


def distil_loss(encoded: EncoderOutput, losses: Losses, taught: tuple[States, States]) -> Tensor:
    """Mean squared distance of the states from the teacher's on the utterances' own frames and tokens, each as a part
    of the teacher's variance there; the mean over all states that are compared."""
    encoder, decoder = taught
    if encoded.places is not None:
        encoder = {k: moved(x_BTD, encoded.places, encoded.x.shape[1]) for k, x_BTD in encoder.items()}
    parts = [relative_distance(encoded.states[k], x_BTD, encoded.own()) for k, x_BTD in encoder.items()]
    parts += [relative_distance(losses.states[k], x_QLD, losses.tokens > 0) for k, x_QLD in decoder.items()]
    return torch.stack(parts).mean()


def moved(x_BTD: Tensor, place_BT: Tensor, frames: int) -> Tensor:
    """The mean of the frames that are at a place, for each of so many places.

    Examples:
        >>> moved(torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[0, 0, -1]]), 2).flatten().tolist()
        [2.0, 0.0]
    """
    stays_BT = place_BT >= 0
    index_BT = torch.where(stays_BT, place_BT, frames)  # one place more, for those that are gone
    sums = x_BTD.new_zeros(len(x_BTD), frames + 1, x_BTD.shape[2])
    sums = sums.scatter_add(1, index_BT.unsqueeze(-1).expand_as(x_BTD), x_BTD)
    counts = x_BTD.new_zeros(len(x_BTD), frames + 1).scatter_add(1, index_BT, torch.ones_like(x_BTD[..., 0]))
    return (sums / counts.clamp(min=1).unsqueeze(-1))[:, :frames]


def relative_distance(x_BTD: Tensor, target_BTD: Tensor, own_BT: Tensor) -> Tensor:
    """``mean((x - target)^2) / variance(target)`` over the rows that count.

    Examples:
        >>> target = torch.tensor([[[1.0, -1.0], [1.0, -1.0], [9.0, 9.0]]])
        >>> float(relative_distance(target + 2.0, target, torch.tensor([[True, True, False]])))
        4.0
    """
    target_ND = target_BTD[own_BT].float()
    distance = (x_BTD[own_BT].float() - target_ND).square().mean()
    return distance / target_ND.var(unbiased=False).clamp(min=1e-8)


def _is_result(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf


def _tasks_of(batch: dict[str, Any]) -> list[tuple[str, ...]]:
    tasks: list[list[str]] = [[] for _ in batch["utt_ids"]]
    for owner, task in zip(batch["utterance"].tolist(), batch["tasks"], strict=True):
        tasks[owner].append(task)
    return [tuple(names) for names in tasks]


def _stacked(parts: Sequence[Tensor], own: Tensor) -> Tensor:
    """As many rows as ``own`` has, padded to its length, where it is."""
    longest = own.shape[1]
    return torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in parts]).to(own.device)
