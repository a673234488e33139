"""Bounds of pooling.

Average pooling is a product of one small matrix for each axis, whose norms multiply. Max pooling moves by at most the
largest change in a window, so its square by at most as many times as there are windows that a pixel is in: once where
they do not overlap, which is often taken for granted where they do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ironrank.certificates.gram import gamma, spectral_norm
from ironrank.certificates.linear import TINY32, UNIT32, Local, Shape
from ironrank.errors import IronrankError


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
