"""Bounds of every layer of torch that is known: activations, dropout and padding here, the others from their files.

Activations act on each number by itself, so that their constant is the largest slope. Pooling is in `pooling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.certificates.linear import (
    CONVOLUTIONS,
    EPS32,
    TINY32,
    Local,
    Shape,
    of_batch_norm,
    of_conv,
    of_linear,
)
from ironrank.certificates.pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    max_pool,
)
from ironrank.errors import IronrankError

Rule = Callable[[Any, Shape], Local]
SAME = Local(1.0, method="reorders")
KEEPS = Local(1.0, keeps=True, method="identity")

# Largest slope, by the lower-case name that module and function share. Smooth ones are rounded up.
SLOPES: dict[str, Callable[..., float]] = {
    "relu": lambda: 1.0,
    "relu6": lambda: 1.0,
    "hardtanh": lambda min_val=-1.0, max_val=1.0: 1.0,
    "clamp": lambda min=None, max=None: 1.0,
    "leakyrelu": lambda negative_slope=0.01: max(abs(negative_slope), 1.0),
    "abs": lambda: 1.0,
    "tanh": lambda: 1.0,
    "sigmoid": lambda: 0.25,
    "softplus": lambda beta=1.0, threshold=20.0: _softplus(beta, threshold),
    "elu": lambda alpha=1.0: max(abs(alpha), 1.0),
    "celu": lambda alpha=1.0: 1.0 if alpha > 0 else math.inf,  # below 0 it grows like exp(|x|)
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


EXACT = (
    "relu",
    "relu6",
    "hardtanh",
    "clamp",
    "abs",
)  # no rounding but of their limits: the value or a constant
_ROUNDINGS = 32  # of the smooth ones and of their arguments: generous for any libm


def activation(name: str, shape: Shape, **settings: Any) -> Local:
    """Return the bounds of an activation.

    Args:
        name: Key of `SLOPES`.
        shape: Shape of the input (b, ...).
        **settings: Arguments of the activation.

    Returns:
        The bounds. Softplus jumps at its threshold by less than 3e-9, which the rounding covers.

    Raises:
        IronrankError: If it has no largest slope.
    """
    slope = SLOPES[name](**settings)
    if not math.isfinite(slope):
        raise IronrankError(f"no bound for {name} with {settings}: it is not Lipschitz")
    if name in EXACT:
        limits = [constant(limit, shape) for limit in settings.values() if limit is not None]
        return Local(slope, floor=math.fsum(map(own_rounding, limits)), method="slope")
    numbers = math.sqrt(math.prod(shape[1:]))
    if name == "leakyrelu":
        return Local(slope, EPS32 * slope, TINY32 * numbers, method="slope")
    return Local(slope, _ROUNDINGS * EPS32 * slope, _ROUNDINGS * EPS32 * numbers, method="slope")


def constant(value: Any, shape: Shape) -> Tensor:
    """Return a constant as it meets a value.

    Args:
        value: A number, or a tensor that is broadcast.
        shape: Shape of the value (b, ...).

    Returns:
        (1, ...), float64, as large as one sample.

    Raises:
        RuntimeError: If it is the value that would be broadcast, or each sample has a constant of its own.
    """
    return torch.as_tensor(value, dtype=torch.float64).broadcast_to((1, *shape[1:]))


def own_rounding(value: Tensor) -> float:
    """Return how far a constant is from itself in float32, in L2."""
    return (value - value.float()).nan_to_num(0.0).norm().item()  # infinity is itself


def _of_conv(m: Any, shape: Shape) -> Local:
    return of_conv(m.weight, m.bias, shape, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)


def _of_dropout(m: Any, shape: Shape) -> Local:
    return dropout(shape, m.p, m.training)


def dropout(shape: Shape, p: float = 0.5, training: bool = True, inplace: bool = False) -> Local:
    """Return the bounds of dropout that is off; arguments as torch takes them, after the shape of the input.

    Raises:
        IronrankError: If it is on.
    """
    if training:
        raise IronrankError("no bound for dropout that is on in evaluation: the net is random")
    return KEEPS


def pad(shape: Shape, pad: Any, mode: str = "constant", value: Any = None) -> Local:
    """Return the bounds of padding with a constant; arguments as torch takes them, after the shape of the input.

    Raises:
        IronrankError: If the padding repeats pixels, or adds samples.
    """
    if mode != "constant" or len(pad) > 2 * (len(shape) - 1):
        raise IronrankError(
            f"no bound for padding of mode {mode!r} as a function: pad inside the convolution"
        )
    size = (1, *(n + sum(max(p, 0) for p in pad) for n in shape[1:]))
    return replace(SAME, floor=own_rounding(constant(value or 0.0, size)))


def _of_pad(m: Any, shape: Shape) -> Local:
    return pad(shape, m.padding, "constant", m.value)


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
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _of_dropout),
    nn.Identity: lambda m, shape: KEEPS,
    nn.Flatten: lambda m, shape: KEEPS if len(shape) == 2 else SAME,
    **dict.fromkeys((nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), lambda m, shape: SAME),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
                    _of_pad),
    **{getattr(nn, kind): _activation(kind.lower()) for kind in _PLAIN},
    nn.LeakyReLU: _activation("leakyrelu", "negative_slope"),
    nn.Hardtanh: _activation("hardtanh", "min_val", "max_val"),
    nn.ELU: _activation("elu", "alpha"),
    nn.CELU: _activation("celu", "alpha"),
    nn.Softplus: _activation("softplus", "beta", "threshold"),
    nn.GELU: _activation("gelu"),
    nn.PReLU: lambda m, shape: activation("leakyrelu", shape, negative_slope=m.weight.abs().max().item()),
}  # fmt: skip
