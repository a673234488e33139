"""Pixels that are whole numbers of 255: where all images of data lie, and where no search ever comes by itself.

A net may answer otherwise there than anywhere else, and an attacker who sends image files is always there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ironrank.attacks.threat import length

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


def whole(point: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Return whole numbers of 255: the nearest, or, where they lie outside of the ball, those on the side of ``x``.

    Args:
        point: Pixels (b, ...) in the ball.
        x: Its centre (b, ...).
        eps: Its radius.
        norm: ``Linf`` or ``L2``.

    Returns:
        Pixels (b, ...).

    Example:
        >>> point, x = torch.tensor([[5.7, 3.2, 8.0]]) / 255, torch.tensor([[4.0, 4.0, 8.0]]) / 255
        >>> whole(point, x, 2 / 255, "Linf") * 255, whole(point, x, 1.9 / 255, "Linf") * 255
        (tensor([[6., 3., 8.]]), tensor([[5., 4., 8.]]))
    """
    nearest = (point * 255).round() / 255
    towards = torch.where(point > x, (point * 255 + _NEAR).floor(), (point * 255 - _NEAR).ceil()) / 255
    return torch.where(length(nearest - x, norm) <= eps + _NEAR / 255, nearest, towards)


def steps_inside(eps: float, norm: str) -> float:
    """Return the largest radius at most eps whose Linf ball ends at whole numbers of 255; in L2 eps itself.

    Example:
        >>> steps_inside(8.5 / 255, "Linf") * 255, steps_inside(0.5, "L2")
        (8.0, 0.5)
    """
    return math.floor(eps * 255 + _NEAR) / 255 if norm == "Linf" else eps
