"""LeNet5 of the low-rank training papers: two convolutions and two linear layers, 430,500 weights on MNIST.

Source: LeCun et al. 1998, as in DLRT (Schotthöfer et al. 2022) and CondLR (Savostianova et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, chain, scaled
from ironrank.models.normalize import Normalize
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class LeNet5(Model):
    """Conv 20 and conv 50 (5x5, pooled by 2), linear 500, linear to the classes; leaky ReLU between.

    The activation follows the pooling: for a monotone function that changes nothing and costs a quarter.

    Example:
        >>> spec = DataSpec((1, 28, 28), 10, (0.1307,), (0.3081,))
        >>> sum(p.numel() for p in LeNet5().build(spec).parameters() if p.dim() > 1)
        430500
    """

    name = "lenet5"
    width: float = setting(1.0, "factor on the number of channels and hidden units", gt=0)
    slope: float = setting(0.01, "slope of the activation for negative inputs", ge=0, le=1)

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 16)
        c, h, w = spec.shape
        first, second, hidden = (scaled(n, self.width) for n in (20, 50, 500))
        return chain({
            "normalize": Normalize(spec.mean, spec.std),
            "conv1": nn.Conv2d(c, first, 5), "pool1": nn.MaxPool2d(2), "act1": activation(self.slope),
            "conv2": nn.Conv2d(first, second, 5), "pool2": nn.MaxPool2d(2), "act2": activation(self.slope),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(second * _after(h) * _after(w), hidden),
            "act3": activation(self.slope, inplace=False),
            "fc2": nn.Linear(hidden, spec.classes),
        })  # fmt: skip


def _after(side: int) -> int:
    """Return the image side after both convolutions and poolings."""
    return ((side - 4) // 2 - 4) // 2
