"""What a walk through a net carries along, and how one layer changes it; the formulas stand in `walk`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.certificates.linear import UNIT32, Local, Operator, then

_LARGEST_ERROR = torch.finfo(torch.float32).max * UNIT32 / 4


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph for a batch of images; see the top of this file.

    Attributes:
        x: (b, ...), float64.
        lipschitz: From the image to here.
        error: (b,), float64.
        slope: Growth of the error with the distance from the image.
        source: An operator that ends here, and the Lipschitz constant of where it starts.
        room: Distance from the image within which nothing on the way overflows, (b,) or one for all.
    """

    x: Tensor
    lipschitz: float
    error: Tensor
    slope: float = 0.0
    source: tuple[Operator, float] | None = None
    room: Tensor | float = math.inf

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.x.shape)


@dataclass(frozen=True, eq=False)
class Step:
    """What is known of one node of the graph, whatever the images."""

    local: Local
    lipschitz: float
    source: tuple[Operator, float] | None
    folded: bool


def step_of(local: Local, value: Value) -> Step:
    """Return what is known after a layer: the product of bounds, or the norm of the composed operator if smaller.

    Args:
        local: Bounds of the layer.
        value: What goes in.

    Returns:
        The step.
    """
    lipschitz, source, folded = local.gain * value.lipschitz, None, False
    if local.keeps:
        return Step(local, lipschitz, value.source, False)
    if local.operator is not None:
        source = (local.operator, value.lipschitz)
        whole = then(value.source[0], local.operator) if value.source else None
        if whole is not None and value.source is not None:
            together, source = whole.norm() * value.source[1], (whole, value.source[1])
            lipschitz, folded = min(lipschitz, together), together < lipschitz
    return Step(local, lipschitz, source, folded)


def moved(value: Value, result: Tensor, step: Step) -> Value:
    """Return the value after a step.

    Args:
        value: What goes in.
        result: What comes out (b, ...), float64.
        step: The step.

    Returns:
        The value, its error and the growth of that.
    """
    gain, noise = step.local.gain, step.local.noise
    error = gain * value.error + noise * (norms(value.x) + value.error) + step.local.floor
    slope = gain * value.slope + noise * (value.lipschitz + value.slope)
    return Value(result, step.lipschitz, error, slope, step.source, room([value], error, slope))


def room(values: list[Value], error: Tensor, slope: float) -> Tensor:
    """Return the distance within which neither the values nor what is computed of them overflows in float32.

    Whatever a layer adds up on the way to its output is rounded, and the bound on its error counts that: a number
    beyond the largest one would need an error beyond that one's unit in the last place.

    Args:
        values: What goes in.
        error: That of the result (b,).
        slope: Its growth.

    Returns:
        (b,), float64.
    """
    far = (_LARGEST_ERROR - error) / max(slope, 1e-300)
    for value in values:
        far = far.clamp_max(torch.as_tensor(value.room).to(far))
    return far


def norms(x: Tensor) -> Tensor:
    """Return the L2 norm of each sample (b,)."""
    return x.flatten(1).norm(dim=1)
