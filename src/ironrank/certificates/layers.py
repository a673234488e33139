"""Lipschitz constants of the layers that are not linear with weights: activations, pooling, and what only reorders.

Activations act on each number by itself, so that their constant is the largest slope. Average pooling is a product of
one small matrix for each axis, whose norms multiply. Max pooling moves by at most the largest change in a window, so
its square by at most as many times as there are windows that a pixel is in: once where they do not overlap, which
is often taken for granted where they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ironrank.certificates.gram import gamma, spectral_norm
from ironrank.certificates.linear import (
    CONVOLUTIONS,
    EPS32,
    TINY32,
    UNIT32,
    Local,
    of_batch_norm,
    of_conv,
    of_linear,
)
from ironrank.errors import IronrankError

Shape = tuple[int, ...]
Rule = Callable[[Any, Shape], Local]
SAME = Local(1.0, method="reorders")
KEEPS = Local(1.0, keeps=True, method="identity")

# Largest slope, by the lower-case name that module and function share. Smooth ones are rounded up.
SLOPES: dict[str, Callable[..., float]] = {
    "relu": lambda: 1.0,
    "relu6": lambda: 1.0,
    "hardtanh": lambda min_val=-1.0, max_val=1.0: 1.0,
    "clamp": lambda min=None, max=None: 1.0,
    "leakyrelu": lambda negative_slope=0.01: max(1.0, abs(negative_slope)),
    "abs": lambda: 1.0,
    "tanh": lambda: 1.0,
    "sigmoid": lambda: 0.25,
    "softplus": lambda beta=1.0, threshold=20.0: _softplus(beta, threshold),
    "elu": lambda alpha=1.0: max(1.0, abs(alpha)),
    "celu": lambda alpha=1.0: 1.0,
    "selu": lambda: 1.7581,
    "silu": lambda: 1.0999,
    "gelu": lambda approximate="none": 1.1291,
    "mish": lambda: 1.0887,
    "hardswish": lambda: 1.5,
    "hardsigmoid": lambda: 1 / 6 + 1e-9,
    "softsign": lambda: 1.0,
    "logsigmoid": lambda: 1.0,
}


def _softplus(beta: float, threshold: float) -> float:
    if beta < 1 or threshold < 20:  # it jumps at the threshold, by 2e-9 / beta at 20
        raise IronrankError(
            f"no bound for softplus with beta={beta}, threshold={threshold}: allowed is beta >= 1, threshold >= 20"
        )
    return 1.0


EXACT = ("relu", "relu6", "hardtanh", "clamp", "abs")  # no rounding: the value or a constant
_ROUNDINGS = 32  # of the smooth ones and of their arguments: generous for any libm


def activation(name: str, shape: Shape, **settings: Any) -> Local:
    """Return the bounds of an activation.

    Args:
        name: Key of `SLOPES`.
        shape: Shape of the input (b, ...).
        **settings: Arguments of the activation.

    Returns:
        The bounds. Softplus jumps at its threshold by less than 3e-9, which the rounding covers.
    """
    slope = SLOPES[name](**settings)
    if name in EXACT:
        return Local(slope, method="slope")
    numbers = math.sqrt(math.prod(shape[1:]))
    if name == "leakyrelu":
        return Local(slope, EPS32 * slope, TINY32 * numbers, method="slope")
    return Local(slope, _ROUNDINGS * EPS32 * slope, _ROUNDINGS * EPS32 * numbers, method="slope")


def per_axis(value: Any, axes: int) -> Shape:
    """Return one number for each axis."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


def average_pool(
    shape: Shape, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Local:  # fmt: skip
    """Return the bounds of average pooling; arguments as torch takes them, after the shape of the input.

    Raises:
        IronrankError: If there is a ``divisor_override``.
    """
    if divisor_override is not None:
        raise IronrankError(f"no bound for average pooling with divisor_override={divisor_override}")
    size = shape[2:]
    form = zip(
        size, *(per_axis(v, len(size)) for v in (kernel_size, stride or kernel_size, padding)), strict=True
    )
    lines = [F.avg_pool1d(_unit(n), k, s, p, ceil_mode, count_include_pad).squeeze(0) for n, k, s, p in form]
    return _averages(lines, math.prod(per_axis(kernel_size, len(size))))


def adaptive_average_pool(shape: Shape, output_size: Any) -> Local:
    """Return the bounds of adaptive average pooling.

    Args:
        shape: Shape of the input (b, c, *size).
        output_size: As torch takes it.

    Returns:
        The bounds.
    """
    size = shape[2:]
    wanted = [
        n if out is None else out for n, out in zip(size, per_axis(output_size, len(size)), strict=True)
    ]
    lines = [F.adaptive_avg_pool1d(_unit(n), out).squeeze(0) for n, out in zip(size, wanted, strict=True)]
    return _averages(lines, math.prod(size))


def mean(shape: Shape, axes: Shape) -> Local:
    """Return the bounds of a mean over axes, none of them the first."""
    terms = math.prod(shape[axis] for axis in axes)
    return _averages([torch.full((1, terms), 1 / terms, dtype=torch.float64)], terms)


def _unit(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64).unsqueeze(0)


def _averages(lines: list[Tensor], terms: int) -> Local:
    """Return the bounds of a product of averages over axes: weights are above zero, so noise is a share of the gain."""
    gain = math.prod(spectral_norm(line, rtol=1e-6) for line in lines)
    return Local(gain, gamma(terms + 4, UNIT32) * gain, TINY32, method="average")


def max_pool(
    shape: Shape,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Local:
    """Return the bounds of max pooling; arguments as torch takes them, after the shape of the input."""
    size = shape[2:]
    axes = [per_axis(v, len(size)) for v in (kernel_size, stride or kernel_size, padding, dilation)]
    windows = math.prod(_windows(form, ceil_mode) for form in zip(size, *axes, strict=True))
    return Local(math.sqrt(windows), method="windows of a pixel")


def _windows(form: Shape, ceil_mode: bool) -> int:
    """Return in how many windows the most covered pixel of an axis is; one window too many at the end does no harm."""
    n, k, s, p, d = form
    last = n + 2 * p - d * (k - 1) - 1
    starts = range(-p, -p + (-(-last // s) if ceil_mode else last // s) * s + 1, s)
    covered = [start + d * t for start in starts for t in range(k)]
    return max(covered.count(i) for i in range(n))


def adaptive_max_pool(shape: Shape, output_size: Any) -> Local:
    """Return the bounds of adaptive max pooling; windows go from floor(i n / m) to ceil((i + 1) n / m).

    Args:
        shape: Shape of the input (b, c, *size).
        output_size: As torch takes it.

    Returns:
        The bounds.
    """
    most = 1
    for n, out in zip(shape[2:], per_axis(output_size, len(shape) - 2), strict=True):
        m = n if out is None else out
        spans = [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        most *= max(sum(pixel in span for span in spans) for pixel in range(n))
    return Local(math.sqrt(most), method="windows of a pixel")


def _of_conv(m: Any, shape: Shape) -> Local:
    return of_conv(m.weight, m.bias, shape, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)


def _of_batch_norm(m: Any, shape: Shape) -> Local:
    if m.running_mean is None or m.training:
        raise IronrankError(
            "no bound for a batch norm that has no running statistics: they depend on the batch"
        )
    return of_batch_norm(m, shape)


def _of_max_pool(m: Any, shape: Shape) -> Local:
    return max_pool(shape, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)


def _of_average_pool(m: Any, shape: Shape) -> Local:
    override = getattr(m, "divisor_override", None)
    return average_pool(shape, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, override)


def _activation(name: str, *settings: str) -> Rule:
    return lambda m, shape: activation(name, shape, **{key: getattr(m, key) for key in settings})


_PLAIN = ("ReLU", "ReLU6", "Tanh", "Sigmoid", "SELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid", "Softsign",
          "LogSigmoid")  # fmt: skip
MODULES: dict[type[nn.Module], Rule] = {
    nn.Linear: lambda m, shape: of_linear(m.weight, m.bias, shape),
    **dict.fromkeys(CONVOLUTIONS, _of_conv),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _of_batch_norm),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _of_max_pool),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _of_average_pool),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
                    lambda m, shape: adaptive_average_pool(shape, m.output_size)),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
                    lambda m, shape: adaptive_max_pool(shape, m.output_size)),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda m, shape: KEEPS),
    nn.Flatten: lambda m, shape: KEEPS if len(shape) == 2 else SAME,
    **dict.fromkeys((nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d,
                     nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), lambda m, shape: SAME),
    **{getattr(nn, kind): _activation(kind.lower()) for kind in _PLAIN},
    nn.LeakyReLU: _activation("leakyrelu", "negative_slope"),
    nn.Hardtanh: _activation("hardtanh"),
    nn.ELU: _activation("elu", "alpha"),
    nn.CELU: _activation("celu"),
    nn.Softplus: _activation("softplus", "beta", "threshold"),
    nn.GELU: _activation("gelu"),
    nn.PReLU: lambda m, shape: activation("leakyrelu", shape, negative_slope=m.weight.abs().max().item()),
}  # fmt: skip
