"""The row kernels: PyTorch's version against plain indexing, and Triton's against PyTorch's in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import layer_norm

from localgp.kernels.rows import gather_norm, gather_norm_reference, scatter_add, scatter_add_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(7, 5), (48, 1), (1024, 6), (33, 0)]  # size, kept rows


@pytest.fixture
def triton_rows():
    """The Triton kernels: on a GPU as they are, on a CPU in Triton's interpreter, which has to be asked for before
    Triton is imported."""
    pytest.importorskip("triton", reason="this PyTorch comes without Triton")
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU; test_triton_in_the_interpreter runs this with TRITON_INTERPRET=1")
    from localgp.kernels import triton_rows

    return triton_rows


def test_triton_in_the_interpreter():
    pytest.importorskip("triton", reason="this PyTorch comes without Triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", "equals"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"{2 * len(CASES)} passed" in result.stdout, result.stdout[-3000:]


def make(size: int, kept: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(9, size, generator=generator), torch.randn(kept, size, generator=generator)
    weight, bias = torch.randn(2, size, generator=generator)
    return x, torch.randperm(9, generator=generator)[:kept], y, weight, bias


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "kept"), CASES)
def test_triton_equals_the_reference(triton_rows, size, kept, dtype):
    x, index, y, weight, bias = (value.to(DEVICE) for value in make(size, kept))
    ours = triton_rows.gather_norm(x, index, weight, bias, 1e-12, dtype)
    theirs = gather_norm_reference(x, index, weight, bias, 1e-12, dtype)
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    updated = triton_rows.scatter_add(x.clone(), index, y.to(dtype), 0.5)
    torch.testing.assert_close(updated, scatter_add_reference(x.clone(), index, y.to(dtype), 0.5))
