"""Pixels that are whole numbers of 255: where all images of data lie, and where no search ever comes by itself.

A net may answer otherwise there than anywhere else, and an attacker who sends image files is always there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BYTES = "bytes"  # the source that stands for the net itself, shown whole numbers of 255
_NEAR = 1e-3  # of a step of 255: what rounding makes of a whole number


class Bytes(nn.Module):
    """A net that is shown pixels that are whole numbers of 255; slopes are passed on as if nothing had been rounded.

    A net may answer otherwise at such pixels, where all images of data lie and no search ever comes by itself.

    Args:
        net: Maps pixels (b, ...) to logits (b, classes).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, classes) at the nearest whole numbers of 255."""
        with torch.no_grad():
            missing = (x * 255).round() / 255 - x
        return self.net(x + missing)


def whole(point: Tensor, x: Tensor) -> Tensor:
    """Return the whole numbers of 255 next to pixels (b, ...), on the side of the centre ``x``: no change grows.

    Example:
        >>> whole(torch.tensor([[5.7, 3.2, 8.0]]) / 255, torch.tensor([[4.0, 4.0, 8.0]]) / 255) * 255
        tensor([[5., 4., 8.]])
    """
    towards = torch.where(point > x, (point * 255 + _NEAR).floor(), (point * 255 - _NEAR).ceil())
    return towards / 255
