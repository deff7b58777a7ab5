"""Steps of fixed shapes: the same search, and nothing in a step that a CUDA graph could not hold."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from localgp.decoder import fixed
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import StepGates
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions
from tests.count_helpers import STEPS, check, device, gates  # noqa: F401 (a fixture)
from tests.decoding_helpers import PRIMER, make_memory, make_model

# ruff: noqa: F811 (fixtures)

PRIMERS = [PRIMER, [*PRIMER[:1], 9, *PRIMER], PRIMER, PRIMER, PRIMER]


def searches(backbone, **options):
    for kept in (False, True):
        decoder = CachedDecoder(backbone, fixed=kept)
        yield BeamSearch(backbone, DecodeOptions(**options), decoder)


@pytest.mark.parametrize("columns", [fixed.COLUMNS, 7])
@pytest.mark.parametrize("options", [{}, {"ctc_weight": 0.3}, {"beam": 1}, {"ranking": "transformers"}])
@pytest.mark.parametrize("kind", ["dense", "local", "global"])
def test_the_same_search(monkeypatch, kind, options, columns):
    """Of utterances that end one after the other, and with a cache that is full again and again."""
    monkeypatch.setattr(fixed, "COLUMNS", columns)
    backbone = make_model(3).backbone
    memory, lengths = make_memory(1, [40, 9, 23, 5, 31])
    policy = gates(kind, backbone, "decoder")
    decide = None
    found = []
    for search in searches(backbone, **{"beam": 4, **options}):
        if policy is not None:
            decide = StepGates(policy, {"front": memory.mean(1, keepdim=True)})
        found.append(search(memory, lengths, PRIMERS, decide))
    for expected, ours in zip(*found, strict=True):
        assert [one.tokens for one in ours] == [one.tokens for one in expected]
        for one, other in zip(ours, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)
            assert kind == "dense" or torch.equal(one.open_PLM, other.open_PLM)
    assert len({len(one[0].tokens) for one in found[0]}) > 2


@pytest.mark.parametrize("kind", ["dense", "local"])
def test_a_graph_is_recorded_again_where_memory_is_made_anew_alone(device, monkeypatch, kind):
    """With something that does what it recorded in place of a graph, which only a GPU has."""
    monkeypatch.setattr(fixed, "COLUMNS", 20)
    recorded, steps, step = [], [], fixed.FixedState.step

    def record(state):
        recorded.append((state._grid.rows.size, state._capacity))
        return SimpleNamespace(replay=state.body)

    monkeypatch.setattr(fixed.FixedState, "_recorded", record)
    monkeypatch.setattr(fixed.FixedState, "step", lambda *given: steps.append(1) or step(*given))
    backbone = make_model(3).backbone
    memory, lengths = make_memory(1, [40, 9, 23, 5, 31])
    policy = gates(kind, backbone, "decoder")
    expected, search = searches(backbone, beam=4)

    def found(search):
        decide = None if policy is None else StepGates(policy, {"front": memory.mean(1, keepdim=True)})
        return [[one.tokens for one in nbest] for nbest in search(memory, lengths, PRIMERS, decide)]

    theirs = found(expected)
    with device:
        device.put([backbone.net, memory, lengths, policy])
        assert found(BeamSearch(backbone, search.options, CachedDecoder(backbone, fixed=True))) == theirs
    assert {size for size, _ in recorded} == {20, 8, 4}  # five utterances, two, and one
    assert len(recorded) < len(steps) / 3  # a grid that is made anew, or a cache


# kind: launches of a layer, and of the rest of what a graph holds
BODY = {"dense": (16, 10), "local": (25, 10), "global": (28, 11)}


@pytest.mark.parametrize("kind", BODY)
def test_a_step_is_launches_alone_and_always_the_same(device, monkeypatch, kind):
    of_layer, rest = BODY[kind]
    backbone = make_model(0, eos_bias=-30.0).backbone
    memory = make_memory(0, [40, 40])[0]
    policy = gates(kind, backbone, "decoder")
    bodies, run = [], fixed.FixedState.body

    def counted(state):
        before = [counter.copy() for counter in (device.launches, device.waits, device.copies)]
        run(state)
        after = (device.launches, device.waits, device.copies)
        grid, places = state._grid, [tree.visible_RC for tree in state._fixed]
        places += [grid.x_RD, grid.hidden_RD, grid.parent_R, grid.open_RLM, state._used_1]
        places += [cache._stored for tree in state._fixed for cache in tree.caches]
        bodies.append(
            ([new - old for new, old in zip(after, before, strict=True)], [p.data_ptr() for p in places])
        )

    monkeypatch.setattr(fixed.FixedState, "body", counted)
    monkeypatch.setattr(fixed.FixedState, "graphs", False)  # there is nothing here to record them
    lengths, options = torch.tensor([40, 40]), DecodeOptions(beam=3, maxlenratio=-STEPS)
    with torch.no_grad(), device:
        device.put([backbone.net, memory, lengths, policy])
        search = BeamSearch(backbone, options, CachedDecoder(backbone, dtype=torch.bfloat16, fixed=True))
        decide = None if policy is None else StepGates(policy, {"front": memory.mean(1, keepdim=True)})
        device.reset()
        search(memory, lengths, [PRIMER] * 2, decide)
    assert len(bodies) == STEPS - 1
    device.launches, device.waits, copies = bodies[1][0]  # the first makes what is made once
    assert all(body == bodies[1] for body in bodies[1:])
    assert not copies
    check(device, backbone.shape.decoder_layers * of_layer + rest, 0)
