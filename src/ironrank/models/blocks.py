"""Residual blocks: two 3x3 convolutions beside a shortcut, activated after the sum or before each convolution.

    block         residual branch                            activation   shortcut where the shape changes
    BasicBlock    conv, norm, act, conv, norm                of the sum   1x1 convolution and norm, or padding
    PreActBlock   norm, act, conv, norm, act, conv           none         1x1 convolution of the active input

The 1x1 convolution of a shortcut takes every stride-th pixel by slicing, not by a stride of its own: the result is the
same, and oneDNN (its issue 6035) writes outside of its memory in the backward pass of strided 1x1 convolutions of few
channels, in float32 and channels last.

Sources: He et al. 2016, "Deep residual learning", and 2016, "Identity mappings in deep residual networks".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ironrank.errors import IronrankError
from ironrank.models.base import activation, chain, conv


class BasicBlock(nn.Module):
    r"""Basic block: :math:`\phi(s + bn_2(conv_2(\phi(bn_1(conv_1(x))))))`.

    The shortcut :math:`s` is :math:`x` where the shape stays. Where channels or stride change it is a 1x1
    convolution with batch norm (He et al. call this option B), or, with ``pad``, `Pad` (option A).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Stride of the first convolution.
        slope: Negative slope of the activation.
        pad: Whether the shortcut is free of parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, slope: float, pad: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.act1 = activation(slope)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.act2 = activation(slope)
        self.stride = stride
        self.shortcut: nn.Module | None = None
        if inputs != outputs or stride != 1:
            one = {"conv": conv(inputs, outputs, 1), "bn": nn.BatchNorm2d(outputs)}
            self.shortcut = Pad(inputs, outputs) if pad else chain(one)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride) for (b, inputs, h, w)."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(residual + (x if self.shortcut is None else self.shortcut(_every(x, self.stride))))


class Pad(nn.Module):
    """The shortcut without parameters: channels of zeros on both sides.

    Where there are fewer channels out than in, as in some very narrow nets, channels are dropped instead. Once filters
    have been removed on either side, `source` says which channel goes where.

    Args:
        inputs: Channels in.
        outputs: Channels out.

    Attributes:
        inputs: Channels in.
        source: For each channel out the channel in that it is a copy of, or -1 for zeros.

    Example:
        >>> import torch
        >>> pad = Pad(2, 4)
        >>> pad(torch.ones(1, 2, 1, 1)).flatten().tolist(), pad.source
        ([0.0, 1.0, 1.0, 0.0], (-1, 0, 1, -1))
        >>> pad.set_width([1, 0, -1])
        >>> pad(torch.ones(1, 1, 1, 1)).flatten().tolist()
        [1.0, 0.0]
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.source = inputs, _centred(inputs, outputs)
        self._index: Tensor | None = None  # of a narrower shortcut, made where it is first needed

    def width(self) -> list[int]:
        """Return the channels in, and `source`."""
        return [self.inputs, *self.source]

    def set_width(self, width: list[int]) -> None:
        """Take fewer channels.

        Args:
            width: From `width`, of a narrower shortcut.

        Raises:
            IronrankError: If it has no such channels.
        """
        inputs, *source = width
        known = [j for j in source if j >= 0]
        if inputs > self.inputs or len(source) > len(self.source) or max(known, default=0) >= max(inputs, 1):
            raise IronrankError(
                f"width {inputs} to {len(source)} of a shortcut that has {self.inputs} to {len(self.source)}"
            )
        self.inputs, self.source, self._index = inputs, tuple(source), None

    def remove_inputs(self, channels: Sequence[int]) -> None:
        """Take no more of these channels in; those out that were their copies become zeros."""
        gone = set(channels)
        place = {old: new for new, old in enumerate(i for i in range(self.inputs) if i not in gone)}
        self.set_width([len(place), *(place.get(j, -1) for j in self.source)])

    def silence_inputs(self, channels: Sequence[int]) -> None:
        """Take these channels in and give zeros out in place of their copies."""
        gone = set(channels)
        self.set_width([self.inputs, *(-1 if j in gone else j for j in self.source)])

    def remove_outputs(self, channels: Sequence[int]) -> None:
        """Give no more of these channels out."""
        gone = set(channels)
        self.set_width([self.inputs, *(j for i, j in enumerate(self.source) if i not in gone)])

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h, w) for (b, inputs, h, w)."""
        outputs = len(self.source)
        if self.source == _centred(self.inputs, outputs):
            before = (outputs - self.inputs) // 2
            return F.pad(x, (0, 0, 0, 0, before, outputs - self.inputs - before))
        if self._index is None or self._index.device != x.device:
            self._index = torch.tensor([self.inputs if j < 0 else j for j in self.source], device=x.device)
        return F.pad(x, (0, 0, 0, 0, 0, 1)).index_select(1, self._index)  # the last channel is zero

    def extra_repr(self) -> str:
        """Return channels in and out."""
        return f"{self.inputs}, {len(self.source)}"


def _every(x: Tensor, stride: int) -> Tensor:
    return x if stride == 1 else x[..., ::stride, ::stride]


@functools.cache
def _centred(inputs: int, outputs: int) -> tuple[int, ...]:
    before = (outputs - inputs) // 2
    return tuple(j - before if 0 <= j - before < inputs else -1 for j in range(outputs))


class PreActBlock(nn.Module):
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
        self.stride = stride
        self.shortcut: nn.Module | None = None if same else conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride) for (b, inputs, h, w)."""
        active = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(_every(active, self.stride)))


Block = Callable[[int, int, int], nn.Module]


def stage(block: Block, inputs: int, outputs: int, stride: int, number: int) -> nn.Sequential:
    """Return a row of blocks, of which the first changes channels and image size.

    Args:
        block: Makes a block from channels in, channels out and stride.
        inputs: Channels into the first.
        outputs: Channels out of each.
        stride: Stride of the first.
        number: How many blocks.

    Returns:
        The blocks, named ``block1``, ``block2`` and so on.
    """
    blocks = [block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(number - 1))]
    return chain({f"block{i}": made for i, made in enumerate(blocks, start=1)})
