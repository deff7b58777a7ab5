"""Whether Triton's kernels compile for cards that are not here, and fit into their shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu.boxed import Found
from localgp.kernels.kept import ACTIVATIONS

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}  # bytes that a block may have, by compute capability
Case = tuple[Any, list[str], dict[str, Any], dict[str, int]]


def compiled(found: Found) -> None:
    """All kernels as OWSM-medium uses them in bf16; products with every activation."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as to_binary

    for capability, limit in SHARED.items():
        for kernel, types, constants, options in _cases(limit):
            names = [parameter.name for parameter in kernel.params]
            signature = dict(zip(names, types + ["constexpr"] * len(constants), strict=True))
            aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t[0] in "*i"}
            source = ASTSource(kernel, signature, constants, aligned)
            binary = to_binary(source, GPUTarget("cuda", capability, 32), options)
            said = " ".join(str(value) for value in constants.values())
            found.near(
                f"sm_{capability} {kernel.__name__} {said}: bytes shared", binary.metadata.shared, limit
            )


def _cases(limit: int) -> Iterator[Case]:
    """Kernel, types of its arguments, constants, options."""
    from localgp.kernels import triton_depthwise, triton_gates, triton_kept, triton_rows

    norm = ["*fp32", "*i32", "*i32", "*fp32", "*fp32", "*bf16", "i32", "i32", "fp32"]
    for flag in (False, True):
        yield triton_rows._gather_norm, norm, {"INDEXED": flag, "COUNTED": flag, "BLOCK": 1024}, {}
    scatter = ["*fp32", "*i64", "*bf16", "i32", "i32", "i32", "fp32"]
    yield triton_rows._scatter_add, scatter, {"BLOCK": 1024}, {}
    yield triton_kept._compact, ["*u8", "*i32", "*i32", "*i32", "i32", "i32"], {"BLOCK": 1024}, {}
    decide = ["*fp32"] * 4 + ["*i8"] + ["i32"] * 9 + ["fp32", "i32"]
    yield triton_gates._decide, decide, {"BLOCK": 1024, "MODULES": 4, "LATER": 64}, {}
    depthwise = ["*bf16"] * 5 + ["*i64", "*i32", "*bf16"] + ["i32"] * 7
    for times in (False, True):
        constants = {"WIDTH": 31, "TIMES": times, "BIASED": True, "FRAMES": 32, "CHANNELS": 64}
        yield triton_depthwise._depthwise, depthwise, constants, {}
    places = {"rows": "*bf16", "copy": "*bf16", "add": "*fp32"}
    for tile in triton_kept.tiles(limit):
        for activation, place in (
            *(("none", place) for place in places),
            *((activation, "rows") for activation in ACTIVATIONS if activation != "none"),
        ):
            product = ["*bf16"] * 3 + [places[place], "*i32", "*i32"] + ["i32"] * 5
            constants = {"ACTIVATION": activation, "BIASED": True, "PLACE": place, "ROWS": tile.rows}
            constants |= {"COLUMNS": tile.columns, "DEPTH": 64, "GROUP": 8}
            yield (
                triton_kept._product,
                product,
                constants,
                {"num_warps": tile.warps, "num_stages": tile.stages},
            )
