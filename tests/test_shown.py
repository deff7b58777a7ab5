"""What the decoder and the CTC are shown: the frames that the last gated layer ran on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localgp.decoder.train import MaskedTokens, decode_tokens
from localgp.encoder.run import encode
from localgp.encoder.shown import only, shown_by
from localgp.gates import Gate, LocalGates, OpenGates
from localgp.model import GatedS2T
from localgp.pruning import encoder_problems
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from tests.conftest import LAYERS, SIZE, make_backbone, make_encoder
from tests.decoding_helpers import PRIMER, espnet_search, make_model
from tests.test_model import batch, espnet  # noqa: F401 (fixtures)

MODULES = ["ffn1", "attention", "ffn2"]


def gate(*values: float) -> Gate:
    value = torch.tensor([values])
    return Gate(value, value)


def test_what_any_module_of_the_last_gated_layer_ran_on() -> None:
    own = torch.tensor([[True, True, True, True, False]])
    gates = [{"ffn1": gate(0, 0, 0, 0, 1)}, {"ffn1": gate(1, 0, 0, 0, 1), "ffn2": gate(0, 0, 1, 0, 1)}, {}]
    assert shown_by(gates, own).tolist() == [[1, 0, 1, 0, 0]]


def test_an_utterance_without_any_is_shown_whole() -> None:
    own = torch.tensor([[True, True, False], [True, True, True]])
    closed = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert shown_by([{"ffn1": Gate(closed, closed)}], own).tolist() == [[1, 1, 0], [0, 1, 0]]
    x, lengths = only(torch.arange(6.0).view(2, 3, 1), shown_by([{"ffn1": Gate(closed, closed)}], own))
    assert x.squeeze(2).tolist() == [[0, 1], [4, 0]]
    assert lengths.tolist() == [2, 1]


def gated(source: str, policy: nn.Module) -> GatedS2T:
    small = make_model(0, size=SIZE)
    backbone = make_backbone(make_encoder(), small.decoder, small.ctc)
    return GatedS2T(backbone, policy, source=source).eval()


def local() -> LocalGates:
    torch.manual_seed(0)
    policy = LocalGates(LAYERS, SIZE, ["ffn1", "ffn2"], {}, bias=-0.5)
    for layer in policy.layers:
        for head in layer.heads.values():
            nn.init.normal_(head.weight, std=0.3)
    return policy.eval()


@torch.no_grad()
def test_all_paths_show_the_same_and_the_search_sees_nothing_else() -> None:
    model = gated("kept", local())
    feats, lengths = (
        torch.randn(3, 240, 80, generator=torch.Generator().manual_seed(1)),
        torch.tensor([240] * 3),
    )
    outputs = [
        encode(model.backbone, feats, lengths, model.policy, path=path).showing("kept")
        for path in ("masked", "gathered")
    ]
    outputs.append(model.packed().encode_features(feats, lengths))
    (memory, counts), *others = [output.memory() for output in outputs]
    assert 0 < int(counts.min()) < int(counts.max()) < outputs[0].x.shape[1]
    for x, frames in others:
        assert torch.equal(frames, counts)
        assert (x - memory).abs().max() < 2e-5
    # As if the others were masked, which is what a decoder without positions of frames makes of it
    backbone, tokens = model.backbone, torch.tensor([[*PRIMER, 9, 10]] * 3)
    causal, seen = torch.ones(6, 6).tril().bool(), outputs[0].shown.bool().unsqueeze(1)
    x_QLD = backbone.embed(tokens)
    for index in range(backbone.shape.decoder_layers):
        run = MaskedTokens({})
        x_QLD = backbone.decoder_layer(index, x_QLD, causal.expand(3, -1, -1), outputs[0].x, seen, run)
    expected = backbone.output_layer(backbone.decoder_norm(x_QLD))
    found = decode_tokens(backbone, memory, counts, tokens, torch.tensor([6] * 3)).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    # And the search with its CTC prefix scores is ESPnet's over these frames alone
    options = DecodeOptions(beam=3, ctc_weight=0.3, maxlenratio=-8)
    small = make_model(0, size=SIZE)
    for u, nbest in enumerate(BeamSearch(backbone, options)(*outputs[2].memory(), [PRIMER] * 3)):
        theirs = espnet_search(small, memory[u, : counts[u]], PRIMER, options)
        assert nbest[0].tokens == theirs[0].yseq.tolist()
        assert nbest[0].score == pytest.approx(float(theirs[0].score), abs=1e-3)


def test_gates_learn_from_what_the_decoder_is_shown(batch) -> None:  # noqa: F811
    """A kept frame's gate gets a gradient through the decoder, of the very value that is shown."""
    value = torch.tensor([[1.0, 0.0, 1.0, 1.0]], requires_grad=True)
    x = torch.randn(1, 4, 8)
    memory, _ = only(x, shown_by([{"ffn2": Gate(value, value)}], torch.ones(1, 4, dtype=torch.bool)))
    assert torch.equal(memory[0], x[0, [0, 2, 3]])
    memory.square().sum().backward()
    expected = 2 * x.square().sum(2) * torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(value.grad, expected)


def test_open_gates_show_everything() -> None:
    model = gated("kept", OpenGates(MODULES))
    output = model.packed().encode_features(torch.randn(2, 120, 80), torch.tensor([120, 120]))
    memory, lengths = output.memory()
    assert torch.equal(memory, output.x)
    assert torch.equal(lengths, output.lengths)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (None, "no gates that keep; set pruning.encoder, or source=all"),
        ("global", "pruning.encoder=global decides of no frame by itself; valid with it: local"),
        ("atome", "pruning.encoder=atome decides"),
    ],
)
def test_gates_that_keep_no_frames_are_refused(encoder, message) -> None:
    pruning = {"encoder": encoder, "encoder_modules": ["ffn1"], "context": ["front"], "source": "kept"}
    assert any(message in problem for problem in encoder_problems(pruning | {"target": 0.3}))
