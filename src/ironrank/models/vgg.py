"""VGG16 for small images: 13 convolutions with batch norm, then linear layers.

    hidden   linear layers       parameters, 10 classes
    2        512, 512, classes   15,249,354, of which 15,239,872 are weights; as in CondLR
    0        classes             14,724,042; as in most papers on pruning

Sources: Simonyan and Zisserman 2015; linear layers of 512 as in CondLR (Savostianova et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.models.base import Model, activation, chain, conv, kaiming, scaled
from ironrank.models.normalize import Normalize
from ironrank.settings import setting

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True, kw_only=True)
class VGG16(Model):
    """13 convolutions 3x3 with batch norm and leaky ReLU, pooled five times, then linear layers.

    The activation follows the pooling: for a monotone function that changes nothing and costs a quarter.

    Example:
        >>> import torch
        >>> spec = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        >>> with torch.device("meta"):
        ...     net = VGG16().build(spec)
        >>> sum(p.numel() for p in net.parameters() if p.dim() > 1)
        15239872
    """

    name = "vgg16"
    width: float = setting(1.0, "factor on the number of channels and hidden units", gt=0)
    slope: float = setting(0.01, "slope of the activation for negative inputs", ge=0, le=1)
    hidden: int = setting(2, "linear layers of 512 units before the last one", ge=0, le=100, paper="2")
    dropout: float = setting(
        0.0, "share of features dropped before the linear layers", ge=0, lt=1, paper="0.2"
    )

    def build(self, spec: DataSpec) -> nn.Module:
        """Return the network; see `Model.build`."""
        self._check_size(spec, 32)
        net = chain({
            "normalize": Normalize(spec.mean, spec.std),
            **self._features(spec.shape[0]),
            "flatten": nn.Flatten(), "dropout": nn.Dropout(self.dropout),
            **self._linears(spec),
        })  # fmt: skip
        kaiming(net, self.slope)
        return net

    def _linears(self, spec: DataSpec) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        _, h, w = spec.shape
        units = scaled(512, self.width)
        inputs = units * (h // 32) * (w // 32)
        for i in range(1, self.hidden + 1):
            layers[f"fc{i}"] = nn.Linear(inputs, units)
            layers[f"act{13 + i}"] = activation(self.slope, inplace=False)
            inputs = units
        return layers | {f"fc{self.hidden + 1}": nn.Linear(inputs, spec.classes)}

    def _features(self, inputs: int) -> dict[str, nn.Module]:
        layers: dict[str, nn.Module] = {}
        number = 0
        for stage, sizes in enumerate(_STAGES, start=1):
            for last, size in zip([False] * (len(sizes) - 1) + [True], sizes, strict=True):
                number, outputs = number + 1, scaled(size, self.width)
                layers[f"conv{number}"] = conv(inputs, outputs, 3)
                layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
                if last:
                    layers[f"pool{stage}"] = nn.MaxPool2d(2)
                layers[f"act{number}"] = activation(self.slope)
                inputs = outputs
        return layers
