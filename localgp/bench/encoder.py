"""Seconds of the encoder: ours against ESPnet's, gated against dense, paired in one run; and of its training step.

Every row compares runs that alternate, and gives the median of their ratios with the ratio of their FLOPs beside it.
Random features stand in for speech: no encoder's time depends on what is said. (What learnt gates skip does: see
`EncoderBench.learnt`.)

Shape legend: B utterances, S feature frames, F mel bins, N encoder frames of all utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from localgp.backbones.cost import EncoderCost
from localgp.bench.parts import INSIDE, flop_shares, our_seconds, parts_of, product_rate, reference_seconds
from localgp.bench.rows import ENCODER, PEER, Bench, Runs
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import EncoderOutput, encode
from localgp.gates import LocalGates, RandomGates
from localgp.gates.base import GatePolicy
from localgp.gates.cost import gates_cost
from localgp.gates.folded import FoldedLocalGates
from localgp.kernels.ragged import Ragged
from localgp.model import GatedS2T
from localgp.precision import why_no_int8
from localgp.window import Window

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_OF_DENSE = "time_ratio_vs_dense"
SILENCE = -2.0  # what a normalised log-mel of zeros is differs by corpus; that it is constant is what counts


class EncoderBench(Bench):
    """Benchmarks of one encoder; arguments as of `Bench`."""

    schema = ENCODER
    _packed: tuple[str, PackedEncoder] | None = None

    @property
    def seconds(self) -> float:
        """Of an utterance, padded."""
        return float(self.wanted.seconds)

    @cached_property
    def frames(self) -> int:
        """Of its features."""
        return self._feature_frames(self.seconds)

    @cached_property
    def cost(self) -> EncoderCost:
        return EncoderCost(self.backbone, self.frames)

    def measure(self) -> list[dict[str, Any]]:
        """All that is wanted, as rows."""
        wanted, measures = self.wanted, set(self.wanted.measures)
        if self.backbone.peers:  # against which all but our own are timed
            measures -= {"dense", "padded", "ragged"}
        for dtype in wanted.dtypes:
            for batch in wanted.batches:
                if "dense" in measures and batch in wanted.espnet_batches:
                    self.dense(dtype, batch)
                if "padded" in measures and batch in wanted.espnet_batches:
                    self.dense(dtype, batch, wanted.speech_seconds)
                if "window" in measures:
                    self.window(dtype, batch, wanted.window_seconds)
                if "pruned" in measures:
                    for share in wanted.skipped:
                        self.pruned(dtype, batch, share)
                if "gates" in measures:
                    self.gates(dtype, batch)
            if "ragged" in measures:
                self.ragged(dtype, list(wanted.ragged))
            if "profile" in measures and self.device.type == "cpu":
                self.profile(dtype)
        if "int8" in measures and why_no_int8(self.device) is None:
            for batch in wanted.batches:
                self.eighths(batch)
        if "peers" in measures:
            self.peers()
        return self.rows

    def features(self, batch: int, speech: float | None = None) -> Tensor:
        """(B, S, F), noise; constant from ``speech`` seconds on."""
        feats_BSF = self.noise(batch, self.frames, self.backbone.shape.mels)
        if speech is not None:
            feats_BSF[:, self._feature_frames(speech) :] = SILENCE
        return feats_BSF

    def espnet(
        self, dtype: str, feats_BSF: Tensor, lengths: Sequence[int] | None = None
    ) -> Callable[[], Any]:
        """The third-party library's own forward, in bf16 under autocast; of full length if nothing else is said."""
        lengths_B = torch.tensor(list(lengths or [self.frames] * len(feats_BSF)), device=self.device)

        @torch.no_grad()
        def run() -> Any:
            with torch.autocast(self.device.type, dtype=DTYPES[dtype], enabled=dtype != "fp32"):
                return self.backbone.reference_encoder(feats_BSF, lengths_B)

        return run

    def ours(
        self,
        dtype: str,
        feats_BSF: Tensor,
        lengths: Sequence[int] | None = None,
        policy: GatePolicy | None = None,
    ) -> Callable[[], Any]:
        """Packed; weights are laid out once for all measurements of a type, and one type's at a time."""
        if self._packed is None or self._packed[0] != dtype:
            self._packed = dtype, PackedEncoder(self.backbone, DTYPES[dtype])
        packed, gates = self._packed[1], None if policy is None else PackedGates(policy)
        ends = list(lengths or [feats_BSF.shape[1]] * len(feats_BSF))
        return lambda: packed(feats_BSF, ends, gates)

    def dense(self, dtype: str, batch: int, speech: float | None = None) -> None:
        """Ours against ESPnet's on the same input; with ``speech`` seconds of it, the rest constant."""
        feats_BSF = self.features(batch, speech)
        ours, theirs = self.ours(dtype, feats_BSF), self.espnet(dtype, feats_BSF)
        own, other = ours().x, theirs().flatten(0, 1)
        figures: dict[str, Any] = {
            "flop_ratio": 1.0,
            "relative_error": float((own - other).abs().max() / other.abs().max()),
            "espnet_peak_mib": self.peak(theirs),
        }
        measure, said = ("dense", self.seconds) if speech is None else ("padded", speech)
        runs, repeats = {"ours": ours, "espnet": theirs}, self.wanted.espnet_repeats
        self._add(measure, dtype, [said] * batch, runs, "time_ratio_vs_espnet", repeats=repeats, **figures)

    def pruned(self, dtype: str, batch: int, share: float) -> None:
        """Random gates against our dense path."""
        feats_BSF, policy = self.features(batch), RandomGates(self.backbone.frame_parts(), share, 0).eval()
        runs = {"pruned": self.ours(dtype, feats_BSF, policy=policy), "dense": self.ours(dtype, feats_BSF)}
        flops = self._flop_ratio(share)
        self._add("pruned", dtype, [self.seconds] * batch, runs, _OF_DENSE, skipped=share, flop_ratio=flops)

    def window(self, dtype: str, batch: int, speech: float) -> None:
        """Recordings of ``speech`` seconds in windows of their own length (with `Window`'s margin) against the same
        padded, both ours."""
        cut = min(self.frames, self._feature_frames(speech + Window().margin))
        feats_BSF = self.features(batch, speech)
        runs = {"window": self.ours(dtype, feats_BSF[:, :cut]), "dense": self.ours(dtype, feats_BSF)}
        flops = EncoderCost(self.backbone, cut).encoder() / self.cost.encoder()
        self._add("window", dtype, [speech] * batch, runs, _OF_DENSE, flop_ratio=flops)

    def ragged(self, dtype: str, parts: Sequence[float]) -> None:
        """A ragged batch, packed, against one utterance of full length times the parts' share of its FLOPs; and
        against ESPnet's padded batch."""
        lengths = [self._feature_frames(part) for part in parts]
        feats_BSF = self.noise(len(parts), max(lengths), self.backbone.shape.mels)
        packed, one = self.ours(dtype, feats_BSF, lengths), self.ours(dtype, feats_BSF[:1])
        padded = {"packed": packed, "espnet": self.espnet(dtype, feats_BSF, lengths)}
        _, against = self.compare(padded, self.wanted.espnet_repeats)
        costs = [EncoderCost(self.backbone, length).encoder() for length in lengths]
        share = sum(costs) / max(costs)
        figures: dict[str, Any] = {
            "flop_ratio": share / len(parts),
            "time_ratio_vs_espnet": against.ratio("packed", "espnet"),
            "share_of_work": share,
            "espnet_padded_over_ours": against.ratio("espnet", "packed"),
            "padded_to": None,  # ESPnet pads to the longest
        }
        runs = {"packed": packed, "one": one}
        self._add("ragged", dtype, list(parts), runs, "time_over_share_of_work", per=share, **figures)

    def gates(self, dtype: str, batch: int) -> None:
        """What LocalGP itself takes (all layers' predictors and their attention to the contexts) of the dense
        encoder's time. The inputs are noise of the layers' shape: what is decided is thrown away."""
        layout = Ragged([self.cost.frames] * batch, self.device)
        torch.manual_seed(0)
        size, layers = self.cost.size, self.cost.layers
        policy = LocalGates(layers, size, self.backbone.frame_parts(), {"front": size})
        folded = FoldedLocalGates(policy.to(self.device).eval())
        x_ND = torch.randn(layout.total, size, device=self.device)

        @torch.no_grad()
        def predict() -> None:
            memory = folded.begin([x_ND], layout.owner_N)
            for layer in range(layers):
                folded.gate(layer, x_ND, memory)

        runs = {"gates": predict, "dense": self.ours(dtype, self.features(batch))}
        flops = folded.flops(layout.total) / (batch * self.cost.encoder())
        said = [self.seconds] * batch
        self._add("gates", dtype, said, runs, "overhead_share", overhead_flop_share=flops)

    def eighths(self, batch: int) -> None:
        """Weights in 8 bits against fp32."""
        feats_BSF, lengths = self.features(batch), [self.frames] * batch
        runs = {
            name: partial(PackedEncoder(self.backbone, dtype), feats_BSF, lengths)
            for name, dtype in (("int8", torch.int8), ("fp32", torch.float32))
        }
        own, exact = runs["int8"]().x, runs["fp32"]().x
        error = float((own - exact).norm() / exact.norm())
        self._add("int8", "int8", [self.seconds] * batch, runs, "time_ratio", relative_error=error)

    def peers(self) -> None:
        """Ours, dense and packed in fp32, against each peer's."""
        for peer in [peer for peer in self.wanted.peers if peer in self.backbone.peers]:
            other = self.backbone.peer(peer)
            for batch in self.wanted.espnet_batches:
                feats_BSF = self.features(batch)
                ours, theirs = self.ours("fp32", feats_BSF), partial(other.encode, feats_BSF)
                own, their = ours().x.cpu(), theirs().flatten(0, 1).cpu()
                error = float((own - their).abs().max() / their.abs().max())
                runs: Runs = {"ours": ours, peer: theirs}
                figures, _ = self.compare(runs, self.wanted.espnet_repeats, "time_ratio")
                self.add("peer encoder", "fp32", schema=PEER, batch=batch, **figures, relative_error=error)

    def profile(self, dtype: str) -> None:
        """Seconds by part of one utterance, ours and ESPnet's; a row for each part.

        ``of_product_rate`` is what the part's FLOPs take at the rate of a plain product over what it takes; above 1
        for a part that does with fewer.
        """
        feats_BSF, repeats = self.features(1), self.wanted.espnet_repeats
        ours = our_seconds(self.ours(dtype, feats_BSF), repeats)
        theirs = reference_seconds(self.backbone, self.espnet(dtype, feats_BSF), repeats)
        shares, parts = flop_shares(self.cost, self.backbone), parts_of(self.backbone)
        total = sum(ours[part] for part in parts)
        rate = product_rate(self.cost.frames, self.cost.size, DTYPES[dtype], repeats)
        fastest = self.cost.encoder() / rate
        said: dict[str, Any] = {"batch": 1, "seconds_of_audio": [self.seconds], "padded_to": self.seconds}
        for part in (*parts, *([INSIDE] if INSIDE in ours else [])):
            figures: dict[str, Any] = {
                "seconds": ours[part],
                "against_seconds": theirs[part],
                "time_ratio_vs_espnet": ours[part] / theirs[part],
                "time_share": ours[part] / total,
                "flop_share": shares[part],
                "of_product_rate": shares[part] * fastest / ours[part],
            }
            self.add("profile", dtype, part=part, against="espnet", **said, **figures)

    def training(self, batch: int, share: float) -> None:
        """A training step: forward and backward pass, random frames gathered against dense.

        What follows (decoder, losses, optimizer) is the same for both and left out.
        """
        net, feats_BSF = self.backbone.net, self.features(batch)
        lengths_B = torch.full((batch,), self.frames, device=self.device)

        def step(policy: GatePolicy | None) -> None:
            encode(self.backbone, feats_BSF, lengths_B, policy).x.square().mean().backward()
            net.zero_grad(set_to_none=True)

        gated = partial(step, RandomGates(self.backbone.frame_parts(), share, 0).train())
        runs = {"gathered": gated, "dense": partial(step, None)}
        figures: dict[str, Any] = {"skipped": share, "flop_ratio": self._flop_ratio(share)}
        net.train()
        try:
            figures["dense_peak_mib"] = self.peak(runs["dense"])
            self._add("training", "fp32", [self.seconds] * batch, runs, _OF_DENSE, **figures)
        finally:
            net.eval()

    def learnt(
        self,
        model: GatedS2T,
        batches: Sequence[tuple[Tensor, Tensor, dict[str, Tensor]]],
        seconds_of_audio: list[float],
    ) -> None:
        """Trained gates on real speech against the same encoder without gates, both packed in fp32.

        Args:
            model: With trained gates, in eval mode.
            batches: (speech (B, N), lengths (B,), contexts) of padded utterances.
            seconds_of_audio: Of every utterance, without padding.
        """
        policy = model.policy
        assert policy is not None
        encoder, learnt = PackedEncoder(model.backbone), PackedGates(policy)
        with torch.no_grad():
            inputs = [(*model.features(speech, lengths), contexts) for speech, lengths, contexts in batches]

        @torch.no_grad()
        def run(gates: PackedGates | None) -> list[EncoderOutput]:
            return [encoder.encode(feats, ends, gates, contexts) for feats, ends, contexts in inputs]

        costs = {n: EncoderCost(model.backbone, n) for _, ends, _ in inputs for n in ends.tolist()}
        pruned = dense = ran = there = 0.0
        for output, (_, ends, _) in zip(run(learnt), inputs, strict=True):
            own_BT = output.own()
            expanded = [
                {n: g.value.expand(own_BT.shape) * own_BT for n, g in layer.items()} for layer in output.gates
            ]
            ran += sum(float(value.sum()) for layer in expanded for value in layer.values())
            there += float(own_BT.sum()) * sum(len(layer) for layer in expanded)
            for b, length in enumerate(ends.tolist()):
                kept = [{n: float(v[b].sum()) for n, v in layer.items()} for layer in expanded]
                pruned += costs[length].encoder(kept) + gates_cost(policy, costs[length].frames)
                dense += costs[length].encoder()
        runs = {"gated": partial(run, learnt), "dense": partial(run, None)}
        figures: dict[str, Any] = {
            "batch": len(inputs[0][0]),
            "skipped": 1 - ran / there,
            "flop_ratio": pruned / dense,
        }
        self._add("learnt", "fp32", seconds_of_audio, runs, _OF_DENSE, **figures)

    def _feature_frames(self, seconds: float) -> int:
        return self.backbone.timeline.feature_frames(round(seconds * self.backbone.sample_rate))

    def _flop_ratio(self, share: float) -> float:
        """Where every module leaves out a share of the frames."""
        kept = dict.fromkeys(
            self.backbone.frame_parts(), float(self.cost.frames - round(share * self.cost.frames))
        )
        return self.cost.encoder([kept] * self.cost.layers) / self.cost.encoder()

    def _add(
        self,
        measure: str,
        dtype: str,
        said: list[float],
        runs: Runs,
        ratio: str,
        *,
        repeats: int | None = None,
        per: float = 1.0,
        **figures: Any,
    ) -> None:
        compared, _ = self.compare(runs, repeats or self.wanted.repeats, ratio)
        compared[ratio] /= per
        found = {
            "batch": len(said),
            "seconds_of_audio": said,
            "padded_to": self.seconds,
            **compared,
            **figures,
        }
        self.add(measure, dtype, **found, peak_mib=self.peak(next(iter(runs.values()))))
