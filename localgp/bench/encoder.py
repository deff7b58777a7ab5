"""Seconds of the encoder: ours against ESPnet's, gated against dense, paired in one run.

Every row compares runs that alternate, and gives the median of their ratios with the ratio of their FLOPs beside it.
Random features stand in for speech: no encoder's time depends on what is said. (What learnt gates skip does: see
`bench_learnt`.)

Every row has the keys of `make_row`; a figure that does not apply is None.

Shape legend: B utterances, S feature frames, F mel bins, N encoder frames of all utterances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.backbones.cost import EncoderCost
from localgp.bench.harness import Paired, paired, peak_mib
from localgp.bench.parts import (
    INSIDE,
    flop_shares,
    our_seconds,
    parts_of,
    product_rate,
    reference_seconds,
)
from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import EncoderOutput
from localgp.gates import LocalGates, RandomGates
from localgp.gates.base import GatePolicy
from localgp.gates.cost import gates_cost
from localgp.gates.folded import FoldedLocalGates
from localgp.kernels.ragged import Ragged
from localgp.model import GatedS2T
from localgp.window import Window

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEASURES = ("dense", "padded", "window", "pruned", "ragged", "gates", "int8", "profile", "peers")
SILENCE = -2.0  # what a normalised log-mel of zeros is differs by corpus; that it is constant is what counts


class EncoderBench:
    """Benchmarks of one encoder.

    Args:
        backbone: Its encoder is seconds_of; random weights will do.
        name: For the rows.
        seconds: Of an utterance, padded.
        repeats: Rounds of ours against ours.
        espnet_repeats: Rounds of ESPnet against ours.
        seed: Of inputs and gates.
        progress: Called with a line after each row.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        name: str,
        seconds: float = 30.0,
        repeats: int = 5,
        espnet_repeats: int = 3,
        seed: int = 0,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        backbone.net.eval()
        self.model, self.backbone = backbone, name
        self.repeats, self.espnet_repeats, self.seed = repeats, espnet_repeats, seed
        self.frames = self._feature_frames(seconds)
        self.seconds, self.device = seconds, backbone.device
        self.cost = EncoderCost(backbone, self.frames)
        self.rows: list[dict[str, Any]] = []
        self._progress = progress
        self._packed: dict[str, PackedEncoder] = {}

    def features(self, batch: int, speech: float | None = None) -> Tensor:
        """(B, S, F), noise; constant from ``speech`` seconds on."""
        generator = torch.Generator().manual_seed(self.seed)
        feats_BSF = torch.randn(batch, self.frames, self.model.shape.mels, generator=generator)
        if speech is not None:
            feats_BSF[:, self._feature_frames(speech) :] = SILENCE
        return feats_BSF.to(self.device)

    def packed(self, dtype: str) -> PackedEncoder:
        """Ours, its weights laid out once for all measurements of a type."""
        if dtype not in self._packed:
            self._packed.clear()  # one type's weights at a time
            self._packed[dtype] = PackedEncoder(self.model, DTYPES[dtype])
        return self._packed[dtype]

    def espnet(self, feats_BSF: Tensor, lengths: Sequence[int], dtype: str) -> Callable[[], Any]:
        """The third-party library's own forward, in bf16 under autocast."""
        lengths_B = torch.tensor(list(lengths), device=self.device)

        @torch.no_grad()
        def run() -> Any:
            with torch.autocast(self.device.type, dtype=DTYPES[dtype], enabled=dtype != "fp32"):
                return self.model.reference_encoder(feats_BSF, lengths_B)

        return run

    def ours(
        self, feats_BSF: Tensor, lengths: Sequence[int], dtype: str, policy: GatePolicy | None = None
    ) -> Callable[[], Any]:
        packed, ends = self.packed(dtype), list(lengths)
        gates = None if policy is None else PackedGates(policy)
        return lambda: packed(feats_BSF, ends, gates)

    def dense(self, dtype: str, batch: int, speech: float | None = None) -> None:
        """Ours against ESPnet's on the same input; with ``speech`` seconds of it, the rest constant."""
        feats_BSF = self.features(batch, speech)
        lengths = [self.frames] * batch
        ours, theirs = (make(feats_BSF, lengths, dtype) for make in (self.ours, self.espnet))
        times = paired({"ours": ours, "espnet": theirs}, self.espnet_repeats, self.device)
        own, other = ours().x, theirs().flatten(0, 1)
        error = float((own - other).abs().max() / other.abs().max())
        measure = "dense" if speech is None else "padded"
        row = {
            "flop_ratio": 1.0,
            "time_ratio_vs_espnet": round(times.ratio("ours", "espnet"), 4),
            "relative_error": float(f"{error:.2g}"),
            "espnet_peak_mib": peak_mib(theirs, self.device),
        }
        said = [self.seconds if speech is None else speech] * batch
        self._add(measure, dtype, said, times, ("ours", "espnet"), ours, row)

    def pruned(self, dtype: str, batch: int, share: float) -> None:
        """Random gates against our dense path."""
        feats_BSF, lengths = self.features(batch), [self.frames] * batch
        modules = self.model.frame_parts()
        policy = RandomGates(modules, share, self.seed).eval()
        dense, gated = (self.ours(feats_BSF, lengths, dtype, gates) for gates in (None, policy))
        times = paired({"dense": dense, "pruned": gated}, self.repeats, self.device)
        kept = dict.fromkeys(modules, float(self.cost.frames - round(share * self.cost.frames)))
        row = {"skipped": share} | against_dense(times.ratio("pruned", "dense"), self._flop_ratio(kept))
        self._add("pruned", dtype, [self.seconds] * batch, times, ("pruned", "dense"), gated, row)

    def window(self, dtype: str, batch: int, speech: float) -> None:
        """Recordings of ``speech`` seconds in windows of their own length (with `Window`'s margin) against the same
        padded, both ours."""
        cut = min(self.frames, self._feature_frames(speech + Window().margin))
        feats_BSF = self.features(batch, speech)
        own = self.ours(feats_BSF[:, :cut], [cut] * batch, dtype)
        padded = self.ours(feats_BSF, [self.frames] * batch, dtype)
        times = paired({"window": own, "dense": padded}, self.repeats, self.device)
        flops = EncoderCost(self.model, cut).encoder() / self.cost.encoder()
        row = against_dense(times.ratio("window", "dense"), flops)
        self._add("window", dtype, [speech] * batch, times, ("window", "dense"), own, row)

    def ragged(self, dtype: str, parts: Sequence[float]) -> None:
        """A ragged batch, packed, against one utterance of full length times the parts' share of its FLOPs; and
        against ESPnet's padded batch."""
        lengths = [self._feature_frames(part) for part in parts]
        generator = torch.Generator().manual_seed(self.seed)
        shape = len(parts), max(lengths), self.model.shape.mels
        feats_BSF = torch.randn(shape, generator=generator).to(self.device)
        alone = self.ours(feats_BSF[:1], [max(lengths)], dtype)
        packed = self.ours(feats_BSF, lengths, dtype)
        padded = self.espnet(feats_BSF, lengths, dtype)
        times = paired({"one": alone, "packed": packed}, self.repeats, self.device)
        costs = [EncoderCost(self.model, length).encoder() for length in lengths]
        share = sum(costs) / max(costs)
        against = paired({"packed": packed, "espnet": padded}, self.espnet_repeats, self.device)
        row = {
            "padded_to": None,  # packed; ESPnet pads to the longest
            "flop_ratio": round(share / len(parts), 4),
            "time_ratio_vs_espnet": round(against.ratio("packed", "espnet"), 4),
            "share_of_work": round(share, 4),
            "time_over_share_of_work": round(times.ratio("packed", "one") / share, 4),
            "espnet_padded_over_ours": round(against.ratio("espnet", "packed"), 4),
        }
        self._add("ragged", dtype, list(parts), times, ("packed", "one"), packed, row)

    def gates(self, dtype: str, batch: int) -> None:
        """What LocalGP itself takes (all layers' predictors and their attention to the contexts) of the dense
        encoder's time. The inputs are noise of the layers' shape: what is decided is thrown away."""
        layout = Ragged([self.cost.frames] * batch, self.device)
        torch.manual_seed(self.seed)
        size, layers = self.cost.size, self.cost.layers
        policy = LocalGates(layers, size, self.model.frame_parts(), {"front": size}).to(self.device).eval()
        folded = FoldedLocalGates(policy)
        x_ND = torch.randn(layout.total, size, device=self.device)

        @torch.no_grad()
        def predict() -> None:
            memory = folded.begin([x_ND], layout.owner_N)
            for layer in range(layers):
                folded.gate(layer, x_ND, memory)

        dense = self.ours(self.features(batch), [self.frames] * batch, dtype)
        times = paired({"gates": predict, "dense": dense}, self.repeats, self.device)
        flops = folded.flops(layout.total) / (batch * self.cost.encoder())
        row = {
            "overhead_share": round(times.ratio("gates", "dense"), 4),
            "overhead_flop_share": round(flops, 5),
        }
        self._add("gates", dtype, [self.seconds] * batch, times, ("gates", "dense"), predict, row)

    def eighths(self, batch: int) -> None:
        """Weights in 8 bits against fp32."""
        feats_BSF, lengths = self.features(batch), [self.frames] * batch
        runs = {
            name: partial(PackedEncoder(self.model, dtype), feats_BSF, lengths)
            for name, dtype in (("int8", torch.int8), ("fp32", torch.float32))
        }
        times = paired(runs, self.repeats, self.device)
        own, exact = runs["int8"]().x, runs["fp32"]().x
        row = {
            "time_ratio": round(times.ratio("int8", "fp32"), 4),
            "relative_error": float(f"{float((own - exact).norm() / exact.norm()):.2g}"),
        }
        self._add("int8", "int8", [self.seconds] * batch, times, ("int8", "fp32"), runs["int8"], row)

    def profile(self, dtype: str) -> None:
        """Seconds by part of one utterance, ours and ESPnet's; a row for each part.

        ``of_product_rate`` is what the part's FLOPs take at the rate of a plain product over what it takes; above 1
        for a part that does with fewer.
        """
        feats_BSF, lengths = self.features(1), [self.frames]
        ours = our_seconds(self.ours(feats_BSF, lengths, dtype), self.espnet_repeats)
        theirs = reference_seconds(self.model, self.espnet(feats_BSF, lengths, dtype), self.espnet_repeats)
        shares = flop_shares(self.cost, self.model)
        parts = parts_of(self.model)
        total = sum(ours[part] for part in parts)
        rate = product_rate(self.cost.frames, self.cost.size, DTYPES[dtype], self.espnet_repeats)
        fastest = self.cost.encoder() / rate
        for part in (*parts, *([INSIDE] if INSIDE in ours else [])):
            row = make_row("profile", self.backbone, dtype, [self.seconds], self.seconds) | {
                "part": part,
                "seconds": round(ours[part], 5),
                "against": "espnet",
                "against_seconds": round(theirs[part], 5),
                "time_ratio_vs_espnet": round(ours[part] / theirs[part], 4),
                "time_share": round(ours[part] / total, 4),
                "flop_share": round(shares[part], 4),
                "of_product_rate": round(shares[part] * fastest / ours[part], 4),
            }
            self.rows.append(row)
            self._progress(
                f"profile {self.backbone} {dtype} {part}: {row['seconds']} s, ESPnet {row['against_seconds']} s, "
                f"{row['time_share']:.1%} of our time, {row['flop_share']:.1%} of the FLOPs"
            )

    def _feature_frames(self, seconds: float) -> int:
        return self.model.timeline.feature_frames(round(seconds * self.model.sample_rate))

    def _flop_ratio(self, kept: dict[str, float]) -> float:
        pruned = self.cost.encoder([kept] * self.cost.layers)
        return round(pruned / self.cost.encoder(), 4)

    def _add(
        self,
        measure: str,
        dtype: str,
        said: list[float],
        times: Paired,
        pair: tuple[str, str],
        run: Callable[[], Any],
        more: dict[str, Any],
    ) -> None:
        row = make_row(measure, self.backbone, dtype, said, self.seconds) | seconds_of(times, *pair) | more
        row |= saved_share(row)
        row["peak_mib"] = peak_mib(run, self.device)
        self.rows.append(row)
        self._progress(describe(row))


def make_row(
    measure: str, backbone: str, dtype: str, said: Sequence[float], padded_to: float
) -> dict[str, Any]:
    """The keys that every row of the encoder and of training has; None until measured, or where it does not apply.

    ``flop_ratio``: FLOPs of the run over those of the dense, padded encoder. ``overhead_share``: of the dense run's
    time, what is spent beyond ``flop_ratio`` (deciding, gathering, adding back).
    """
    return {
        "measure": measure,
        "backbone": backbone,
        "dtype": dtype,
        "batch": len(said),
        "seconds_of_audio": list(said),
        "padded_to": padded_to,
        "skipped": 0.0,
        "flop_ratio": None,
        "time_ratio_vs_dense": None,
        "time_ratio_vs_espnet": None,
        "overhead_share": None,
        "peak_mib": None,
    }


def seconds_of(times: Paired, over: str, under: str) -> dict[str, Any]:
    """Median seconds of a run and of what it alternated with."""
    return {
        "seconds": round(times.median(over), 5),
        "against": under,
        "against_seconds": round(times.median(under), 5),
    }


def against_dense(time_ratio: float, flop_ratio: float) -> dict[str, float]:
    """Figures of a gated run beside the dense one.

    Examples:
        >>> against_dense(0.82, 0.8)
        {'flop_ratio': 0.8, 'time_ratio_vs_dense': 0.82, 'overhead_share': 0.02}
    """
    found = {
        "flop_ratio": flop_ratio,
        "time_ratio_vs_dense": time_ratio,
        "overhead_share": time_ratio - flop_ratio,
    }
    return {name: round(value, 4) for name, value in found.items()}


def saved_share(row: dict[str, Any], ratio: str = "time_ratio_vs_dense") -> dict[str, float]:
    """Of the FLOPs skipped, the share that became time; ``ratio`` is where the row has that.

    Examples:
        >>> saved_share({"skipped": 0.3, "time_ratio_vs_dense": 0.82, "flop_ratio": 0.8})
        {'saved_flops_became_time': 0.9}
    """
    if not row["skipped"] or row["flop_ratio"] is None or row["flop_ratio"] >= 1:
        return {}
    return {"saved_flops_became_time": round((1 - row[ratio]) / (1 - row["flop_ratio"]), 3)}


def describe(row: dict[str, Any]) -> str:
    what = f"{row['measure']} {row['backbone']} {row['dtype']} x{row['batch']}"
    if row["skipped"]:
        what += f", {row['skipped']:.0%} skipped"
    figures = [f"{row['seconds']:.3f} s"]
    for name, said in (
        ("time_ratio_vs_dense", "of dense"),
        ("time_ratio_vs_espnet", "of ESPnet"),
        ("overhead_share", "of dense on top"),
    ):
        figures += [f"{row[name]} {said}"] if row[name] is not None else []
    return f"{what}: {', '.join(figures)} (FLOPs {row['flop_ratio']}, {row['peak_mib']} MiB)"


def bench_learnt(
    model: GatedS2T,
    batches: Sequence[tuple[Tensor, Tensor, dict[str, Tensor]]],
    *,
    backbone: str,
    name: str,
    seconds: float,
    seconds_of_audio: Sequence[float],
    dtype: str = "fp32",
    repeats: int = 5,
) -> dict[str, Any]:
    """Trained gates on real speech against the same encoder without gates, both packed.

    Args:
        model: With trained gates, in eval mode.
        batches: (speech (B, N), lengths (B,), contexts) of padded utterances.
        backbone, name: Of the run, for the row.
        seconds: Of a padded utterance.
        seconds_of_audio: Of every utterance, without padding.
    """
    device, policy = model.backbone.device, model.policy
    assert policy is not None
    encoder, learnt = PackedEncoder(model.backbone, DTYPES[dtype]), PackedGates(policy)
    with torch.no_grad():
        inputs = [(*model.features(speech, lengths), contexts) for speech, lengths, contexts in batches]

    @torch.no_grad()
    def run(gates: PackedGates | None) -> list[EncoderOutput]:
        return [encoder.encode(feats, ends, gates, contexts) for feats, ends, contexts in inputs]

    times = paired({"gated": lambda: run(learnt), "dense": lambda: run(None)}, repeats, device)
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
    row = make_row("learnt", f"{backbone} {name}", dtype, seconds_of_audio, seconds)
    row |= seconds_of(times, "gated", "dense") | {"batch": len(inputs[0][0])}
    row["skipped"] = round(1 - ran / there, 4)
    row |= against_dense(times.ratio("gated", "dense"), pruned / dense)
    return row | saved_share(row) | {"peak_mib": peak_mib(lambda: run(learnt), device)}
