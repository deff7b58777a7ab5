"""What the gates did in an evaluation: kept ratios, and GFLOPs of exactly the frames and tokens that ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from localgp.backbones.cost import CONVENTION, DecoderCost, EncoderCost
from localgp.evaluation.decoder_gates_file import DecoderGateRecord, kept_of_tokens
from localgp.evaluation.gates_file import GateRecord
from localgp.gates.cost import gates_cost
from localgp.gates.reduce import Reduction

if TYPE_CHECKING:
    from localgp.model import GatedS2T
    from localgp.window import Window


def measured_ratios(
    gates: GateRecord | None, decoder_gates: DecoderGateRecord | None = None
) -> dict[str, Any]:
    """``kept`` and ``kept_real`` per module kind (share of all frames, and of those with signal), the same by
    layer, and the sparsity reached over all gated modules. Decoder modules count tokens, of which none is padding.

    Of ``sparsity``, ``skipped_that_is_padding`` answers how much of what the encoder's gates save a shorter input
    would save too; ``padding``, the share of all frames that is padding, is what it would be by chance.
    """
    found: dict[str, Any] = {"kept": {}, "kept_real": {}, "kept_layers": {}, "sparsity": None}
    sparsity: dict[str, float] = {}
    if gates is not None:
        every_LM, real_LM = gates.kept()
        for m, name in enumerate(f"encoder.{module}" for module in gates.modules):
            found["kept"][name] = _rounded(every_LM[:, m].mean())
            found["kept_real"][name] = _rounded(real_LM[:, m].mean())
            found["kept_layers"][name] = [_rounded(value) for value in every_LM[:, m]]
        own_UT = gates.own_mask()
        padding_UT = own_UT & ~gates.real_mask()
        skipped_ULMT = ~gates.open & own_UT[:, None, None, :]
        padded = int((skipped_ULMT & padding_UT[:, None, None, :]).sum())
        sparsity |= {
            "all_frames": _rounded(1 - every_LM.mean()),
            "real_frames": _rounded(1 - real_LM.mean()),
            "skipped_that_is_padding": _rounded(padded / max(1, int(skipped_ULMT.sum()))),
            "padding": _rounded(padding_UT.sum() / own_UT.sum()),
        }
    if decoder_gates is not None:
        kept_LM = kept_of_tokens(decoder_gates)
        for m, name in enumerate(f"decoder.{module}" for module in decoder_gates.modules):
            found["kept"][name] = found["kept_real"][name] = _rounded(kept_LM[:, m].mean())
            found["kept_layers"][name] = [_rounded(value) for value in kept_LM[:, m]]
        sparsity["decoder_tokens"] = _rounded(1 - kept_LM.mean())
    found["sparsity"] = sparsity or None
    return found


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def measured_gflops(
    model: GatedS2T,
    gates: GateRecord | None,
    decoder_gates: DecoderGateRecord | None = None,
    samples: Sequence[int] | None = None,
) -> dict[str, Any]:
    """GFLOPs of the encoder, averaged over the utterances decoded, each with the frames it really ran on, and,
    where the decoder has gates, of the decoder, averaged over best hypotheses.

    Args:
        samples: Heard of each utterance, in the order of the gates where there are some; None: the full window.
    """

    backbone, timeline = model.backbone, model.backbone.timeline
    full = EncoderCost(backbone, timeline.feature_frames(backbone.samples))
    dense = full.encoder()
    costs = {count: EncoderCost(backbone, timeline.feature_frames(count)) for count in set(samples or ())}
    own = [costs[count] for count in samples] if samples is not None else []
    pruned, gate_cost = dense, gates_cost(model.policy, full.frames)
    if own:
        pruned = float(np.mean([cost.encoder() for cost in own]))
        gate_cost = float(np.mean([gates_cost(model.policy, cost.frames) for cost in own]))
    if isinstance(model.policy, Reduction):
        pruned = float(np.mean([cost.shortened(model.policy.left(cost.frames)) for cost in own or [full]]))
    if gates is not None:
        kept_ULM = gates.open.sum(-1).astype(np.float64)
        counted = [
            cost.encoder([dict(zip(gates.modules, layer, strict=True)) for layer in kept_LM])
            for cost, kept_LM in zip(own or [full] * len(kept_ULM), kept_ULM, strict=True)
        ]
        pruned = float(np.mean(counted))
    encoder = pruned + gate_cost
    length = f"{backbone.padded_seconds:g} s" if model.window.is_full else _length(model.window)
    frames = full.frames
    if own:
        frames = round(float(np.mean([cost.frames for cost in own])))
    if model.source == "kept" and gates is not None:
        shown_U = gates.open[:, -1].any(1).sum(-1)
        frames = round(float(np.where(shown_U > 0, shown_U, frames).mean()))
    return {
        "encoder": round(encoder / 1e9, 6),
        "gates": round(gate_cost / 1e9, 6),
        "dense": round(dense / 1e9, 6),
        **_decoder_gflops(model, frames, full.frames, decoder_gates),
        "context": 0.0,
        "total": round(encoder / 1e9, 6),
        "convention": f"{CONVENTION}, {length}",
    }


def _length(window: Window) -> str:
    if not window.ragged:
        return str(window)
    return "each utterance at its own length" + (f" and {window.margin:g} s" if window.margin else "")


def _decoder_gflops(
    model: GatedS2T, frames: int, padded: int, record: DecoderGateRecord | None
) -> dict[str, float]:
    """``decoder`` and ``decoder_dense``: the same hypotheses, without their primers, with gates and the frames that the
    encoder gives on average; without gates and with the full window's."""

    policy = model.decoder_policy
    if record is None or policy is None or not len(record.lengths):
        return {}
    cost, without = DecoderCost(model.backbone, frames), DecoderCost(model.backbone, padded)
    ends = np.cumsum(record.lengths)
    gated, dense = [], []
    for end, count in zip(ends, record.lengths, strict=True):
        opened = record.open[end - count : end]
        deciding = gates_cost(policy, int(count), decoder=True)
        gated.append(cost.measured(opened, record.modules) + deciding)
        dense.append(without.measured(np.ones_like(opened), record.modules))
    return {
        "decoder": round(float(np.mean(gated)) / 1e9, 6),
        "decoder_dense": round(float(np.mean(dense)) / 1e9, 6),
    }
