"""The contract of a model, and the few pieces that all networks share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """A network architecture as settings; `build` makes the network for one kind of data.

    The network takes pixels (b, c, h, w) in [0, 1], normalizes them in its first child, and returns logits
    (b, classes).
    """

    def build(self, spec: DataSpec) -> nn.Module:
        """Build the freshly initialized network; the weights come from torch's global generator.

        Args:
            spec: Image shape, number of classes, channel means and deviations.

        Returns:
            The network, on the CPU, in training mode.

        Raises:
            IronrankError: If the images are too small for the architecture.
        """
        raise NotImplementedError

    def _check_size(self, spec: DataSpec, smallest: int) -> None:
        _, h, w = spec.shape
        if min(h, w) < smallest:
            raise IronrankError(
                f"{self.label()} on {h}x{w} images: at least {smallest}x{smallest} pixels are needed"
            )


def chain(modules: dict[str, nn.Module]) -> nn.Sequential:
    """Return the modules as a sequence whose children carry the given names."""
    return nn.Sequential(OrderedDict(modules))


def scaled(channels: int, width: float) -> int:
    """Return the number of channels of a narrower or wider version, at least 1."""
    return max(1, round(width * channels))


def activation(slope: float, *, inplace: bool = True) -> nn.Module:
    """Return leaky ReLU, or ReLU where the slope is 0.

    Args:
        slope: Factor on negative inputs.
        inplace: Overwrite the input. Safe, and cheaper, wherever the layer before made a new tensor that its
            own gradient does not need: normalization, pooling, a sum.

    Returns:
        The layer.
    """
    return nn.LeakyReLU(slope, inplace=inplace) if slope > 0 else nn.ReLU(inplace=inplace)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the image size at stride 1; no bias, batch norm has one."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def kaiming(net: nn.Module, slope: float) -> None:
    """Draw every convolution anew: normal, variance 2 / ((1 + slope^2) * outputs * k * k); He et al. 2015.

    Args:
        net: The network, changed in place.
        slope: Negative slope of its activations.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=slope, mode="fan_out", nonlinearity="leaky_relu")
