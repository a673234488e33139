"""Inputs of a net whose inputs are not known: their shape is found by trying."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.errors import IronrankError
from ironrank.surgery.find import candidates

SIDES = (32, 28, 64, 224)  # of an image, the most usual first
MOST = 256


def find_input_shape(model: nn.Module) -> tuple[int, ...]:
    """Return a shape of inputs that the net accepts: channels by its first layer, sides by trying.

    Args:
        model: The net.

    Returns:
        (features,) or (channels, side, ...), without the batch.

    Raises:
        IronrankError: If no side up to 256 fits.

    Example:
        >>> find_input_shape(nn.Sequential(nn.Conv2d(2, 4, 5), nn.Flatten(), nn.Linear(4 * 16, 3)))
        (2, 8, 8)
    """
    first = next((layer for _, layer in candidates(model)), None)
    if first is None:
        raise IronrankError("this net has no linear or convolution layer: there are no filters to remove")
    inputs = first.weight.shape[1] * getattr(first, "groups", 1)
    if isinstance(first, nn.Linear):
        return (inputs,)
    for side in itertools.chain(SIDES, range(1, MOST + 1)):
        shape = (inputs, *[side] * (first.weight.ndim - 2))
        try:
            output_shapes(model, shape)
        except (RuntimeError, ValueError, IndexError):
            continue
        return shape
    raise IronrankError(f"no square image of up to {MOST} pixels a side fits this net: set input_shape")


def example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return two inputs of zeros of a shape, where the model is."""
    return next(model.parameters()).new_zeros(2, *shape)


def output_shapes(model: nn.Module, shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of what the net gives out for two inputs of a shape."""
    return [tuple(y.shape) for y in outputs(model, example(model, shape))]


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what the net gives out, as a list."""
    with evaluation_mode(model):
        out = model(x)
    return list(out) if isinstance(out, tuple | list) else [out]
