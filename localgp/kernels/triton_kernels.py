"""All kernels in Triton, for `localgp.kernels.devices.triton_on`; each is described beside its version in PyTorch."""

from localgp.kernels.triton_depthwise import plus, times
from localgp.kernels.triton_gates import decide
from localgp.kernels.triton_kept import compact, product, product_to_rows
from localgp.kernels.triton_rows import gather_norm, scatter_add

__all__ = [
    "compact",
    "decide",
    "gather_norm",
    "plus",
    "product",
    "product_to_rows",
    "scatter_add",
    "times",
]
