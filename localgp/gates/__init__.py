"""Who decides which module runs on which frame.

A gate policy is a module with ``begin(contexts) -> state`` and ``gate(layer, x_BTD, state) -> {module: Gate}``;
`localgp.encoder.run` asks it at every layer.
"""

from localgp.gates.control import EnergyGates, OpenGates, RandomGates, SimilarGates, SpeechPruneGates
from localgp.gates.global_ import GlobalGates
from localgp.gates.gumbel import Gate, gumbel_gate
from localgp.gates.local import LocalGatePredictor, LocalGates
from localgp.gates.loss import kept_ratio
from localgp.gates.rivals import LayerDropGates, TopKGates

__all__ = [
    "EnergyGates",
    "Gate",
    "GlobalGates",
    "LayerDropGates",
    "LocalGatePredictor",
    "LocalGates",
    "OpenGates",
    "RandomGates",
    "SimilarGates",
    "SpeechPruneGates",
    "TopKGates",
    "gumbel_gate",
    "kept_ratio",
]
