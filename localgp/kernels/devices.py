"""Which kernels a device has besides PyTorch's own.

Whoever has a kernel in Triton asks `triton_on`, and has a version in PyTorch beside it: for reference, and for where
there is none.
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch

log = logging.getLogger(__name__)


def triton_on(device: torch.device) -> ModuleType | None:
    """`localgp.kernels.triton_kernels`, if they can be had on a device."""
    return compiled(device) if device.type == "cuda" else None


@functools.cache
def compiled(device: torch.device) -> ModuleType | None:
    """The same, found by compiling one, and said where it fails."""
    try:
        from localgp.kernels import triton_kernels
    except ImportError:  # Triton comes with PyTorch's CUDA builds only
        return None
    x_ND, index_K = torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
    try:  # the first kernel shows whether there is a compiler
        triton_kernels.gather_norm(x_ND, index_K, x_ND[0], x_ND[0], 1.0, torch.float32)
        triton_kernels.scatter_add(x_ND, index_K, x_ND)
    except Exception as error:  # whatever the tool chain raises
        log.warning(
            "Triton cannot compile here (%s: %s); PyTorch's own kernels are used, which are slower. Triton needs a C "
            "compiler, and a cache directory that can be written to.",
            type(error).__name__,
            str(error).strip().splitlines()[0] if str(error).strip() else "no message",
        )
        return None
    return triton_kernels
