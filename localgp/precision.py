"""Which arithmetic a device is good at."""

from __future__ import annotations

import torch

from localgp.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; valid: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch sees no CUDA device; use device=cpu")
    return torch.device(name)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AMX or AVX512-BF16); without them bf16 is several times slower
    than fp32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 only where the device multiplies it faster than fp32."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_multiplies_bf16()
        return torch.bfloat16 if fast else torch.float32
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name not in dtypes:
        raise ConfigError(f"precision is {name!r}; valid: auto, {', '.join(dtypes)}")
    return dtypes[name]
