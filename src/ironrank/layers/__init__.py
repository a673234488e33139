"""Layers that hold factors, act, and count their cost. They know nothing of training."""

from torch import nn

from ironrank.layers.conv import FactoredConv1d, FactoredConv2d, FactoredConv3d
from ironrank.layers.factored import Cost, Factored
from ironrank.layers.frozen import frozen
from ironrank.layers.linear import FactoredLinear

# The dense type that each factored type stands for.
FACTORED: dict[type[nn.Module], type[Factored]] = {
    nn.Linear: FactoredLinear,
    nn.Conv1d: FactoredConv1d,
    nn.Conv2d: FactoredConv2d,
    nn.Conv3d: FactoredConv3d,
}

__all__ = [
    "FactoredLinear",
    "FactoredConv1d",
    "FactoredConv2d",
    "FactoredConv3d",
    "Factored",
    "Cost",
    "FACTORED",
    "frozen",
]
