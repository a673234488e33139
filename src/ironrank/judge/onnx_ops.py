"""The operators of ONNX that image classifiers use, each as a differentiable function of torch tensors.

A function takes the node's options and its inputs, missing ones as None. Source: the operator definitions of ONNX,
opset 7 to 21; where a definition leaves several forms over time, both are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Options = dict[str, Any]


class Node(NamedTuple):
    """One operator of a graph.

    Attributes:
        kind: Its name.
        inputs: Names of what goes in; "" for what is left out.
        outputs: Names of what comes out.
        options: Its attributes.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Options


def _numbers(value: Any) -> list[int]:
    return [int(v) for v in (value.tolist() if isinstance(value, Tensor) else value)]


def _margins(o: Options, x: Tensor, kernel: list[int]) -> list[int]:
    """Return the padding of each side in torch's order: last dimension first, before and after."""
    count, auto = len(kernel), o.get("auto_pad", "NOTSET")
    stride, dilation = o.get("strides", [1] * count), o.get("dilations", [1] * count)
    pads = _numbers(o.get("pads", [0] * 2 * count))
    if auto.startswith("SAME"):
        pads = [0] * 2 * count
        for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
            size = x.shape[2 + i]
            total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            less, more = total // 2, total - total // 2
            pads[i], pads[count + i] = (less, more) if auto == "SAME_UPPER" else (more, less)
    return [pads[side * count + i] for i in reversed(range(count)) for side in (0, 1)]


def _convolve(o: Options, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    run = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    x = F.pad(x, _margins(o, x, kernel))
    ones = [1] * len(kernel)
    return run(
        x,
        weight,
        bias,
        stride=o.get("strides", ones),
        dilation=o.get("dilations", ones),
        groups=o.get("group", 1),
    )


def _largest(o: Options, x: Tensor) -> Tensor:
    kernel = o["kernel_shape"]
    if o.get("ceil_mode", 0):
        raise RuntimeError("MaxPool with ceil_mode is not read")
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    x = F.pad(x, _margins(o, x, kernel), value=-torch.inf)
    ones = [1] * len(kernel)
    return run(x, kernel, stride=o.get("strides", ones), dilation=o.get("dilations", ones))


def _mean(o: Options, x: Tensor) -> Tensor:
    kernel = o["kernel_shape"]
    if o.get("ceil_mode", 0):
        raise RuntimeError("AveragePool with ceil_mode is not read")
    run: Callable = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    margins, stride = _margins(o, x, kernel), o.get("strides", [1] * len(kernel))
    total = run(F.pad(x, margins), kernel, stride=stride)
    if o.get("count_include_pad", 0) or not any(margins):
        return total
    return total / run(F.pad(torch.ones_like(x), margins), kernel, stride=stride)


def _gemm(o: Options, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (a.mT if o.get("transA", 0) else a), (b.mT if o.get("transB", 0) else b)
    product = o.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + o.get("beta", 1.0) * c


def _normalize(o: Options, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=o.get("epsilon", 1e-5))


def _flatten(o: Options, x: Tensor) -> Tensor:
    axis = o.get("axis", 1) % (x.dim() + 1)
    return x.reshape(int(torch.tensor(x.shape[:axis]).prod()) if axis else 1, -1)


def _reshape(o: Options, x: Tensor, shape: Tensor) -> Tensor:
    sizes = _numbers(shape)
    if not o.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _squeeze(o: Options, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _numbers(o["axes"] if axes is None and "axes" in o else axes if axes is not None else [])
    return x.squeeze(tuple(chosen)) if chosen else x.squeeze()


def _unsqueeze(o: Options, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _numbers(o["axes"] if axes is None else axes)
    for axis in sorted(a % (x.dim() + len(chosen)) for a in chosen):
        x = x.unsqueeze(axis)
    return x


def _clip(o: Options, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    low = o.get("min") if low is None else low
    high = o.get("max") if high is None else high
    return x.clamp(None if low is None else float(low), None if high is None else float(high))


def _pad(
    o: Options, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Any = None
) -> Tensor:
    if axes is not None:
        raise RuntimeError("Pad with axes is not read")
    sides = _numbers(o["pads"] if pads is None else pads)
    count = len(sides) // 2
    margins = [sides[side * count + i] for i in reversed(range(count)) for side in (0, 1)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[o.get("mode", "constant")]
    if mode != "constant":
        return F.pad(x, margins[: 2 * (count - 2)], mode)
    return F.pad(x, margins, value=float(o.get("value", 0.0) if value is None else value))


def _slice(o: Options, x: Tensor, *more: Tensor) -> Tensor:
    parts = (
        [_numbers(part) for part in more]
        if more
        else [o["starts"], o["ends"], *([o["axes"]] if "axes" in o else [])]
    )
    starts, ends = parts[:2]
    axes = parts[2] if len(parts) > 2 else range(len(starts))
    steps = parts[3] if len(parts) > 3 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        chosen = torch.arange(x.shape[axis], device=x.device)[
            slice(start, end if step > 0 or end >= 0 else None)
        ]
        x = x.index_select(axis, chosen[::step])
    return x


def _reduce(name: str) -> Callable[..., Tensor]:
    def run(o: Options, x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = o.get("axes") if axes is None else axes
        chosen = list(range(x.dim())) if given is None else _numbers(given)
        return getattr(torch, name)(x, dim=chosen, keepdim=bool(o.get("keepdims", 1)))

    return run


def _constant(o: Options) -> Tensor:
    if "value" in o:
        return o["value"]
    (kind, value), *_ = o.items()
    return torch.tensor(value, dtype=torch.int64 if "int" in kind else torch.float32)


def _gather(o: Options, x: Tensor, index: Tensor) -> Tensor:
    axis = o.get("axis", 0) % x.dim()
    flat = x.index_select(axis, index.flatten() % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _divide(o: Options, a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _convolve,
    "Gemm": _gemm,
    "MatMul": lambda o, a, b: a @ b,
    "BatchNormalization": _normalize,
    "MaxPool": _largest,
    "AveragePool": _mean,
    "GlobalAveragePool": lambda o, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda o, x: x.amax(tuple(range(2, x.dim())), keepdim=True),
    "Relu": lambda o, x: x.relu(),
    "LeakyRelu": lambda o, x: F.leaky_relu(x, o.get("alpha", 0.01)),
    "Elu": lambda o, x: F.elu(x, o.get("alpha", 1.0)),
    "Gelu": lambda o, x: F.gelu(x, approximate=o.get("approximate", "none")),
    "HardSigmoid": lambda o, x: (o.get("alpha", 0.2) * x + o.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda o, x: x * (x / 6 + 0.5).clamp(0, 1),
    "Sigmoid": lambda o, x: x.sigmoid(),
    "Tanh": lambda o, x: x.tanh(),
    "Erf": lambda o, x: x.erf(),
    "Exp": lambda o, x: x.exp(),
    "Log": lambda o, x: x.log(),
    "Sqrt": lambda o, x: x.sqrt(),
    "Neg": lambda o, x: -x,
    "Abs": lambda o, x: x.abs(),
    "Softplus": lambda o, x: F.softplus(x),
    "Softmax": lambda o, x: x.softmax(o.get("axis", -1)),
    "LogSoftmax": lambda o, x: x.log_softmax(o.get("axis", -1)),
    "Add": lambda o, a, b: a + b,
    "Sub": lambda o, a, b: a - b,
    "Mul": lambda o, a, b: a * b,
    "Div": _divide,
    "Pow": lambda o, a, b: a**b,
    "Max": lambda o, *xs: torch.stack(torch.broadcast_tensors(*xs)).amax(0),
    "Min": lambda o, *xs: torch.stack(torch.broadcast_tensors(*xs)).amin(0),
    "Sum": lambda o, *xs: sum(xs),
    "Clip": _clip,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda o, x: x.permute(o.get("perm", tuple(reversed(range(x.dim()))))),
    "Concat": lambda o, *xs: torch.cat(xs, o["axis"]),
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Shape": lambda o, x: torch.tensor(x.shape[o.get("start", 0) : o.get("end")], device=x.device),
    "Constant": _constant,
    "Identity": lambda o, x: x,
    "Dropout": lambda o, x, *_: x,
}
