"""Kernels beside their plain versions: these against plain indexing, Triton's against them, on a CPU interpreted."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import layer_norm

from localgp.gates.folded import decide
from localgp.kernels import kept as on_device
from localgp.kernels.kept import Kept, Reference
from localgp.kernels.ragged import Ragged
from localgp.kernels.rows import gather_norm, gather_norm_reference, scatter_add, scatter_add_reference
from tests.counting import plus_reference, times_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(7, 5), (48, 1), (1024, 6), (33, 0)]  # size, kept rows
LAYOUTS = {"one": [9], "ragged": [40, 1, 0, 7], "none": [0]}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
TYPES = [torch.float32, torch.bfloat16]
FACTORS = (
    TYPES if DEVICE == "cuda" else [torch.float32, torch.float16]
)  # the interpreter multiplies no bf16 matrices
ASKED = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def triton():
    """The Triton kernels: on a GPU as they are, on a CPU in Triton's interpreter, which has to be asked for before
    Triton is imported."""
    pytest.importorskip("triton", reason="this PyTorch comes without Triton")
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU; test_triton_in_the_interpreter runs this with TRITON_INTERPRET=1")
    from localgp.kernels import triton_kernels

    return triton_kernels


def test_triton_in_the_interpreter():
    pytest.importorskip("triton", reason="this PyTorch comes without Triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "triton_equals"]
    result = subprocess.run(command, env=os.environ | ASKED, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout, result.stdout[-3000:]
    assert "skipped" not in result.stdout, result.stdout[-3000:]


def draw(*shape: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def close(ours, theirs, dtype):
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def make(size: int, kept: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(9, size, generator=generator), torch.randn(kept, size, generator=generator)
    weight, bias = torch.randn(2, size, generator=generator)
    index = torch.randperm(9, generator=generator)[:kept]
    return tuple(value.to(DEVICE) for value in (x, index, y, weight, bias))


@pytest.mark.parametrize(("size", "kept"), CASES)
def test_references(size, kept):
    x, index, y, weight, bias = make(size, kept)
    normed = gather_norm(x, index, weight, bias, 1e-12, torch.float32)
    torch.testing.assert_close(normed, layer_norm(x[index], (size,), weight, bias, 1e-12))
    assert gather_norm(x, None, weight, bias, 1e-12, torch.bfloat16).dtype == torch.bfloat16
    expected = x.clone()
    expected[index] += 0.5 * y
    assert scatter_add(x, index, y, 0.5) is x
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_references_of_kept_rows(lengths):
    layout = Ragged(lengths)
    mask = torch.rand(layout.total, generator=torch.Generator().manual_seed(1)) < 0.6
    kept = Reference.compact(mask[None], layout)[0]
    ends = kept.ends_B1.tolist()
    assert kept.index_N[: ends[-1]].tolist() == mask.nonzero().squeeze(1).tolist()
    parts = [int(part.sum()) for part in mask.split(lengths)]
    assert [after - before for before, after in pairwise(ends)] == parts
    x, weight, bias, into = draw(layout.total, 8), draw(6, 8), draw(6), draw(layout.total, 6)
    expected = into.clone()
    expected[mask] += torch.nn.functional.linear(x[mask], weight, bias).relu()
    gathered = torch.cat([x[mask], x[~mask]])
    hidden = on_device.product(gathered, weight, bias, kept, "relu")
    one = torch.eye(6)
    close(on_device.product_to_rows(hidden, one, None, kept, into, add=True), expected, torch.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("size", "kept"), CASES)
def test_triton_equals_the_reference_for_rows(triton, size, kept, dtype):
    x, index, y, weight, bias = make(size, kept)
    for where, count in ((index, None), (None, None), (index, torch.tensor([kept // 2], device=DEVICE))):
        rows = slice(None if count is None else int(count))
        ours = triton.gather_norm(x, where, weight, bias, 1e-12, dtype, count)
        assert ours.dtype == dtype
        theirs = gather_norm_reference(x, where, weight, bias, 1e-12, dtype, count)
        close(ours[rows], theirs[rows], dtype)
    updated = triton.scatter_add(x.clone(), index, y.to(dtype), 0.5)
    close(updated, scatter_add_reference(x.clone(), index, y.to(dtype), 0.5), torch.float32)


@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_triton_equals_the_reference_for_lists(triton, lengths, share):
    layout = Ragged(lengths, DEVICE)
    masks = torch.rand(3, layout.total, device=DEVICE) < share
    for ours, theirs in zip(triton.compact(masks, layout), Reference.compact(masks, layout), strict=True):
        assert torch.equal(ours.ends_B1, theirs.ends_B1)
        count = int(theirs.count)
        assert torch.equal(ours.index_N[:count], theirs.index_N[:count])


@pytest.mark.parametrize("dtype", FACTORS)
@pytest.mark.parametrize("count", [0, 1, 70])
@pytest.mark.parametrize("activation", on_device.ACTIVATIONS)
def test_triton_equals_the_reference_for_products(triton, dtype, count, activation):
    rows, inputs, outputs = 70, 40, 72
    index = torch.randperm(rows, device=DEVICE).int()
    kept = Kept(index, torch.tensor([0, count], dtype=torch.int32, device=DEVICE), rows)
    x, weight, bias = (
        draw(rows, inputs, dtype=dtype),
        draw(outputs, inputs, dtype=dtype),
        draw(outputs, dtype=dtype),
    )
    weight = weight / math.sqrt(inputs)
    for given in (bias, None):
        ours = triton.product(x, weight, given, kept, activation)
        close(ours[:count], Reference.product(x, weight, given, kept, activation)[:count], dtype)
        into = draw(rows, 2 * outputs).chunk(2, dim=1)[1]
        for add in (True, False):
            mine, yours = (
                kernels.product_to_rows(x, weight, given, kept, into.clone(), add=add)
                for kernels in (triton, Reference)
            )
            close(mine, yours, dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("lengths", LAYOUTS.values(), ids=LAYOUTS)
def test_triton_equals_the_reference_for_convolutions(triton, dtype, lengths):
    layout = Ragged(lengths, DEVICE)
    weight, bias = draw(20, 7, dtype=dtype), draw(20, dtype=dtype)
    x, other = draw(layout.total, 20, dtype=dtype), draw(layout.total, 40, dtype=dtype).chunk(2, dim=1)[1]
    for given in (bias, None):
        ours, theirs = other.clone(), other.clone()
        triton.times(ours, x, weight, given, layout)
        times_reference(theirs, x, weight, given, layout)
        close(ours / 4, theirs / 4, dtype)
        halves = x[:, :8], x[:, 8:]
        ours, theirs = (f(*halves, weight, given, layout) for f in (triton.plus, plus_reference))
        close(ours / 4, theirs / 4, dtype)


@pytest.mark.parametrize("divisor", [1, 24])
def test_triton_equals_the_reference_for_decisions(triton, divisor):
    frames, size, layers, modules = 6, 24, 3, 3
    memories = [(draw(frames, 3, size), draw(frames, 3, layers, modules)) for _ in range(2)]
    for layer in range(layers):
        key, product = draw(frames, size) + layer, draw(frames, (layers - layer) * modules)
        pairs = zip((triton.decide, decide), memories, strict=True)
        ours, theirs = (of(layer, key, product, *kept, layer, 0.1, divisor) for of, kept in pairs)
        assert torch.equal(ours, theirs)
        assert 0 < theirs.float().mean() < 1
    for ours, theirs in zip(*memories, strict=True):
        close(ours, theirs, torch.float32)
