"""The training step: ESPnet's loss plus the sparsity loss, as a LightningModule."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor

from localgp.errors import NonFiniteError
from localgp.gates.loss import kept_ratio, sparsity_loss
from localgp.model import GatedS2T
from localgp.pruning.encoder import EncoderOutput
from localgp.training.data import real_frames
from localgp.training.schedule import build_optimizer


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for dropout and Gumbel noise that depends on nothing but these three, so that a resumed run
    draws what the unbroken one would have drawn."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest(), "big")


class TrainingModule(L.LightningModule):
    """Args:
    model: The model to fine-tune, all parameters of it.
    cfg: The whole configuration.
    sample_rate: Of the batches' speech, Hz.
    """

    def __init__(self, model: GatedS2T, cfg: DictConfig, *, sample_rate: int) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg
        self.sample_rate = sample_rate
        self.terms: dict[str, float] = {}  # of the newest step, for the log line
        self._micro_step = 0

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.model, self.cfg.training, self.trainer.max_steps)

    def on_train_start(self) -> None:
        self._micro_step = self.trainer.global_step * self.cfg.training.accumulate

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        torch.manual_seed(step_seed(self.cfg.seed, self._micro_step, self.global_rank))
        self._micro_step += 1
        encoded = self._encode(batch, self.cfg.pruning.path)
        losses = self.model.losses(encoded, batch)
        total = losses.total
        terms = {
            "loss_ctc": float(losses.ctc.detach()),
            "loss_att": float(losses.attention.detach()),
            "accuracy": losses.accuracy,
        }
        if encoded.gates and self._learns_gates:
            frames_BT = self._counted_frames(encoded, batch)
            sparsity = sparsity_loss(
                encoded.gates, self.cfg.pruning.target, frames_BT, per=self.cfg.pruning.sparsity_per
            )
            total = total + self.cfg.pruning.sparsity_weight * sparsity
            terms["loss_sparsity"] = float(sparsity.detach())
        terms["loss"] = float(total.detach())
        terms |= self._kept(encoded, batch)
        self._check_finite(terms, batch)
        self.terms = terms
        return total

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        encoded = self._encode(batch, "gathered")
        losses = self.model.losses(encoded, batch)
        terms: dict[str, Any] = {"valid/loss": losses.total, "valid/accuracy": losses.accuracy}
        terms |= {f"valid/{name}": value for name, value in self._kept(encoded, batch).items()}
        self.log_dict(terms, batch_size=len(batch["utt_ids"]), sync_dist=True)

    @property
    def _learns_gates(self) -> bool:
        policy = self.model.policy
        return policy is not None and any(True for _ in policy.parameters())

    def _encode(self, batch: dict[str, Any], path: str) -> EncoderOutput:
        return self.model.encode(batch["speech"], batch["speech_lengths"], batch.get("contexts"), path=path)

    def _counted_frames(self, encoded: EncoderOutput, batch: dict[str, Any]) -> Tensor:
        batch_size, frames = encoded.x.shape[:2]
        if self.cfg.pruning.sparsity_frames == "real":
            return real_frames(batch["signal"], frames, batch["speech"].shape[1])
        return encoded.x.new_ones(batch_size, frames)

    @torch.no_grad()
    def _kept(self, encoded: EncoderOutput, batch: dict[str, Any]) -> dict[str, float]:
        """Share of frames that run, per module kind, over all layers: of all frames and of the real ones."""
        if not encoded.gates:
            return {}
        batch_size, frames = encoded.x.shape[:2]
        every = torch.ones(batch_size, frames, device=encoded.x.device)
        real = real_frames(batch["signal"], frames, batch["speech"].shape[1])
        kept = {}
        for name in encoded.gates[0]:
            decisions = torch.stack(
                [layer[name].decision.expand(batch_size, frames) for layer in encoded.gates]
            )
            kept[f"kept/{name}"] = float(kept_ratio(decisions.mean(0), every))
            kept[f"kept_real/{name}"] = float(kept_ratio(decisions.mean(0), real))
        names = list(encoded.gates[0])
        kept["kept/all"] = sum(kept[f"kept/{n}"] for n in names) / len(names)
        return kept

    def _check_finite(self, terms: dict[str, float], batch: dict[str, Any]) -> None:
        bad = [
            name for name in ("loss_ctc", "loss_att", "loss_sparsity") if not _finite(terms.get(name, 0.0))
        ]
        if bad:
            raise NonFiniteError(
                f"{', '.join(bad)} is not finite at step {self.global_step} "
                f"({', '.join(f'{k}={v:.4g}' for k, v in terms.items())}), on {', '.join(batch['utt_ids'][:8])}. "
                "No update was made and last.ckpt is from before it. Likely causes: a learning rate too high "
                "(training.lr), half precision (training.precision=fp32), or damaged audio in these utterances."
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = torch.stack(
            [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        )
        norm = float(norms.norm())
        self.terms["grad_norm"] = norm
        if not _finite(norm):
            worst = [
                n for n, p in self.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
            raise NonFiniteError(
                f"the gradient is not finite at step {self.global_step}, first in {worst[0]} and {len(worst) - 1} "
                "other parameters. No update was made and last.ckpt is from before it. Lower training.lr, or set "
                "training.precision=fp32."
            )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
