"""ResNet-18 and ResNet-20: basic blocks with the activation after the sum.

    net         channels            blocks   shortcuts        parameters, 10 classes
    ResNet-18   64, 128, 256, 512   2 each   1x1, norm        11,173,962; ImageNet's first layer and classes: 11,689,512
    ResNet-20   16, 32, 64          3 each   padding          269,722; with 1x1 and norm 272,474

Source: He et al. 2016, "Deep residual learning for image recognition"; weights drawn as in He et al. 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
from ironrank.models.blocks import BasicBlock, stage
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
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            **stem(self.stem, spec.shape[0], sizes[0], self.slope),
            **{f"stage{i}": stage(self._block, sizes[i - 1], sizes[i], 1 if i == 1 else 2, 2) for i in range(1, 5)},
            "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(sizes[-1], spec.classes),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

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
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            **stem("cifar", spec.shape[0], sizes[0], self.slope),
            **{f"stage{i}": stage(self._block, sizes[i - 1], sizes[i], 1 if i == 1 else 2, 3) for i in range(1, 4)},
            "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(sizes[-1], spec.classes),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

    def _block(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, self.slope, pad=self.shortcut == "pad")


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
