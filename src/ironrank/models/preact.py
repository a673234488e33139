"""PreActResNet-18: ResNet-18 with the activation before each convolution; 11,171,146 parameters on CIFAR-10.

The net of most papers on adversarial training of small images. Its common form leaves out batch norm and
activation after the last block; the paper, and some of those, have them (``last_norm``, 1,024 parameters more).

Source: He et al. 2016, "Identity mappings in deep residual networks".
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, scaled
from ironrank.models.blocks import PreActBlock
from ironrank.models.resnet import STEMS, residual_net, stem
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class PreActResNet18(Model):
    """Four stages of two pre-activation blocks, 64, 128, 256 and 512 channels, at strides 1, 2, 2, 2.

    Example:
        >>> import torch
        >>> spec = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> with torch.device("meta"):
        ...     net = PreActResNet18().build(spec)
        >>> sum(p.numel() for p in net.parameters())
        11171146
    """

    name = "preact-resnet18"
    stem: str = setting(
        "cifar",
        "first layer: 3x3 at full size (cifar) or 7x7 stride 2 and pooling (imagenet)",
        choices=STEMS,
    )
    width: float = setting(1.0, "factor on the number of channels", gt=0)
    slope: float = setting(0.0, "slope of the activation for negative inputs; 0 is ReLU", ge=0, le=1)
    last_norm: bool = setting(False, "batch norm and activation after the last block", paper="true")

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 8 if self.stem == "cifar" else 32)
        sizes = [scaled(n, self.width) for n in (64, 64, 128, 256, 512)]
        last = {"bn": nn.BatchNorm2d(sizes[-1]), "act": activation(self.slope)} if self.last_norm else {}
        first = stem(self.stem, spec.shape[0], sizes[0], self.slope, norm=False)
        return residual_net(spec, first, sizes, self._block, 2, self.slope, last)

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return PreActBlock(inputs, outputs, stride, self.slope)
