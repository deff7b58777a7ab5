"""Which module of the encoder ran where in a recording: what `Transcriber.gates` returns.

Shape legend: L layers, T encoder frames of the whole recording.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GateMasks:
    """Which module ran on which frame of a recording.

    Attributes:
        modules: Module name (``ffn1``, ``attention``, …) to (L, T), True where it ran.
        times: (T,), the second that is in the middle of what each frame sees.

    Examples:
        >>> import torch
        >>> masks = GateMasks({"ffn1": torch.tensor([[True, False], [True, True]])}, torch.tensor([0.03, 0.07]))
        >>> masks.kept()
        {'ffn1': 0.75}
    """

    modules: dict[str, Tensor]
    times: Tensor

    def kept(self) -> dict[str, float]:
        """The share of frames on which each module ran, over all layers."""
        return {name: float(mask_LT.float().mean()) for name, mask_LT in self.modules.items()}
