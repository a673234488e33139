"""Wide residual networks, pre-activation; WRN-16-4 has 2,745,264 weights for 10 classes.

Source: Zagoruyko and Komodakis 2016; leaky ReLU as in the experiments of CondLR (Savostianova et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
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
    depth: int = setting(16, "number of layers, 4 more than a multiple of 6", ge=10)
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
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            "conv1": conv(spec.shape[0], stem, 3),
            "group1": self._group(stem, one, stride=1),
            "group2": self._group(one, two, stride=2),
            "group3": self._group(two, three, stride=2),
            "bn": nn.BatchNorm2d(three), "act": activation(self.slope),
            "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(three, spec.classes),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

    def _group(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = WideBlock(inputs, outputs, stride, self.slope)
        rest = (WideBlock(outputs, outputs, 1, self.slope) for _ in range((self.depth - 4) // 6 - 1))
        return chain({f"block{i}": block for i, block in enumerate((first, *rest), start=1)})


class WideBlock(nn.Module):
    r"""Pre-activation block: :math:`a = \phi(bn_1(x))`, output :math:`s + conv_2(\phi(bn_2(conv_1(a))))`.

    The shortcut :math:`s` is :math:`x`, or a 1x1 convolution of :math:`a` where channels or stride change.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Stride of the first convolution.
        slope: Negative slope of the activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, slope: float) -> None:
        super().__init__()
        self.bn1, self.act1 = nn.BatchNorm2d(inputs), activation(slope)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.bn2, self.act2 = nn.BatchNorm2d(outputs), activation(slope)
        self.conv2 = conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module | None = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride) for (b, inputs, h, w)."""
        active = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))
