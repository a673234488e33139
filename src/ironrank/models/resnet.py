"""ResNet-18 and ResNet-20: basic blocks with the activation after the sum.

    net         channels            blocks   shortcuts        parameters, 10 classes
    ResNet-18   64, 128, 256, 512   2 each   1x1, norm        11,173,962; ImageNet's first layer and classes: 11,689,512
    ResNet-20   16, 32, 64          3 each   padding          269,722; with 1x1 and norm 272,474

Source: He et al. 2016, "Deep residual learning for image recognition"; weights drawn as in He et al. 2015.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
from ironrank.models.blocks import BasicBlock, Block, stage
from ironrank.models.normalize import Normalize
from ironrank.settings import setting

STEMS = ("cifar", "imagenet")
SHORTCUTS = ("pad", "conv")


@dataclass(frozen=True, kw_only=True)
class ResNet18(Model):
    """Four stages of two basic blocks, 64, 128, 256 and 512 channels, at strides 1, 2, 2, 2.

    Example:
        >>> import torch
        >>> spec = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> with torch.device("meta"):
        ...     net = ResNet18().build(spec)
        >>> sum(p.numel() for p in net.parameters())
        11173962
    """

    name = "resnet18"
    stem: str = setting(
        "cifar",
        "first layer: 3x3 at full size (cifar) or 7x7 stride 2 and pooling (imagenet)",
        choices=STEMS,
    )
    width: float = setting(1.0, "factor on the number of channels", gt=0)
    slope: float = setting(0.0, "slope of the activation for negative inputs; 0 is ReLU", ge=0, le=1)

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 8 if self.stem == "cifar" else 32)
        sizes = [scaled(n, self.width) for n in (64, 64, 128, 256, 512)]
        first = stem(self.stem, spec.shape[0], sizes[0], self.slope)
        return residual_net(spec, first, sizes, self._block, 2, self.slope)

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, self.slope)


@dataclass(frozen=True, kw_only=True)
class ResNet20(Model):
    """The CIFAR form: three stages of three basic blocks, 16, 32 and 64 channels, at strides 1, 2, 2.

    Shortcuts are free of parameters, as in the paper's experiments on CIFAR-10 (its option A).

    Example:
        >>> spec = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> sum(p.numel() for p in ResNet20().build(spec).parameters())
        269722
    """

    name = "resnet20"
    width: float = setting(1.0, "factor on the number of channels", gt=0)
    slope: float = setting(0.0, "slope of the activation for negative inputs; 0 is ReLU", ge=0, le=1)
    shortcut: str = setting(
        "pad", "where the shape changes: zero channels, or a 1x1 convolution", choices=SHORTCUTS, paper="pad"
    )

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 4)
        sizes = [scaled(n, self.width) for n in (16, 16, 32, 64)]
        first = stem("cifar", spec.shape[0], sizes[0], self.slope)
        return residual_net(spec, first, sizes, self._block, 3, self.slope)

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, self.slope, pad=self.shortcut == "pad")


def residual_net(
    spec: DataSpec,
    first: dict[str, nn.Module],
    sizes: list[int],
    block: Block,
    number: int,
    slope: float,
    last: dict[str, nn.Module] | None = None,
) -> nn.Sequential:
    """Return a residual network: first layers, stages at strides 1, 2, 2, ..., pooling, one linear layer.

    Args:
        spec: The data it is built for.
        first: The first layers, from `stem`.
        sizes: Channels out of the first layers and out of each stage.
        block: Makes a block from channels in, channels out and stride.
        number: Blocks in a stage.
        slope: Negative slope of the activation.
        last: Layers between the stages and the pooling.

    Returns:
        The network, its weights drawn anew.
    """
    steps = enumerate(itertools.pairwise(sizes), start=1)
    net = chain({
        "normalize": Normalize(spec.mean, spec.std),
        **first,
        **{f"stage{i}": stage(block, inputs, outputs, 1 if i == 1 else 2, number) for i, (inputs, outputs) in steps},
        **(last or {}),
        "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
        "fc": nn.Linear(sizes[-1], spec.classes),
    })  # fmt: skip
    kaiming(net, slope)
    return net


def stem(kind: str, inputs: int, outputs: int, slope: float, norm: bool = True) -> dict[str, nn.Module]:
    """Return the first layers of a residual network.

    Args:
        kind: "cifar" for 3x3 at full size, "imagenet" for 7x7 at stride 2 and pooling.
        inputs: Channels of the images.
        outputs: Channels out.
        slope: Negative slope of the activation.
        norm: Whether batch norm and activation follow; pre-activation blocks bring their own.

    Returns:
        Layers by name.
    """
    small = kind == "cifar"
    first = conv(inputs, outputs, 3) if small else conv(inputs, outputs, 7, stride=2)
    layers: dict[str, nn.Module] = {"conv1": first}
    if norm:
        layers["bn1"] = nn.BatchNorm2d(outputs)
    if not small:
        layers["pool1"] = nn.MaxPool2d(3, stride=2, padding=1)  # before the monotone activation: cheaper
    if norm:
        layers["act1"] = activation(slope)
    return layers
