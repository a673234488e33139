"""How large a network is, and the narrow one of a given size: the control that compression must beat."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.models.base import Model

_STEPS = 10_000  # widths are multiples of 1 / 10,000


def count(model: Model, spec: DataSpec) -> int:
    """Return the number of parameters of a network, biases and batch norm included; nothing is computed.

    Args:
        model: The architecture.
        spec: The data it is built for.

    Returns:
        The number of parameters.
    """
    with torch.device("meta"):
        net = model.build(spec)
    return sum(parameter.numel() for parameter in net.parameters())


@functools.cache  # some fifteen networks are built for one answer
def width_for(model: Model, spec: DataSpec, params: float) -> float:
    """Return the width whose network comes nearest to a number of parameters without exceeding it.

    Args:
        model: An architecture with a ``width``; the one that it has does not matter.
        spec: The data it is built for.
        params: Largest allowed number of parameters.

    Returns:
        The width, a multiple of 1 / 10,000: the largest one that fits, since the number of parameters never
        falls as the width grows. Widths between two steps of all channel numbers mean the same network.

    Raises:
        IronrankError: If the architecture has no width, the number is not finite, or one channel everywhere is too
            large already.

    Example:
        >>> from ironrank.models.lenet5 import LeNet5
        >>> spec = DataSpec((1, 28, 28), 10, (0.0,), (1.0,))
        >>> width = width_for(LeNet5(), spec, 431_080 / 4)
        >>> width, count(LeNet5(width=width), spec)
        (0.493, 107651)
    """
    if "width" not in {field.name for field in dataclasses.fields(model)}:
        raise IronrankError(f"{model.label()} has no width: a narrow version of it cannot be made")

    def size(steps: int) -> int:
        return count(dataclasses.replace(model, width=steps / _STEPS), spec)  # type: ignore[call-arg]

    low, high = 1, _STEPS
    if not math.isfinite(params):
        raise IronrankError(f"{model.label()} of at most {params} parameters: a finite number is needed")
    if size(low) > params:
        raise IronrankError(
            f"{model.label()} of at most {params:,.0f} parameters: the narrowest has {size(low):,}; allow more"
        )
    while size(high) <= params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= params else (low, middle)
    return low / _STEPS
