"""The training step: the model's own loss plus the sparsity loss, as a LightningModule."""

from __future__ import annotations

import hashlib
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import DictConfig
from torch import Tensor

from localgp.encoder.run import EncoderOutput
from localgp.errors import NonFiniteError
from localgp.gates.base import GatePolicy
from localgp.gates.loss import kept_ratio, kept_ratios
from localgp.gates.target import sparsity_target
from localgp.model import GatedS2T, Losses
from localgp.run import Run
from localgp.training.data import one_by_one
from localgp.training.distil import Layers, Teacher, distil_loss
from localgp.training.schedule import build_optimizer
from localgp.world import mean_over_ranks, sum_over_ranks, weight_among_ranks


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for dropout and Gumbel noise that depends on nothing but these three, so that a resumed run
    draws what the unbroken one would have drawn."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest(), "big")


class TrainingModule(L.LightningModule):
    """The training step for Lightning: recognition, sparsity and distillation losses.

    Args:
        model: The model to fine-tune, all parameters of it.
        cfg: The whole configuration.
        sample_rate: Of the batches' speech, Hz.
        teacher: What ``training.objective`` is about, if it is not the task alone.
    """

    def __init__(
        self, model: GatedS2T, cfg: DictConfig, *, sample_rate: int, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher
        self._keep = Layers((), ()) if teacher is None else teacher.layers
        self.cfg = cfg
        self.sample_rate = sample_rate
        self.terms: dict[str, float] = {}  # of the newest step, for the log line
        self._micro_step = 0
        self.encoder_target = self.decoder_target = None
        if _learns(model.policy) and not getattr(model.policy, "exact", False):
            self.encoder_target = sparsity_target(cfg.pruning, model.backbone, "encoder")
        if _learns(model.decoder_policy):
            self.decoder_target = sparsity_target(cfg.pruning, model.backbone, "decoder")

    @property
    def _progress(self) -> float:
        trainer = self._trainer
        return 1.0 if trainer is None else trainer.global_step / max(1, trainer.max_steps)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.model, self.cfg.training, self.trainer.max_steps)

    def on_train_start(self) -> None:
        self._micro_step = self.trainer.global_step * self.cfg.training.accumulate

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        torch.manual_seed(step_seed(self.cfg.seed, self._micro_step, self.global_rank))
        self._micro_step += 1
        budget = self._draw_budget()
        batch = self._told(batch)
        encoded = self._encode(batch, self.cfg.pruning.path)
        losses = self.model.losses(encoded, batch, self._keep.decoder)
        # A batch counts its sequences' mean; processes may have different numbers of them.
        attention = losses.attention * weight_among_ranks(len(batch["text"]))
        total = losses.total + losses.attention_weight * (attention - losses.attention)
        terms: dict[str, Any] = {} if losses.ctc is None else {"loss_ctc": losses.ctc.detach()}
        if self.model.backbone.shape.decoder_layers:
            terms |= {"loss_att": attention.detach(), "accuracy": losses.accuracy}
        if self.teacher is not None:
            distance = self._distance(self.teacher, encoded, losses, batch)
            terms["loss_distil"] = distance.detach()
            total = self._objective(total, distance)
        # Each side has its own target: one ratio over both would let the decoder buy the encoder's share.
        if self.encoder_target is not None and encoded.gates:
            frames_BT = self._counted_frames(encoded, batch)
            target = self.encoder_target
            term, distance = target(encoded.gates, frames_BT, self._progress, sum_over_ranks, kept=budget)
            total = total + term
            terms["loss_sparsity"] = distance.detach()
        if self.decoder_target is not None:
            term, distance = self.decoder_target(
                losses.decoder_gates, losses.tokens, self._progress, sum_over_ranks
            )
            total = total + term
            terms["loss_sparsity_decoder"] = distance.detach()
            terms["loss_sparsity"] = terms.get("loss_sparsity", 0.0) + terms["loss_sparsity_decoder"]
        terms["loss"] = total.detach()
        terms |= self._kept(encoded, batch) | kept_tokens(losses)
        if encoded.gates or losses.decoder_gates:
            terms |= {
                "target_kept": budget or 1 - self.cfg.pruning.target,
                "temperature": self.cfg.pruning.temperature,
            }
        self.terms = numbers(terms)
        self._check_finite(self.terms, batch)
        return total

    def _draw_budget(self) -> float | None:
        """The share kept that a step is about, the same in all processes: in turn the most, the least, and two in
        between (slimmable networks); None where there is but one."""
        budgets, policy = list(self.cfg.pruning.budgets), self.model.policy
        if not budgets or policy is None:
            return None
        least, most = budgets
        step = self._micro_step - 1
        between = float(np.random.default_rng([self.cfg.seed, step]).uniform(least, most))
        budget = [most, least, between, between][step % 4]
        policy.set_budget(budget)
        return budget

    def on_validation_epoch_start(self) -> None:
        if self.model.policy is not None and self.cfg.pruning.budgets:
            self.model.policy.set_budget(None)
        self._dev_sums: dict[str, float] = {}
        self._dev_utterances = 0

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        batch = self._told(batch)
        encoded = self._encode(batch, "gathered")
        losses = self.model.losses(encoded, batch, self._keep.decoder)
        terms: dict[str, Any] = {"valid/loss": losses.total}
        if self.model.backbone.shape.decoder_layers:
            terms["valid/accuracy"] = losses.accuracy
        if self.teacher is not None:
            terms["valid/loss_distil"] = self._distance(self.teacher, encoded, losses, batch)
            terms["valid/loss"] = self._objective(losses.total, terms["valid/loss_distil"])
        kept = self._kept(encoded, batch) | kept_tokens(losses) | kept_by_layer(encoded, losses)
        terms |= {f"valid/{name}": value for name, value in kept.items()}
        utterances = len(batch["utt_ids"])
        self._dev_utterances += utterances
        for name, value in numbers(terms).items():
            self._dev_sums[name] = self._dev_sums.get(name, 0.0) + value * utterances

    @property
    def dev_is_finite(self) -> bool:
        """Whether the dev losses of this process are."""
        return _finite(self._dev_sums["valid/loss"])

    def on_validation_epoch_end(self) -> None:
        """Means over all utterances, whichever process had them. Lightning's own average over processes counts
        utterances in whole numbers, and is wrong where they have different numbers of them."""
        every = mean_over_ranks({**self._dev_sums, "": float(self._dev_utterances)})
        utterances = every.pop("")
        means = {name: value / utterances for name, value in every.items()}
        if not _finite(means["valid/loss"]):  # the same in all processes; weights are ranked by it
            raise NonFiniteError(
                f"the dev loss is {means['valid/loss']} at step {self.global_step}, so these weights were not ranked "
                f"or saved. {resumable(self.cfg)} Likely causes: a learning rate too high (training.lr), half "
                "precision (training.precision=fp32), or damaged audio in the dev part."
            )
        by_layer = {name: value for name, value in means.items() if "/layer" in name}
        self.log_dict({name: value for name, value in means.items() if name not in by_layer})
        if not self.trainer.sanity_checking:
            for logger in self.trainer.loggers:  # too many for the terminal and metrics.jsonl
                logger.log_metrics(by_layer, step=self.global_step)

    def _encode(self, batch: dict[str, Any], path: str) -> EncoderOutput:
        contexts, keep = batch.get("contexts"), self._keep.encoder
        primers = None
        if self.model.backbone.is_told:
            primers = batch["text"][:, : self.model.backbone.timeline.told].tolist()
        ends = batch["signal"][:, 1]
        return self.model.encode(batch["speech"], ends, contexts, path=path, keep=keep, primers=primers)

    def _told(self, batch: dict[str, Any]) -> dict[str, Any]:
        return one_by_one(batch) if self.model.backbone.is_told else batch

    def _distance(
        self, teacher: Teacher, encoded: EncoderOutput, losses: Losses, batch: dict[str, Any]
    ) -> Tensor:
        taught = teacher.states(batch, encoded.began(), losses.tokens > 0)
        return distil_loss(encoded, losses, taught)

    def _objective(self, task: Tensor, distance: Tensor) -> Tensor:
        weighted = self.cfg.training.distil_weight * distance
        return weighted if self.cfg.training.objective == "distil" else task + weighted

    def _counted_frames(self, encoded: EncoderOutput, batch: dict[str, Any]) -> Tensor:
        """1 for the frames that the target is of."""
        own_BT = encoded.own().to(encoded.x.dtype)
        if self.cfg.pruning.sparsity_frames == "real":
            return own_BT * self.model.backbone.timeline.real(batch["signal"], own_BT.shape[1])
        return own_BT

    @torch.no_grad()
    def _kept(self, encoded: EncoderOutput, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Share of frames that run, per module kind, over all layers: of all frames and of the real ones."""
        if not encoded.gates:
            return {}
        batch_size, frames = encoded.x.shape[:2]
        every = encoded.own().float()
        real = every * self.model.backbone.timeline.real(batch["signal"], frames)
        kept = {}
        for name in encoded.gates[0]:
            decisions = torch.stack(
                [layer[name].decision.expand(batch_size, frames) for layer in encoded.gates]
            )
            kept[f"kept/{name}"] = kept_ratio(decisions.mean(0), every)
            kept[f"kept_real/{name}"] = kept_ratio(decisions.mean(0), real)
        names = list(encoded.gates[0])
        kept["kept/all"] = torch.stack([kept[f"kept/{n}"] for n in names]).double().mean()
        return kept

    def _check_finite(self, terms: dict[str, float], batch: dict[str, Any]) -> None:
        bad = [name for name, value in terms.items() if name.startswith("loss_") and not _finite(value)]
        if bad:
            raise NonFiniteError(
                f"{', '.join(bad)} is not finite at step {self.global_step} "
                f"({', '.join(f'{k}={v:.4g}' for k, v in terms.items())}), on {', '.join(batch['utt_ids'][:8])}. "
                f"No update was made. {resumable(self.cfg)} Likely causes: a learning rate too high "
                "(training.lr), half precision (training.precision=fp32), or damaged audio in these utterances."
            )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the norm over all parameters, wherever their shards are."""

        strategy = self.trainer.strategy
        if isinstance(strategy, FSDPStrategy) and gradient_clip_val:
            assert strategy.model is not None
            strategy.model.clip_grad_norm_(gradient_clip_val)  # type: ignore[operator]
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:

        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        sharded = isinstance(self.trainer.strategy, FSDPStrategy)
        norm = gradient_norm(gradients, self.device, sharded=sharded)
        self.terms["grad_norm"] = norm
        if not _finite(norm):
            worst = [
                n for n, p in self.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
            # This process's part can be finite where another's is not, or where only its norm is too large.
            where = f", first in {worst[0]} and {len(worst) - 1} other parameters" if worst else ""
            raise NonFiniteError(
                f"the gradient's norm is {norm} at step {self.global_step}{where}. No update was made. "
                f"{resumable(self.cfg)} Lower training.lr, or set training.precision=fp32."
            )


def gradient_norm(gradients: list[Tensor], device: torch.device, *, sharded: bool) -> float:
    """Euclidean norm of the whole gradient, the same in all processes.

    Args:
        gradients: Of this process, on ``device``.
        sharded: They are its part of the gradient (FSDP), which can be nothing at all, and not all of it.
    """
    squared = torch.zeros((), dtype=torch.float64, device=device)
    if gradients:
        squared = torch.stack([gradient.norm() for gradient in gradients]).double().square().sum()
    return float((sum_over_ranks(squared) if sharded else squared).sqrt())


def resumable(cfg: DictConfig) -> str:
    """What there is to go on from."""
    last = Run(cfg).checkpoints / "last.ckpt"
    if last.exists():
        return f"{last} is from before it."
    return "There is no checkpoint yet: the next run starts from step 0."


def _learns(policy: GatePolicy | None) -> bool:
    return policy is not None and any(True for _ in policy.parameters())


@torch.no_grad()
def kept_tokens(losses: Losses) -> dict[str, Tensor]:
    """Share of the decoder's real tokens for which a kind of module runs, over all layers."""
    if not losses.decoder_gates:
        return {}
    tokens = losses.tokens
    return {
        f"kept/decoder.{name}": kept_ratios(
            [gates[name].decision for gates in losses.decoder_gates], tokens
        ).mean()
        for name in losses.decoder_gates[0]
    }


@torch.no_grad()
def kept_by_layer(encoded: EncoderOutput, losses: Losses) -> dict[str, Tensor]:
    """``kept/<module>/layer<k>``, k from 1: each gate's share of all frames, or of the decoder's real tokens."""
    shares = {}
    every = encoded.own().to(encoded.x.dtype)
    for k, gates in enumerate(encoded.gates, 1):
        for name, gate in gates.items():
            shares[f"kept/{name}/layer{k}"] = kept_ratio(gate.decision.expand_as(every), every)
    for k, gates in enumerate(losses.decoder_gates, 1):
        for name, gate in gates.items():
            shares[f"kept/decoder.{name}/layer{k}"] = kept_ratio(gate.decision, losses.tokens)
    return shares


def numbers(terms: dict[str, Any]) -> dict[str, float]:
    """Scalars, tensors among them, as floats: one wait for a GPU, not one for each."""
    tensors = {name: value for name, value in terms.items() if isinstance(value, Tensor)}
    if not tensors:
        return dict(terms)
    values = torch.stack([value.detach().double().reshape(()) for value in tensors.values()]).tolist()
    return terms | dict(zip(tensors, values, strict=True))


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
