"""Which arithmetic a device is good at, and what of PyTorch's defaults for it does not suit us."""

from __future__ import annotations

import torch

from localgp.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        ConfigError: CUDA where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch sees no CUDA device; use device=cpu")
    if name == "cuda":
        prepare_cuda()
    return torch.device(name)


def prepare_cuda() -> None:
    """Sets what PyTorch leaves otherwise, for the whole process.

    - fp32 is fp32: by default cuDNN's convolutions round their inputs to TF32, and a "fp32" encoder is 3e-4 off.
      ``precision=tf32`` asks for that, in products too.
    - No cuDNN attention: it plans anew for every number of frames, which gates change at every step, and a plan takes
      longer than the encoder. The other fused kernels need none.
    """
    _allow_tf32(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 instructions (AMX or AVX512-BF16); without them bf16 is several times slower
    than fp32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def why_no_int8(device: torch.device) -> str | None:
    """What keeps a device from multiplying in 8 bits as `localgp.kernels.int8` does; None where it can."""
    if device.type != "cpu":
        return f"is for CPUs, and the device is {device.type}"
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return f"needs FBGEMM, and PyTorch {torch.__version__} is built without it here"
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        return "needs a CPU with AVX512-VNNI, which this one lacks"
    return None


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Type of the weights in products.

    ``auto`` is bf16 only where the device multiplies it faster than fp32; ``tf32`` is fp32 with products of inputs that
    are rounded to TF32, where a GPU has it; ``int8`` is for inference on a CPU.

    Raises:
        ConfigError: 8 bits where they cannot be multiplied.
    """
    if name == "auto":
        fast = cpu_multiplies_bf16()
        if device.type == "cuda":  # older cards only emulate it
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {
        "fp32": torch.float32,
        "tf32": torch.float32,
        "bf16": torch.bfloat16,
        "int8": torch.int8,
    }
    if name == "int8" and (problem := why_no_int8(device)):
        raise ConfigError(f"precision=int8 {problem}; use precision=auto or fp32")
    if name == "tf32" and device.type == "cuda":
        _allow_tf32(True)
    return dtypes[name]
