"""Weights in 8 bits: how far a product, an encoder and a decoder are from fp32, and where they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from localgp.backbones.blocks import SOME, PackedAttention, PackedFeedForward
from localgp.bench.decoder import DecoderBench
from localgp.bench.rows import settings
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import GateState
from localgp.errors import ConfigError
from localgp.kernels import ragged
from localgp.kernels.int8 import Weight8
from localgp.kernels.linear import _PLAIN, LEAST, Linear
from localgp.kernels.ragged import LONG, Ragged
from localgp.model import GatedS2T
from localgp.precision import resolve_precision, why_no_int8
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from localgp.search.steps import Search
from localgp.search.topk import likeliest
from localgp.settings import SCHEMA
from tests.decoding_helpers import PRIMER, make_memory, make_model
from tests.scripts_as_modules import script

CPU = torch.device("cpu")
multiplies = pytest.mark.skipif(why_no_int8(CPU) is not None, reason=str(why_no_int8(CPU)))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@multiplies
@pytest.mark.parametrize("rows", [1, 5, 40, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (768, 100), (3072, 30)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_within_its_bound(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    """Each factor is off by half a step at most, a step being 1 / 127 of the largest number; normal numbers have it at
    4 deviations, and so a hundredth is lost in all."""
    draw = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, inputs, generator=draw), torch.randn(outputs, inputs, generator=draw)
    x[rows // 2] *= 1000.0  # a row's scale is its own
    added = torch.randn(outputs, generator=draw) if bias else None
    found, expected = Weight8(weight, added)(x), torch.nn.functional.linear(x, weight, added)
    half_x, half_weight = (factor.abs().amax(1, keepdim=True) / 254 for factor in (x, weight))
    bound = half_x * weight.abs().sum(1) + x.abs().sum(1, keepdim=True) * half_weight.T
    assert ((found - expected).abs() <= 1.01 * bound + inputs * half_x * half_weight.T).all()
    x, found, expected = (part[torch.arange(rows) != rows // 2] for part in (x, found, expected))
    assert rows == 1 or 0.003 < relative(found, expected) < 0.015


@multiplies
@pytest.mark.parametrize("activation", sorted(LEAST))
@pytest.mark.parametrize("bias", [True, False])
def test_behind_an_activation_all_levels_are_used(activation: str, bias: bool) -> None:
    """Outputs of an activation have half of the error that they would have as any numbers."""
    x = _PLAIN[activation](3 * torch.randn(50, 256, generator=torch.Generator().manual_seed(0)))
    assert LEAST[activation] - 0.01 < x.min()
    assert x.min() >= LEAST[activation]
    weight, added = torch.randn(80, 256), torch.randn(80) if bias else None
    expected = torch.nn.functional.linear(x, weight, added)
    weights = torch.round(weight / weight.abs().amax(1, True) * 127) * weight.abs().amax(1, True) / 127
    rounded = torch.nn.functional.linear(x, weights, added)  # the weights' part of the error
    found, others = (Linear(weight, added, torch.int8, behind=of)(x) for of in (activation, "none"))
    assert relative(found, rounded) < 0.7 * relative(others, rounded)
    assert relative(found, expected) < 0.015


@multiplies
def test_a_row_does_not_depend_on_the_others() -> None:
    x, weight = torch.randn(7, 96), Weight8(torch.randn(20, 96), torch.randn(20))
    together = weight(x)
    assert all(torch.equal(weight(x[n : n + 1])[0], together[n]) for n in range(7))
    assert torch.equal(weight(x.view(7, 1, 96))[:, 0], together)


@multiplies
def test_zeros_stay_zeros() -> None:
    weight_OI, x, bias = torch.randn(4, 8), torch.randn(3, 8), torch.randn(4)
    weight_OI[1], x[2] = 0.0, 0.0
    found = Weight8(weight_OI, bias)(x)
    assert found.isfinite().all()
    assert torch.equal(found[2], bias)
    assert torch.equal(found[:, 1], bias[1].expand(3))


@multiplies
@pytest.mark.parametrize("activation", ["none", "relu", "swish", "gelu"])
def test_a_layer_keeps_its_activation_and_a_quarter_of_its_bytes(activation: str) -> None:
    weight, bias, x = torch.randn(256, 512), torch.randn(256), torch.randn(9, 512)
    eighth, whole = (Linear(weight, bias, dtype, activation) for dtype in (torch.int8, torch.float32))
    assert relative(eighth(x), whole(x)) < 0.02
    assert relative(eighth.add(x, whole(x)), whole.add(x, whole(x))) < 0.02
    assert 0.25 < eighth.nbytes / whole.nbytes < 0.26


@multiplies
@pytest.mark.parametrize("kept", [None, 150])
def test_parts_of_an_encoder_layer_are_near_those_in_fp32(kept: int | None) -> None:
    """With more frames than an FFN takes at a time, and than attention has in fp32: a hundredth for each product, and
    2 ** -8 for each of attention's factors."""
    draw = torch.Generator().manual_seed(0)
    branches = make_model(0).backbone.branches("encoder", 0)
    size, heads = branches["attention"].linears[0].in_features, branches["attention"].heads
    frames = max(SOME + 40, 1 + LONG // (size // heads))
    x = torch.randn(frames, size, generator=draw)
    where = None if kept is None else torch.randperm(frames, generator=draw)[: frames - kept].sort().values
    layout = Ragged([frames if where is None else len(where)])
    attended, fed = [], []
    for dtype in (torch.float32, torch.int8):
        attended.append(PackedAttention(branches["attention"], dtype)(x, where, layout))
        y = x.clone()
        PackedFeedForward(branches["ffn1"], dtype).add_to(y, where)
        fed.append(y - x)
    assert 0.001 < relative(attended[1], attended[0]) < 0.03
    assert 0.001 < relative(fed[1], fed[0]) < 0.03


@pytest.mark.parametrize("scores", [1 << 12, 1 << 16, 1 << 20])
def test_attention_by_products_is_attention(monkeypatch, scores: int) -> None:
    """However many queries at a time; 3 x 2 ** -8 is what rounding queries, keys, weights and values to bf16 costs."""
    monkeypatch.setattr(ragged, "SCORES", scores)
    qkv = torch.randn(133, 3, 4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    query, key, value = qkv.double().permute(1, 2, 0, 3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1)
    assert relative(ragged._attend_by_products(qkv).double(), expected) < 3 * 2**-8


@multiplies
@pytest.mark.parametrize("gated", [False, True])
def test_a_step_is_near_that_in_fp32(gated: bool) -> None:
    model, (memory, lengths) = make_model(0), make_memory(0, [9, 14, 11])

    def gates(layer: int, x_ND: torch.Tensor, state: GateState) -> dict[str, torch.Tensor]:
        return {"self_attention": state.position_N % 2 == 0, "ffn": state.utterance_N != 1}

    logits = []
    for dtype in (torch.float32, torch.int8):
        decoder = CachedDecoder(model.backbone, dtype=dtype)
        _, hidden = decoder.start(memory, lengths, [PRIMER] * 3, gates if gated else None)
        logits.append(decoder.logits(hidden))
    expected, found = logits
    assert 0.001 < relative(found, expected) < 0.04


@multiplies
def test_the_embedded_backbone_writes_nearly_the_same() -> None:
    """From samples to tokens. Of other hypotheses a near tie fell the other way; ten in a hundred words differ at
    most."""
    tool = script("compare_with_espnet")
    items = tool.generate(24)
    expected, found = (tool.our_result(items, 5, 0.0, precision, 16) for precision in ("fp32", "int8"))
    for ours, theirs in zip(found.memory, expected.memory, strict=True):
        assert relative(ours, theirs) < 0.02
    assert tool.differences(found, expected)["identical"] >= 19


@multiplies
@pytest.mark.parametrize(("beam", "ctc_weight"), [(1, 0.0), (5, 0.0), (5, 0.3)])
def test_an_output_layer_in_8_bits_writes_what_fp32_writes(beam: int, ctc_weight: float) -> None:
    """On the embedded backbone, everything before it being in fp32: candidates have the scores of fp32 weights, and
    nothing but the normaliser knows of the others."""
    tool = script("compare_with_espnet")
    items, backbone = tool.generate(12), tool._backbone()
    primers = tool._primers(items, backbone.tokenizer)
    model = GatedS2T(backbone).eval()
    speech = tool.pad([item.samples for item in items], backbone.samples)
    encoded = model.packed().encode(speech, torch.full((len(speech),), backbone.samples))
    whole, eighth = CachedDecoder(backbone), CachedDecoder(backbone)
    rough = CachedDecoder(backbone, dtype=torch.int8)
    eighth._output, eighth._exact = rough._output, rough._exact
    options = DecodeOptions(beam=beam, ctc_weight=ctc_weight, nbest=beam)
    expected, found = (
        BeamSearch(backbone, options, decoder)(encoded.x, encoded.lengths, primers)
        for decoder in (whole, eighth)
    )
    assert [[h.tokens for h in nbest] for nbest in found] == [[h.tokens for h in nbest] for nbest in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0].score == pytest.approx(theirs[0].score, abs=0.02)


@multiplies
def test_the_decoders_benchmark_takes_it() -> None:
    wanted = settings("decoder", utterances=[1], steps=3, skipped=[0.5], dtypes=["int8"], repeats=1)
    bench = DecoderBench(make_model(0).backbone, "tiny", wanted)
    bench.frames = 15
    rows = bench.measure()
    assert {row["measure"] for row in rows} == {
        "profile",
        "kept",
        "pruned",
    }  # ESPnet has no 8 bits to compare with
    assert {row["dtype"] for row in rows} == {"int8"}


@multiplies
def test_candidates_have_exact_scores_and_are_the_best() -> None:
    draw = torch.Generator().manual_seed(3)
    x_ND, weight_VD = torch.randn(6, 96, generator=draw), torch.randn(3000, 96, generator=draw)
    exact_NV = x_ND @ weight_VD.T
    exact_NV[:, 7] = float("-inf")
    rough_NV = Weight8(weight_VD, None)(x_ND)
    normalizer_N1 = rough_NV.logsumexp(1, keepdim=True)
    rough_NV[:, 7] = float("-inf")
    score_NK, labels_NK, normalizer_N1 = likeliest(
        rough_NV, normalizer_N1, 5, lambda labels: (x_ND @ weight_VD.T).gather(1, labels)
    )
    expected_NK, best_NK = exact_NV.topk(5, dim=1)
    assert torch.equal(labels_NK, best_NK)
    torch.testing.assert_close(score_NK, expected_NK)
    wanted_N1 = (x_ND @ weight_VD.T).logsumexp(1, keepdim=True)
    assert (normalizer_N1 - wanted_N1).abs().max() < 0.05


def test_the_output_layer_is_given_living_hypotheses_alone(monkeypatch) -> None:
    rows: list[tuple[int, int]] = []
    original = Search._likely_labels

    def spied(self: Search):
        rows.append((len(self._hidden_ND), int(sum(self._rows.counts))))
        return original(self)

    monkeypatch.setattr(Search, "_likely_labels", spied)
    model, (memory, lengths) = make_model(0), make_memory(0, [9, 14, 11])
    BeamSearch(model.backbone, DecodeOptions(beam=5))(memory, lengths, [PRIMER] * 3)
    assert rows[0] == (3, 3)
    assert all(given == living <= 15 for given, living in rows)
    assert rows[-1][0] < 15


def test_whisper_in_8_bits(tmp_path: Path) -> None:
    from localgp.backbones import open_backbone
    from tests.whisper_helpers import save_tiny_whisper

    if why_no_int8(CPU):
        pytest.skip(str(why_no_int8(CPU)))
    path = save_tiny_whisper(tmp_path, init_std=0.05)
    backbone = open_backbone({"name": "path", "path": str(path), "weights": "pretrained"})
    backbone.net.eval()
    speech = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))
    outputs = [
        GatedS2T(backbone).eval().packed(dtype).encode(speech, torch.tensor([16_000, 9000])).x
        for dtype in (torch.float32, torch.int8)
    ]
    assert 0 < relative(outputs[1], outputs[0]) < 0.03


@pytest.mark.parametrize(
    ("device", "engines", "vnni", "message"),
    [
        ("cuda", ["fbgemm"], True, "is for CPUs, and the device is cuda"),
        ("cpu", ["qnnpack"], True, "needs FBGEMM"),
        ("cpu", ["fbgemm"], False, "needs a CPU with AVX512-VNNI"),
    ],
)
def test_refused_where_it_cannot_be_multiplied(monkeypatch, device, engines, vnni, message) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", engines)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni, raising=False)
    with pytest.raises(ConfigError, match=f"precision=int8 {message}.*; use precision=auto or fp32"):
        resolve_precision("int8", torch.device(device))


def test_a_precision_of_inference() -> None:
    assert SCHEMA["decode.precision"].rule.accepts("int8")
    assert not SCHEMA["training.precision"].rule.accepts("int8")
