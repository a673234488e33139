"""Linear layers for a certificate: their operator, its norm, compositions, and the rounding of float32.

An operator is a `Convolution` (a linear layer is one without axes) or a `Scale` of channels, such as a batch norm with
its running statistics. Two that follow each other are one operator where that is a convolution again, so that the bound
is the norm of the product and not the product of norms: batch norm folds into the layer before it, normalization into
the one after it, and the thin layers of a factored one into the layer that they stand for. `then` says where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.certificates.convolution import Convolution
from ironrank.certificates.gram import gamma
from ironrank.errors import IronrankError

EPS32 = torch.finfo(torch.float32).eps  # twice the unit roundoff
UNIT32 = EPS32 / 2
TINY32 = torch.finfo(torch.float32).tiny  # below this float32 may flush to zero
Shape = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Scale:
    """A factor for each channel (c,), float64."""

    factor: Tensor

    def norm(self) -> float:
        """Return the largest factor in absolute value."""
        return self.factor.abs().max().item()


Operator = Convolution | Scale


@dataclass(frozen=True, eq=False)
class Local:
    """What one layer does to distances and to rounding errors.

    Attributes:
        gain: Lipschitz constant, in L2.
        noise: The layer's own rounding in float32 is at most ``noise * ||input|| + floor``, in L2.
        floor: See ``noise``.
        operator: Its linear part, where it is affine.
        keeps: Whether it only shifts, so that the linear part of what comes in stays.
        method: How the gain was found, in a word or two.
    """

    gain: float
    noise: float = 0.0
    floor: float = 0.0
    operator: Operator | None = None
    keeps: bool = False
    method: str = "exact"


def then(first: Operator, second: Operator) -> Operator | None:
    """Return ``second o first`` as one operator, or None where it is not one of these kinds.

    Args:
        first: What acts first.
        second: What acts on its output.

    Returns:
        The composition. Two convolutions compose where on each axis one of them has kernel 1, stride 1 and no padding,
        so that it commutes with all the other one does there.
    """
    if isinstance(second, Scale):
        return _scaled_outputs(first, second.factor)
    if isinstance(first, Scale):
        return _scaled_inputs(second, first.factor)
    return _composed(first, second)


def _scaled_outputs(operator: Operator, factor: Tensor) -> Operator | None:
    if isinstance(operator, Scale):
        return Scale(operator.factor * factor)
    kernel = operator.kernel
    if len(factor) != len(kernel):
        return None
    return replace(operator, kernel=kernel * factor.view(-1, *[1] * (kernel.dim() - 1)))


def _scaled_inputs(operator: Convolution, factor: Tensor) -> Operator | None:
    kernel = operator.kernel
    if len(factor) != operator.inputs:
        return None
    groups = operator.groups
    factors = factor.view(groups, 1, -1).expand(groups, len(kernel) // groups, -1).reshape(len(kernel), -1)
    return replace(operator, kernel=kernel * factors.view(*factors.shape, *[1] * (kernel.dim() - 2)))


def _composed(first: Convolution, second: Convolution) -> Operator | None:
    fits = first.groups == second.groups == 1 and first.output_size == second.size
    active = [_active(first), _active(second)]
    if not fits or any(a and b for a, b in zip(*active, strict=True)):
        return None
    modes = {op.mode for op in (first, second) if any(map(sum, op.padding))}
    if len(modes) > 1:
        return None
    axes: dict[str, Any] = {
        name: tuple(
            getattr(first if of_first else second, name)[axis] for axis, of_first in enumerate(active[0])
        )
        for name in ("stride", "padding", "dilation")
    }
    kernel = torch.einsum("nr...,rc...->nc...", second.kernel, first.kernel)
    return Convolution(kernel, first.size, mode=modes.pop() if modes else "zeros", **axes)


def _active(op: Convolution) -> list[bool]:
    return [op.kernel.shape[2 + a] > 1 or op.stride[a] > 1 or sum(op.padding[a]) > 0 for a in op.axes]


def convolution(operator: Convolution, bias: Tensor | None) -> Local:
    """Return the bounds of a convolution or linear layer.

    Args:
        operator: Its linear part.
        bias: (n,), or None.

    Returns:
        The bounds. An output is a sum of m products and the bias: its error is at most
        ``gamma(m + 1) (|K| |x| + |b|)``, and the norm of ``|K|`` at most the root of its largest row sum times its
        largest column sum, and at most its Frobenius norm.
    """
    outputs, positions = len(operator.kernel), math.prod(operator.output_size)
    relative = gamma(operator.kernel[0].numel() + 1, UNIT32)
    size = operator.kernel.abs().reshape(operator.groups, -1, *operator.kernel.shape[1:])
    rows = size.flatten(2).sum(2).max().item()
    columns = size.transpose(1, 2).flatten(2).sum(2).max().item()
    frobenius = operator.kernel.square().sum().item() * positions
    absolute = math.sqrt(min(rows * columns, frobenius) * operator.copies)
    shift = 0.0 if bias is None else bias.double().norm().item() * math.sqrt(positions)
    underflow = 2 * (operator.kernel[0].numel() + 2) * TINY32 * math.sqrt(outputs * positions)
    return Local(operator.norm(), relative * absolute, relative * shift + underflow, operator, method="gram")


def of_linear(weight: Tensor, bias: Tensor | None, shape: Shape) -> Local:
    """Return the bounds of ``x W^T + b``.

    Args:
        weight: (n, m).
        bias: (n,), or None.
        shape: Shape of the input (b, ..., m).

    Returns:
        The bounds.

    Raises:
        IronrankError: If the weight is a vector, or the input one sample without a batch.
    """
    if weight.dim() != 2 or len(shape) < 2:
        raise IronrankError("no bound for a linear layer without samples or outputs of its own: give it both")
    found = convolution(Convolution(weight.detach().double()), bias)
    if len(shape) == 2:
        return found
    # the same layer on many rows: no operator, since channels are no longer the second dimension
    return replace(found, floor=found.floor * math.sqrt(math.prod(shape[1:-1])), operator=None)


def of_conv(
    weight: Tensor,
    bias: Tensor | None,
    shape: Shape,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "zeros",
) -> Local:
    """Return the bounds of a convolution.

    Args:
        weight: (n, c / groups, *k).
        bias: (n,), or None.
        shape: Shape of the input (b, c, *size).
        stride: As torch takes it.
        padding: As torch takes it, also "same" and "valid".
        dilation: As torch takes it.
        groups: Number of groups.
        mode: Padding mode.

    Returns:
        The bounds.
    """
    kernel = weight.detach().double()
    dims = kernel.dim() - 2
    stride, dilation = (tuple(v) if isinstance(v, tuple | list) else (v,) * dims for v in (stride, dilation))
    if padding == "same":  # the odd pixel at the far end, as torch does
        total = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        pads = tuple((t // 2, t - t // 2) for t in total)
    else:
        padding = 0 if padding == "valid" else padding
        pads = tuple((p, p) for p in (padding if isinstance(padding, tuple | list) else (padding,) * dims))
    return convolution(Convolution(kernel, tuple(shape[2:]), stride, pads, dilation, mode, groups), bias)


def of_batch_norm(norm: Any, shape: Shape) -> Local:
    """Return the bounds of a batch norm with its running statistics: ``(x - mean) / sqrt(var + eps) w + b``.

    Args:
        norm: The layer, in evaluation mode.
        shape: Shape of the input (b, c, ...).

    Returns:
        The bounds; each output takes fewer than 8 roundings.
    """
    var, mean = norm.running_var.double(), norm.running_mean.double()
    factor = (var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    shift = (factor * mean).abs() + (0 if norm.bias is None else norm.bias.detach().double().abs())
    return scaling(factor, shape, 8 * shift.norm().item() * math.sqrt(math.prod(shape[2:])), roundings=8)


def scaling(factor: Tensor, shape: Shape, shift: float = 0.0, roundings: int = 3) -> Local:
    """Return the bounds of a product with a constant for each channel.

    Args:
        factor: (c,).
        shape: Shape of the input (b, c, ...).
        shift: L2 norm of a constant that is added, times its roundings.
        roundings: How often an output is rounded.

    Returns:
        The bounds.
    """
    operator = Scale(factor.detach().double())
    gain = operator.norm()
    floor = EPS32 * shift + TINY32 * roundings * math.sqrt(math.prod(shape[1:])) * max(1.0, gain)
    return Local(gain, roundings * EPS32 * gain, floor, operator, method="diagonal")
