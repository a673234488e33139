"""Bounds of the functions and tensor methods that a forward calls: those of the layers, and what reorders numbers.

Each takes the shape of its input, then the arguments that the function was called with.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ironrank.certificates.layers import KEEPS, SAME, SLOPES, activation, constant, dropout, pad
from ironrank.certificates.linear import (
    EPS32,
    TINY32,
    Local,
    Shape,
    of_batch_norm,
    of_conv,
    of_linear,
    scaling,
)
from ironrank.certificates.pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    max_pool,
    mean,
)
from ironrank.errors import IronrankError

Function = Callable[..., Local]


def _activation(name: str) -> Function:
    takes = len(inspect.signature(SLOPES[name]).parameters)

    def bounds(shape: Shape, *args: Any, inplace: bool = False, **kwargs: Any) -> Local:
        names = list(inspect.signature(SLOPES[name]).parameters)
        return activation(name, shape, **dict(zip(names, args[:takes], strict=False)), **kwargs)

    return bounds


def _permute(shape: Shape, *dims: Any) -> Local:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
    return _leaves_samples(order[0] % len(shape) == 0)


def _transpose(shape: Shape, dim0: int, dim1: int) -> Local:
    return _leaves_samples(0 not in (dim0 % len(shape), dim1 % len(shape)))


def _leaves_samples(kept: bool) -> Local:
    if not kept:
        raise IronrankError("no bound for a forward that moves the batch dimension")
    return SAME


def _getitem(shape: Shape, key: Any) -> Local:
    keys = key if isinstance(key, tuple) else (key,)
    if not all(k is None or k is Ellipsis or isinstance(k, int | slice) for k in keys):
        raise IronrankError("no bound for indexing by tensors or lists")
    first = keys[0]
    return _leaves_samples(first is Ellipsis or (isinstance(first, slice) and first == slice(None)))


def _mean(shape: Shape, dim: Any = None, keepdim: bool = False) -> Local:
    dims = range(len(shape)) if dim is None else dim if isinstance(dim, tuple | list) else (dim,)
    axes = tuple(d % len(shape) for d in dims)
    _leaves_samples(0 not in axes)
    return mean(shape, axes)


def _max_pool(shape: Shape, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
              ceil_mode: bool = False, return_indices: bool = False) -> Local:  # fmt: skip
    return max_pool(shape, kernel_size, stride, padding, dilation, ceil_mode)


def _batch_norm(shape: Shape, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Local:  # fmt: skip
    if training or running_mean is None:
        raise IronrankError(
            "no bound for a batch norm that has no running statistics: they depend on the batch"
        )
    norm = SimpleNamespace(
        running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, eps=eps
    )
    return of_batch_norm(norm, shape)


def _conv(shape: Shape, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Local:
    return of_conv(weight, bias, shape, *args, **kwargs)


def _linear(shape: Shape, weight: Tensor, bias: Tensor | None = None) -> Local:
    return of_linear(weight, bias, shape)


def _keeps(shape: Shape, *args: Any, **kwargs: Any) -> Local:
    return KEEPS


def _reorders(shape: Shape, *args: Any, **kwargs: Any) -> Local:
    if any(isinstance(argument, torch.dtype) for argument in (*args, *kwargs.values())):
        raise IronrankError("no bound for a view of bits as another type")
    return SAME


_CONV = ("conv1d", "conv2d", "conv3d")
_DIMS = ("1d", "2d", "3d")
FUNCTIONS: dict[str, Function] = {
    **{name: _activation(name) for name in SLOPES},
    **dict.fromkeys(("flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "pixelshuffle",
                     "pixelunshuffle", "channelshuffle"), _reorders),
    **dict.fromkeys(("contiguous", "clone", "float", "neg", "identity"), _keeps),
    **{f"dropout{dims}": dropout for dims in ("", *_DIMS)},
    "permute": _permute,
    "transpose": _transpose,
    "getitem": _getitem,
    "pad": pad,
    "mean": _mean,
    **{f"maxpool{dims}": _max_pool for dims in _DIMS},
    **{f"avgpool{dims}": average_pool for dims in _DIMS},
    **{f"adaptiveavgpool{dims}": adaptive_average_pool for dims in _DIMS},
    **{f"adaptivemaxpool{dims}": adaptive_max_pool for dims in _DIMS},
    **dict.fromkeys(_CONV, _conv),
    "linear": _linear,
    "batchnorm": _batch_norm,
}  # fmt: skip
FUNCTIONS["clip"] = FUNCTIONS["clampmin"] = FUNCTIONS["clampmax"] = FUNCTIONS["clamp"]


def plain_name(target: Any) -> str:
    """Return the name of a function or method, without underscores: ``F.leaky_relu_`` is "leakyrelu"."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.replace("_", "").lower()


def shifted(shape: Shape, by: Any) -> Local:
    """Return the bounds of a sum with a constant.

    Args:
        shape: Shape of the input (b, ...).
        by: A number, or a tensor that is broadcast.

    Returns:
        The bounds.
    """
    return Local(1.0, EPS32, 2 * EPS32 * constant(by, shape).norm().item(), keeps=True, method="shift")


def scaled(shape: Shape, by: Any, divide: bool = False) -> Local:
    """Return the bounds of a product with, or a division by, a constant.

    Args:
        shape: Shape of the input (b, ...).
        by: A number, or a tensor that is broadcast.
        divide: Whether to divide.

    Returns:
        The bounds; those of one factor for each channel know their operator.
    """
    whole = constant(by, shape)[0]
    whole = 1 / whole if divide else whole
    channels = whole.flatten(1)[:, 0] if whole.dim() > 1 else whole
    if torch.equal(whole, channels.view(-1, *[1] * (whole.dim() - 1)).expand_as(whole)):
        return scaling(channels, shape)
    gain = whole.abs().max().item()
    return Local(gain, 3 * EPS32 * gain, TINY32 * math.sqrt(whole.numel()), method="diagonal")
