"""Wide residual networks, pre-activation; for 10 classes WRN-16-4 has 2,748,890 parameters.

WRN-28-4 has 5,849,050 and WRN-28-10 36,479,194.

Source: Zagoruyko and Komodakis 2016; leaky ReLU as in the experiments of CondLR (Savostianova et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
from ironrank.models.blocks import PreActBlock, stage
from ironrank.models.normalize import Normalize
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class WideResNet(Model):
    """Three groups of pre-activation blocks, 16, 32 and 64 channels times `widen`, at strides 1, 2, 2.

    Example:
        >>> import torch
        >>> spec = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> with torch.device("meta"):
        ...     net = WideResNet(depth=16, widen=4).build(spec)
        >>> sum(p.numel() for p in net.parameters() if p.dim() > 1)
        2745264
    """

    name = "wrn"
    depth: int = setting(16, "number of layers, 4 more than a multiple of 6", ge=10, le=1000)
    widen: int = setting(4, "factor on the channels of the blocks, not of the first layer", ge=1)
    width: float = setting(1.0, "factor on all channels, for narrow test versions", gt=0)
    slope: float = setting(0.01, "slope of the activation for negative inputs", ge=0, le=1)

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is out of bounds or the depth fits no whole number of blocks.
        """
        super().__post_init__()
        if (self.depth - 4) % 6:
            raise IronrankError(f"wrn.depth={self.depth}: allowed is 4 + 6n, such as 10, 16, 22, 28 or 40")

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 4)
        stem, one, two, three = (scaled(n, self.width) for n in (16, *(f * self.widen for f in (16, 32, 64))))
        number = (self.depth - 4) // 6
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            "conv1": conv(spec.shape[0], stem, 3),
            "group1": stage(self._block, stem, one, 1, number),
            "group2": stage(self._block, one, two, 2, number),
            "group3": stage(self._block, two, three, 2, number),
            "bn": nn.BatchNorm2d(three), "act": activation(self.slope),
            "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(three, spec.classes),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return PreActBlock(inputs, outputs, stride, self.slope)
