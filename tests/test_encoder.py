"""The gated encoder against ESPnet's own, and its two paths against each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.encoder.run import Gathered, Masked, encode
from localgp.errors import BackboneError, ConfigError
from localgp.gates import EnergyGates, Gate, LocalGates, OpenGates, RandomGates
from tests.conftest import make_backbone

MODULES = ["ffn1", "attention", "ffn2"]


class FixedGates(nn.Module):
    """Gates given beforehand, (L, B, T) per module."""

    needs = ()

    def __init__(self, decisions: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.decisions = decisions

    def begin(self, contexts):
        return None

    def gate(self, layer, x, state):
        return {name: Gate(d[layer], d[layer]) for name, d in self.decisions.items()}


@pytest.mark.parametrize("path", ["masked", "gathered"])
@pytest.mark.parametrize("fast", [False, True])
def test_open_gates_equal_the_untouched_encoder(backbone, feats, path, fast):
    expected = alone(backbone.net.encoder, *feats)
    if fast:
        backbone = make_backbone()
        backbone.use_fast_kernels()
    output = encode(backbone, *feats, OpenGates(MODULES), path=path, ragged=True)
    assert output.lengths.tolist() == [len(x) for x in expected]
    for x, own in zip(output.x, expected, strict=True):
        assert (x[: len(own)] - own).abs().max() <= 1e-5


def alone(encoder, feats, lengths):
    """ESPnet's encoder, one utterance after the other: in a batch, what is behind one's end would reach it."""
    rows = zip(feats, lengths, strict=True)
    return [encoder(one[None, :length], length.view(1))[0][0] for one, length in rows]


def test_no_policy_equals_the_untouched_encoder(backbone, encoder, feats):
    same, lengths = feats[0], torch.full((3,), 240)
    output = encode(backbone, same, lengths)
    assert torch.equal(output.x, encoder(same, lengths)[0])
    assert output.gates == []


@pytest.mark.parametrize("fill", ["zero", "pair"])
@pytest.mark.parametrize("seed", range(4))
def test_gathered_equals_masked(backbone, encoder, feats, seed, fill):
    """Random gates on a ragged batch, with a module nothing runs in, one everything runs in, and one utterance
    without a frame."""
    generator = torch.Generator().manual_seed(seed)
    decisions = {name: (torch.rand(3, 3, 59, generator=generator) < 0.6).float() for name in MODULES}
    decisions["attention"][0] = 0.0
    decisions["ffn1"][1] = 1.0
    decisions["attention"][1, 2] = 0.0
    policy = FixedGates(decisions)
    policy.fill = fill
    masked = encode(backbone, *feats, policy, path="masked").x
    gathered = encode(backbone, *feats, policy, path="gathered").x
    assert masked.isfinite().all()
    assert (masked - gathered).abs().max() <= 1e-5
    assert (masked - encoder(*feats)[0]).abs().max() > 1e-2  # the gates did something


@pytest.mark.parametrize("kind", [Masked, Gathered])
def test_a_decision_for_a_whole_utterance_is_not_filled(kind):
    gate = torch.tensor([[1.0], [0.0]], requires_grad=True)
    x = torch.ones(2, 3, 1)
    y = kind({"part": Gate(gate, gate)}, filled=True).frames("part", lambda x: 2 * x, x)
    assert y.flatten().tolist() == [2.0] * 3 + [0.0] * 3
    y.sum().backward()
    assert gate.grad[0] == 6


def test_utterance_gates_skip_the_convolution_too(backbone, feats):
    decisions = {name: torch.tensor([[[1.0], [0.0], [1.0]]] * 3) for name in [*MODULES, "cgmlp"]}
    masked = encode(backbone, *feats, FixedGates(decisions), path="masked").x
    gathered = encode(backbone, *feats, FixedGates(decisions), path="gathered").x
    assert (masked - gathered).abs().max() <= 1e-5


def test_skipped_frames_are_not_computed(backbone, encoder, feats):
    """A frame that FFN1 would blow up on is never given to it."""
    seen = []
    handle = encoder.encoders[0].feed_forward_macaron.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[0])
    )
    try:
        encode(backbone, *feats, RandomGates(MODULES, 0.3).eval(), path="gathered")
    finally:
        handle.remove()
    assert seen == [3 * (59 - round(0.3 * 59))]


def test_a_skipped_frame_is_no_key(encoder, feats):
    """With FFNs, cgMLP and attention skipped on frame t, what t holds cannot reach the others through attention."""
    x = torch.randn(1, 12, 32)
    layer = encoder.encoders[0]
    gate = torch.ones(1, 12)
    gate[0, 5] = 0.0
    mask = torch.ones(1, 1, 12, dtype=torch.bool)
    changed = x.clone()
    changed[0, 5] += 10.0
    for kind in (Masked, Gathered):
        run = kind({"attention": Gate(gate, gate)})
        before, after = (
            run.attention("attention", lambda f, m: layer.attn(f, f, f, m), value, mask)
            for value in (x, changed)
        )
        torch.testing.assert_close(before, after)
        assert (before[0, 5] == 0).all()


@pytest.mark.parametrize("path", ["masked", "gathered"])
def test_gradients_reach_gates_and_backbone(backbone, encoder, feats, path):
    torch.manual_seed(0)
    policy = LocalGates(3, 32, MODULES, {"front": 32}, bias=0.5).train()
    output = encode(backbone, *feats, policy, path=path)
    output.x.square().mean().backward()
    try:
        for layer in policy.layers:
            for head in layer.heads.values():
                assert head.weight.grad.abs().sum() > 0
        assert policy.context_value.weight.grad.abs().sum() > 0
        assert encoder.encoders[0].feed_forward_macaron.w_1.weight.grad.abs().sum() > 0
    finally:
        encoder.zero_grad()


def test_closed_gates_get_a_gradient_on_the_masked_path_only(backbone, encoder, feats):
    """design of the two training paths: masked teaches a closed gate, gathered cannot."""
    grads = {}
    for path in ("masked", "gathered"):
        value = torch.zeros(3, 3, 59, requires_grad=True)
        policy = FixedGates({"ffn1": value})
        encode(backbone, *feats, policy, path=path).x.square().mean().backward()
        grads[path] = value.grad
        encoder.zero_grad()
    assert grads["masked"].abs().sum() > 0
    assert grads["gathered"] is None or grads["gathered"].abs().sum() == 0


def test_energy_gates_skip_the_quietest(backbone, feats):
    quiet = feats[0].clone()
    quiet[:, 120:] -= 20.0
    output = encode(backbone, quiet, feats[1], EnergyGates(["ffn1"], 0.4))
    mask = output.gates[0]["ffn1"].mask
    assert mask.sum(1).tolist() == [59 - round(0.4 * 59)] * 3
    assert mask[:, :28].all()


def test_speechprune_gates_skip_what_attention_ignores(backbone, encoder, feats):
    from localgp.gates import SpeechPruneGates
    from localgp.gates.binarised import binarised_attention_scores

    seen = []
    layer = encoder.encoders[0]
    handle = layer.norm_ff_macaron.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    try:
        gates = encode(
            backbone,
            *feats,
            SpeechPruneGates(MODULES, 0.4, backbone.branches("encoder", 0)["attention"]),
            path="masked",
        ).gates
    finally:
        handle.remove()
    mask = gates[0]["ffn1"].mask
    assert mask.sum(1).tolist() == [59 - round(0.4 * 59)] * 3
    assert torch.equal(mask, gates[2]["attention"].mask)  # decided once
    weights = layer.attn.linear_q.weight, layer.attn.linear_k.weight
    scores = binarised_attention_scores(layer.norm_mha(seen[0]), *weights, layer.attn.h, log=True)
    assert scores[mask].view(3, -1).min(1).values.ge(scores[~mask].view(3, -1).max(1).values).all()


def test_random_gates_do_not_depend_on_batch_mates(backbone, feats):
    policy = RandomGates(MODULES, 0.3, seed=5).eval()
    together = encode(backbone, *feats, policy).gates[1]["ffn2"].mask
    alone = encode(backbone, feats[0][1:2], feats[1][1:2], policy).gates[1]["ffn2"].mask
    assert torch.equal(together[1:2], alone)


def test_unsupported_backbones_are_named(encoder):
    from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

    with pytest.raises(BackboneError, match="ConformerEncoder, supported: EBranchformerEncoder"):
        make_backbone(ConformerEncoder(80, output_size=32, num_blocks=1, attention_heads=4))


def test_missing_context(backbone, feats):
    with pytest.raises(ConfigError, match="context 'spk', given: none"):
        encode(backbone, *feats, LocalGates(3, 32, MODULES, {"spk": 4}))


def test_an_unknown_path_is_refused(backbone, feats):
    with pytest.raises(ConfigError, match="path is 'fast'; valid: masked, gathered"):
        encode(backbone, *feats, path="fast")
