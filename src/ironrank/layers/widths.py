"""Widths: how many channels a layer has, so that a net from which filters were removed can be rebuilt.

layer             width
linear            [outputs, inputs]
convolution       [outputs, inputs, groups]
batch norm        [channels]
factored          that of the dense layer that it stands for
any other         what its methods ``width()`` and ``set_width(width)`` mean; without them it has none
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ironrank.errors import IronrankError
from ironrank.layers.factored import Factored

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def width_of(layer: Any) -> list[int] | None:
    """Return the width of a layer, or None where it has none.

    Args:
        layer: Any module.

    Returns:
        As in the table above.

    Example:
        >>> width_of(nn.Conv2d(3, 8, 5)), width_of(nn.Linear(4, 2)), width_of(nn.BatchNorm2d(8)), width_of(nn.ReLU())
        ([8, 3, 1], [2, 4], [8], None)
    """
    if isinstance(layer, Factored):
        return [*layer.weight_shape[:2], 1][: len(layer.weight_shape)]
    if isinstance(getattr(layer, "weight", None), nn.parameter.UninitializedParameter):
        return None
    if isinstance(layer, nn.Linear):
        return [layer.out_features, layer.in_features]
    if isinstance(layer, CONVOLUTIONS):
        return [layer.out_channels, layer.in_channels, layer.groups]
    if isinstance(layer, NORMS):
        return [layer.num_features]
    return layer.width() if hasattr(layer, "set_width") else None


def widths(model: nn.Module) -> dict[str, list[int]]:
    """Return the widths of all layers of a model that have one, by full name."""
    found = {name: width_of(layer) for name, layer in model.named_modules()}
    return {name: width for name, width in found.items() if width is not None}


def narrowed(model: nn.Module) -> dict[str, tuple[list[int], list[int]]]:
    """Return, for every layer that lost channels, the width that it has and the one that it was built with."""
    now, layers = widths(model), dict(model.named_modules())
    was = {name: getattr(layers[name], "full_width", width) for name, width in now.items()}
    return {name: (width, was[name]) for name, width in now.items() if width != was[name]}


def mark(layer: nn.Module, before: list[int]) -> None:
    """Note which width a layer was built with, unless it is noted already.

    Args:
        layer: The layer, narrower by now.
        before: The width that it had.
    """
    layer.full_width = getattr(layer, "full_width", before)  # type: ignore[assignment]


def narrow(layer: Any, width: list[int]) -> None:
    """Give a layer fewer channels, in place; its tensors become new ones, whose values are what the memory holds.

    Args:
        layer: A layer with a width.
        width: The width that it shall have.

    Raises:
        IronrankError: If the width is none, or wider than the layer.

    Example:
        >>> layer = nn.Conv2d(3, 8, 5)
        >>> narrow(layer, [4, 2, 1])
        >>> layer.weight.shape, layer.bias.shape, layer
        (torch.Size([4, 2, 5, 5]), torch.Size([4]), Conv2d(2, 4, kernel_size=(5, 5), stride=(1, 1)))
    """
    before = width_of(layer)
    if width == before:
        return
    if hasattr(layer, "set_width"):
        layer.set_width(width)
    else:
        _check(layer, width, before or [])
        _resize_all(layer, width)
    mark(layer, before or [])


def _check(layer: nn.Module, width: list[int], before: list[int]) -> None:
    fits = len(width) == len(before) and all(0 < n <= old for n, old in zip(width, before, strict=True))
    if not fits or isinstance(layer, Factored):
        raise IronrankError(f"width {width} for a {type(layer).__name__} of width {before or None}")


def _resize_all(layer: Any, width: list[int]) -> None:
    if isinstance(layer, NORMS):
        layer.num_features = width[0]
        _resize(layer, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (width[0],)))
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = width
        _resize(layer, weight=tuple(width), bias=(width[0],))
    else:
        outputs, inputs, groups = width
        layer.out_channels, layer.in_channels, layer.groups = outputs, inputs, groups
        _resize(layer, weight=(outputs, inputs // groups, *layer.kernel_size), bias=(outputs,))


def _resize(layer: Any, **shapes: tuple[int, ...]) -> None:
    for name, shape in shapes.items():
        held = getattr(layer, name)
        if held is None or shape == held.shape:
            continue
        new = held.detach().new_empty(shape)
        if isinstance(held, nn.Parameter):
            new = nn.Parameter(new, requires_grad=held.requires_grad)
        setattr(layer, name, new)
