"""ResNet-18 with a first layer for small or for large images; 11,173,962 parameters on CIFAR-10.

Source: He et al. 2016, basic blocks with the activation after the sum, 1x1 shortcuts where the shape changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
from ironrank.models.normalize import Normalize
from ironrank.settings import setting


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
        choices=("cifar", "imagenet"),
    )
    width: float = setting(1.0, "factor on the number of channels", gt=0)
    slope: float = setting(0.0, "slope of the activation for negative inputs; 0 is ReLU", ge=0, le=1)

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 8 if self.stem == "cifar" else 32)
        sizes = [scaled(n, self.width) for n in (64, 64, 128, 256, 512)]
        stages = {f"stage{i}": self._stage(sizes[i - 1], sizes[i], 1 if i == 1 else 2) for i in range(1, 5)}
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            **self._stem(spec.shape[0], sizes[0]),
            **stages,
            "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(sizes[-1], spec.classes),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

    def _stem(self, inputs: int, outputs: int) -> dict[str, nn.Module]:
        norm, act = nn.BatchNorm2d(outputs), activation(self.slope)
        if self.stem == "cifar":
            return {"conv1": conv(inputs, outputs, 3), "bn1": norm, "act1": act}
        pool = nn.MaxPool2d(3, stride=2, padding=1)  # before the monotone activation: equal and cheaper
        return {"conv1": conv(inputs, outputs, 7, stride=2), "bn1": norm, "pool1": pool, "act1": act}

    def _stage(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride, self.slope)
        return chain({"block1": first, "block2": BasicBlock(outputs, outputs, 1, self.slope)})


class BasicBlock(nn.Module):
    r"""Basic block: :math:`\phi(s + bn_2(conv_2(\phi(bn_1(conv_1(x))))))`.

    The shortcut :math:`s` is :math:`x`, or a 1x1 convolution with batch norm where channels or stride change.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Stride of the first convolution.
        slope: Negative slope of the activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, slope: float) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act1 = (
            conv(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            activation(slope),
        )
        self.conv2, self.bn2, self.act2 = (
            conv(outputs, outputs, 3),
            nn.BatchNorm2d(outputs),
            activation(slope),
        )
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module | None = None
        if not same:
            self.shortcut = chain({"conv": conv(inputs, outputs, 1, stride), "bn": nn.BatchNorm2d(outputs)})

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride) for (b, inputs, h, w)."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(residual + (x if self.shortcut is None else self.shortcut(x)))
