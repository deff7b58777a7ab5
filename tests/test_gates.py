"""The estimator, Algorithm 1 and the sparsity loss."""

from __future__ import annotations

import pytest
import torch

from localgp.errors import ConfigError
from localgp.gates import Gate, LocalGates, gumbel_gate
from localgp.gates.local import ContextMemory
from localgp.gates.rivals import TopKGates
from tests.conftest import distance


def test_inference_gate_is_the_thresholded_softmax():
    logits = torch.randn(5, 7, 2)
    probability = logits.softmax(-1)[..., 0]
    for threshold in (0.2, 0.5, 0.9):
        gate = gumbel_gate(logits, training=False, threshold=threshold)
        assert torch.equal(gate.value, (probability > threshold).float())


def test_training_gate_is_binary_and_samples_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([1.0, 0.0]).expand(20_000, 2)
    value = gumbel_gate(logits, training=True).value
    assert set(value.unique().tolist()) == {0.0, 1.0}
    # Gumbel-max draws from the softmax of the logits: sigmoid(1) = 0.731, standard error 0.003
    assert value.mean() == pytest.approx(0.7311, abs=0.015)


def test_temperature_shapes_the_gradient_and_not_the_decision():
    logits = torch.randn(1000, 2)
    values = []
    for temperature in (0.1, 5.0):
        torch.manual_seed(3)
        values.append(gumbel_gate(logits, training=True, temperature=temperature).value)
    assert torch.equal(*values)


def test_gradient_passes_straight_through():
    logits = torch.zeros(50, 2, requires_grad=True)
    gate = gumbel_gate(logits, training=True)
    gate.value.sum().backward()
    assert (logits.grad[:, 0] > 0).all()  # a higher "run" logit opens the gate
    assert torch.allclose(logits.grad[:, 0], -logits.grad[:, 1])


def test_context_attention_is_algorithm_1():
    """Against the algorithm written with the concatenated tensors it is stated in."""
    batch, frames, contexts, size = 2, 6, 3, 8
    x = torch.randn(batch, frames, size)
    keys, values = torch.randn(2, contexts, batch, frames, size)
    memory = ContextMemory()
    for key, value in zip(keys, values, strict=True):
        memory.append(key, value)
    key = torch.stack(list(keys), dim=2)  # (B, T, D^C, D)
    value = torch.stack(list(values), dim=2)
    weights = torch.softmax(x.unsqueeze(2) @ key.transpose(-1, -2), dim=-1)
    expected = (weights @ value).squeeze(2) + x
    torch.testing.assert_close(memory.attend(x), expected)


def test_cosine_attention_hears_short_keys():
    """A context a hundred times shorter than the layer's input: Algorithm 1 never sees it, cosine attention does."""
    batch, frames, size = 2, 6, 8
    x, spk = 100 * torch.randn(batch, frames, size), torch.randn(batch, 1, 5)
    moved = {}
    for attention in ("dot", "cosine"):
        gates = LocalGates(1, size, ["ffn1"], {"front": size, "spk": 5}, attention=attention).eval()
        memories = [gates.begin({"front": x, "spk": context}) for context in (spk, -spk)]
        moved[attention] = (memories[0].attend(x) - memories[1].attend(x)).abs().max().item()
    assert moved["dot"] < 1e-6
    assert moved["cosine"] > 1e-2


def test_unknown_attention_is_an_error():
    with pytest.raises(ConfigError, match="attention is 'cosin'; valid: dot, cosine"):
        LocalGates(1, 8, ["ffn1"], {"front": 8}, attention="cosin")


def test_cosine_attention_is_softmax_of_cosines():
    x, front, spk = torch.randn(2, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 1, 8)
    memory = ContextMemory("cosine")
    for key in (front, spk):
        memory.append(memory.key_of(key), key)
    scores = torch.stack([torch.cosine_similarity(x, key, dim=-1) for key in (front, spk)], dim=-1)
    weights = torch.softmax(scores, dim=-1)
    torch.testing.assert_close(memory.attend(x), weights[..., :1] * front + weights[..., 1:] * spk + x)


def test_layers_append_input_and_projection():
    gates = LocalGates(3, 8, ["ffn1", "ffn2"], {"front": 8, "spk": 5}).eval()
    memory = gates.begin({"front": torch.randn(2, 6, 8), "spk": torch.randn(2, 1, 5)})
    assert len(memory.keys) == 2
    assert memory.keys[1].shape == (2, 1, 8)  # aligned to D, not copied over frames
    inputs = torch.randn(3, 2, 6, 8)
    for layer, x in enumerate(inputs):
        decided = gates.gate(layer, x, memory)
        assert set(decided) == {"ffn1", "ffn2"}
        assert decided["ffn1"].value.shape == (2, 6)
    assert len(memory.keys) == 4  # the last layer appends nothing: nobody would read it
    assert memory.keys[2].data_ptr() == inputs[0].data_ptr()  # kept, not copied
    torch.testing.assert_close(memory.values[3], gates.layers[1].value(inputs[1]))


@pytest.mark.parametrize(
    "gates",
    [
        LocalGates(3, 8, ["ffn1", "ffn2"], {"front": 8}, bias=0.0, once=True),
        TopKGates(3, 8, ["ffn1", "ffn2"], 0.5, once=True),
    ],
)
def test_decided_once_is_the_first_layers_for_all_parts(gates):
    memory = gates.begin({"front": torch.randn(2, 6, 8)})
    first, *later = (gates.gate(layer, torch.randn(2, 6, 8), memory) for layer in range(3))
    assert set(first) == {"ffn1", "ffn2"}
    assert all(gate is first["ffn1"] for decided in (first, *later) for gate in decided.values())
    first["ffn1"].value.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.parameters())


def test_gates_start_open():
    gates = LocalGates(2, 16, ["attention"], {"front": 16}).eval()
    memory = gates.begin({"front": torch.randn(4, 30, 16)})
    assert gates.gate(0, torch.randn(4, 30, 16), memory)["attention"].mask.all()


def _gate(values: torch.Tensor) -> Gate:
    return Gate(values, values)


def test_sparsity_counts_frames_and_not_utterances():
    decisions = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    frames = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])  # a long utterance and a short one
    loss = distance(0.2, [{"ffn1": _gate(decisions)}], frames)
    assert loss == pytest.approx(0.0, abs=1e-6)  # 4 of 5 frames run


def test_global_target_lets_modules_differ():
    layers = [{"ffn1": _gate(torch.ones(1, 10)), "ffn2": _gate(torch.zeros(1, 10))}]
    frames = torch.ones(1, 10)
    assert distance(0.5, layers, frames, per="global") == pytest.approx(0.0, abs=1e-6)
    assert distance(0.5, layers, frames, per="module") == pytest.approx(0.75)


def test_planted_gates_are_recovered():
    """Half of the frames are worthless and say so in one feature; running any frame costs. The gates must close
    on those and stay open on the others."""
    torch.manual_seed(0)
    size = 8
    gates = LocalGates(1, size, ["ffn1"], {"front": size}, bias=2.0).train()
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.03)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(8, 40, size)
        useful = (torch.rand(8, 40) < 0.5).float()
        x[..., 0] = 4 * useful - 2
        return x, useful

    for _ in range(150):
        x, useful = draw()
        gate = gates.gate(0, x, gates.begin({"front": x}))["ffn1"]
        task = (useful * (1 - gate.value)).mean()  # the price of skipping a useful frame
        loss = task + distance(0.5, [{"ffn1": gate}], torch.ones(8, 40))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gates.eval()
    x, useful = draw()
    decided = gates.gate(0, x, gates.begin({"front": x}))["ffn1"].mask
    assert (decided == useful.bool()).float().mean() > 0.98


def test_global_gates_decide_once_per_utterance():
    from localgp.gates import GlobalGates

    gates = GlobalGates(3, 16, ["ffn1", "cgmlp"], bias=0.0).train()
    front = torch.randn(4, 9, 16)
    state = gates.begin({"front": front})
    decided = gates.gate(2, torch.randn(4, 9, 16), state)
    assert decided["cgmlp"].value.shape == (4, 1)
    distance(0.5, [decided], torch.ones(4, 9)).backward()
    assert gates.predictor[1].weight.grad.abs().sum() > 0
    assert GlobalGates(3, 16, ["ffn1"]).eval().begin({"front": front}).mask.all()  # starts open
