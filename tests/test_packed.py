"""The packed encoder against the reference path on the same weights, and its parts against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.encoder.packed import PackedEncoder, PackedGates
from localgp.encoder.run import encode
from localgp.errors import ConfigError
from localgp.gates import GlobalGates, LocalGates, OpenGates, RandomGates, SpeechPruneGates
from localgp.gates.folded import FoldedLocalGates
from localgp.kernels import ragged
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import Ragged, attend
from tests.conftest import LAYERS, SIZE, make_backbone
from tests.test_encoder import FixedGates

MODULES = ["ffn1", "attention", "ffn2"]
FRAMES = 59


@pytest.fixture
def full():
    """Three utterances of one length, as OWSM's are."""
    return torch.randn(3, 240, 80, generator=torch.Generator().manual_seed(2)), torch.tensor([240] * 3)


def random_decisions(seed: int) -> dict[str, torch.Tensor]:
    """Random gates with a module nothing runs in, one everything runs in, and one utterance without a frame."""
    generator = torch.Generator().manual_seed(seed)
    decisions = {name: (torch.rand(LAYERS, 3, FRAMES, generator=generator) < 0.6).float() for name in MODULES}
    decisions["attention"][0] = 0.0
    decisions["ffn1"][1] = 1.0
    decisions["attention"][1, 2] = 0.0
    return decisions


def local_gates(
    contexts: dict[str, int],
    seed: int = 0,
    threshold: float = 0.5,
    attention: str = "dot",
    once: bool = False,
) -> LocalGates:
    """Gates that decide by what they see, with each module open about half of the time."""
    torch.manual_seed(seed)
    policy = LocalGates(
        LAYERS, SIZE, MODULES, contexts, bias=0.0, threshold=threshold, attention=attention, once=once
    )
    for layer in policy.layers:
        for head in layer.heads.values():
            nn.init.normal_(head.weight, std=0.2)
    return policy.eval()


def packed(backbone, feats, lengths, policy=None, contexts=None, dtype=torch.float32):
    gates = None if policy is None else PackedGates(policy)
    return PackedEncoder(backbone, dtype).encode(feats, lengths, gates, contexts)


def test_dense_equals_the_untouched_encoder(backbone, encoder, full):
    output = packed(backbone, *full)
    expected, lengths, _ = encoder(*full)
    assert (output.x - expected).abs().max() <= 2e-5
    assert torch.equal(output.lengths, lengths)
    assert output.gates == []


@pytest.mark.parametrize("fill", ["zero", "pair"])
@pytest.mark.parametrize("seed", range(3))
def test_random_gates_equal_the_reference(backbone, full, seed, fill):
    policy = FixedGates(random_decisions(seed)).eval()
    policy.fill = fill
    expected = encode(backbone, *full, policy, path="masked")
    output = packed(backbone, *full, policy)
    assert (output.x - expected.x).abs().max() <= 2e-5
    for ours, theirs in zip(output.gates, expected.gates, strict=True):
        assert all(torch.equal(ours[name].value, theirs[name].value) for name in MODULES)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_open_and_none_open(backbone, full, share):
    policy = FixedGates({name: torch.full((LAYERS, 3, FRAMES), share) for name in MODULES}).eval()
    expected = encode(backbone, *full, policy, path="masked").x
    assert (packed(backbone, *full, policy).x - expected).abs().max() <= 2e-5


def test_utterance_gates_skip_the_convolution_too(backbone, full):
    decisions = {name: torch.tensor([[[1.0], [0.0], [1.0]]] * LAYERS) for name in [*MODULES, "cgmlp"]}
    policy = FixedGates(decisions).eval()
    expected = encode(backbone, *full, policy, path="masked")
    output = packed(backbone, *full, policy)
    assert (output.x - expected.x).abs().max() <= 2e-5
    assert torch.equal(output.gates[0]["cgmlp"].value, expected.gates[0]["cgmlp"].value)


def test_global_gates(backbone, full):
    torch.manual_seed(0)
    policy = GlobalGates(LAYERS, SIZE, [*MODULES, "cgmlp"], bias=0.0).eval()
    nn.init.normal_(policy.predictor[-1].weight, std=2.0)
    expected = encode(backbone, *full, policy, path="gathered")
    output = packed(backbone, *full, policy)
    skipped = [1 - gates[name].value.mean() for gates in expected.gates for name in gates]
    assert 0 < sum(skipped) < len(skipped)
    assert (output.x - expected.x).abs().max() <= 2e-5


@pytest.mark.parametrize(
    ("sizes", "threshold"), [({}, 0.5), ({"front": SIZE}, 0.5), ({"front": SIZE, "spk": 6, "event": 5}, 0.7)]
)
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("attention", ["dot", "cosine"])
def test_folded_gates_decide_as_local_gates(backbone, full, sizes, threshold, attention, once):
    """Frame-wise contexts, one that is the same for an utterance, and one of another length."""
    contexts = {"spk": torch.randn(3, 1, 6), "event": torch.randn(3, 50, 5)}
    policy = local_gates(sizes, threshold=threshold, attention=attention, once=once)
    expected = encode(backbone, *full, policy, contexts, path="gathered")
    output = packed(backbone, *full, policy, contexts)
    values = torch.stack([gates[name].value for gates in expected.gates for name in MODULES])
    assert 0.05 < values.mean() < 0.95
    for ours, theirs in zip(output.gates, expected.gates, strict=True):
        assert all(torch.equal(ours[name].value, theirs[name].value) for name in MODULES)
    assert (output.x - expected.x).abs().max() <= 2e-5


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_folded_gates_at_the_ends_of_the_threshold(threshold):
    policy = local_gates({}, threshold=threshold)
    folded = FoldedLocalGates(policy)
    memory = folded.begin([], torch.zeros(4, dtype=torch.long))
    assert (folded.gate(0, torch.randn(4, SIZE), memory) == (threshold == 0.0)).all()


@pytest.mark.parametrize("kind", ["dense", "local", "filled", "random", "speechprune", "global"])
def test_ragged_equals_each_utterance_alone(backbone, feats, kind):
    values, lengths = feats
    contexts = {"spk": torch.randn(3, 1, 6), "event": torch.randn(3, 70, 5)}
    policy = {
        "dense": lambda: None,
        "local": lambda: local_gates({"front": SIZE, "spk": 6, "event": 5}),
        "filled": lambda: local_gates({"front": SIZE, "spk": 6, "event": 5}),
        "random": lambda: RandomGates(MODULES, 0.4).eval(),
        "speechprune": lambda: SpeechPruneGates(
            MODULES, 0.4, backbone.branches("encoder", 0)["attention"]
        ).eval(),
        "global": lambda: GlobalGates(LAYERS, SIZE, MODULES).eval(),
    }[kind]()
    if kind == "filled":
        policy.fill = "pair"
    together = packed(backbone, values, lengths, policy, contexts)
    for b, length in enumerate(lengths.tolist()):
        own = {name: value[b : b + 1] for name, value in contexts.items()}
        alone = encode(backbone, values[b : b + 1, :length], lengths[b : b + 1], policy, own, path="masked")
        frames = int(alone.lengths)
        assert int(together.lengths[b]) == frames == alone.x.shape[1]
        assert (together.x[b, :frames] - alone.x[0]).abs().max() <= 2e-5
        assert (together.x[b, frames:] == 0).all()
        for ours, theirs in zip(together.gates, alone.gates, strict=True):
            for name, gate in ours.items():
                assert torch.equal(gate.value[b, :frames], theirs[name].value[0])


def test_padding_does_not_reach_the_result(backbone, feats):
    values, lengths = feats
    changed = values.clone()
    changed[1, 170:] = 1e3
    before, after = (packed(backbone, v, lengths).x for v in (values, changed))
    assert torch.equal(before, after)


def test_bf16_is_close(full):
    """Within a few roundings of bf16, and about as close to fp32 as ESPnet's under autocast."""
    backbone = make_backbone()  # its own: ESPnet rounds the positions it keeps when it runs in bf16
    policy = FixedGates(random_decisions(0)).eval()
    exact = encode(backbone, *full, policy, path="masked").x.detach()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = packed(backbone, *full, policy, dtype=torch.bfloat16).x
        theirs = encode(backbone, *full, policy, path="masked").x
    assert ours.dtype == torch.float32
    error = (ours - exact).abs().mean()
    assert 0 < error <= 0.02
    assert error <= 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("fused", [False, True])
def test_made_anew_after_weights_changed(full, fused):
    """Whatever changed them: a fused optimizer leaves no trace of it on the tensors."""
    backbone = make_backbone()
    before = packed(backbone, *full).x
    optimizer = torch.optim.Adam(backbone.net.encoder.parameters(), lr=1e-2, fused=fused)
    encode(backbone, *full, path="masked").x.square().mean().backward()
    optimizer.step()
    after = packed(backbone, *full).x
    assert (after - before).abs().max() > 1e-3
    assert (after - encode(backbone, *full, path="masked").x).abs().max() <= 2e-5


def test_training_and_too_short_utterances_are_refused(full):
    backbone = make_backbone()
    with pytest.raises(ConfigError, match="6 feature frames; valid: 7 or more"):
        packed(backbone, full[0], torch.tensor([240, 6, 240]))
    with pytest.raises(
        ConfigError, match="packed encoding is for inference, but the gates.*'masked' or 'gathered'"
    ):
        packed(backbone, *full, RandomGates(MODULES, 0.3).train())
    backbone.net.train()
    with pytest.raises(ConfigError, match="packed encoding is for inference, but the encoder"):
        PackedEncoder(backbone)


def test_frame_gates_of_the_convolution_are_refused():
    with pytest.raises(ConfigError, match="cgmlp can only be gated per utterance"):
        LayerPlan({"cgmlp": torch.ones(5, dtype=torch.bool)}, Ragged([3, 2]), ["cgmlp"])


def test_options_of_the_convolutional_gating(full):
    """A linear layer and an activation after the convolution, and norms of queries and keys."""
    from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

    torch.manual_seed(3)
    encoder = EBranchformerEncoder(
        80,
        output_size=32,
        attention_heads=4,
        attention_layer_type="selfattn",
        pos_enc_layer_type="abs_pos",
        cgmlp_linear_units=64,
        cgmlp_conv_kernel=7,
        use_linear_after_conv=True,
        gate_activation="swish",
        linear_units=48,
        ffn_activation_type="relu",
        num_blocks=2,
        use_ffn=True,
        macaron_ffn=True,
        merge_conv_kernel=5,
        qk_norm=True,
    ).eval()
    assert (packed(make_backbone(encoder), *full).x - encoder(*full)[0]).abs().max() <= 2e-5


def test_where_pytorch_lacks_onednn(backbone, encoder, full, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    output = PackedEncoder(backbone)(full[0], full[1].tolist())
    assert (output.layout.unpack(output.x) - encoder(*full)[0]).abs().max() <= 2e-5


def test_no_attention_across_utterances():
    layout = Ragged([5, 1, 0, 9])
    torch.manual_seed(0)
    qkv = torch.randn(15, 3, 2, 4)
    attended = attend(qkv, layout)
    for segment in layout.segments():
        query, key, value = qkv[segment].permute(1, 2, 0, 3)
        scores = torch.softmax(query @ key.transpose(1, 2) / 2.0, dim=-1)
        torch.testing.assert_close(attended[segment], (scores @ value).transpose(0, 1).flatten(1))


def test_attention_by_products_where_the_fused_one_is_slow(monkeypatch):
    """bf16 without AMX; short utterances stay with the fused kernel."""
    monkeypatch.setattr(ragged, "cpu_multiplies_bf16", lambda: True)
    long = ragged.LONG // 16
    layout = Ragged([long, 40, long + 1])
    torch.manual_seed(0)
    qkv = torch.randn(layout.total, 3, 2, 16).bfloat16()
    fused, outputs = [], {}
    attention = nn.functional.scaled_dot_product_attention

    def count(*args):
        fused.append(args[0].shape[2])
        return attention(*args)

    monkeypatch.setattr(ragged.F, "scaled_dot_product_attention", count)
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        outputs[amx] = attend(qkv, layout)
    assert fused == [long, 40, long + 1, 40]
    assert not torch.equal(outputs[True], outputs[False])
    exact = attend(qkv.float(), layout)
    errors = {amx: (output.float() - exact).abs().mean() for amx, output in outputs.items()}
    assert 0 < errors[False] <= 3 * errors[True] <= 0.01


def test_ragged_layout_round_trip():
    layout = Ragged([2, 0, 3])
    x = torch.arange(15.0).view(3, 5, 1)
    packed = layout.pack(x)
    assert packed.flatten().tolist() == [0, 1, 10, 11, 12]
    assert layout.owner_N.tolist() == [0, 0, 2, 2, 2]
    assert layout.frame_N.tolist() == [0, 1, 0, 1, 2]
    assert layout.unpack(packed)[..., 0].tolist() == [[0, 1, 0], [0, 0, 0], [10, 11, 12]]


def test_open_gates_equal_no_gates(backbone, full):
    gated = packed(backbone, *full, OpenGates(MODULES).eval()).x
    assert torch.equal(gated, packed(backbone, *full).x)
