r"""A walk through a net that carries, beside the numbers, how far they can move and how far float32 is off.

The forward is traced into a graph of layers and functions (`torch.fx`), so that residual branches, blocks and modules
of the user's own need no rule: only what the graph calls does, and what has none is refused by name. For each value of
the graph:

    x             the value for each image, in float64
    lipschitz     ||x(image') - x(image)|| <= lipschitz ||image' - image||
    error, slope  the value that float32 computes for an image within rho is off by at most ``error + slope rho``

A layer of gain g and own rounding ``noise ||input|| + floor`` turns them into ``g lipschitz``,
``g error + noise (||x|| + error) + floor`` and ``g slope + noise (lipschitz + slope)``: the norm of the input is that
at this image, plus what it can grow by within rho. A sum adds them, so that a residual block has the constant
``||shortcut|| + ||branch||``. Where layers compose to one operator, its norm from where it starts is taken if smaller.

Rounding is that of any order of summation, with or without fused multiply-adds, in IEEE float32: not of TF32, of half
precision, nor of convolutions by transforms (Winograd, FFT). The float32 logits of every image are compared with the
float64 ones, and a net that is further off than its bound is refused: such arithmetic, a net that is random, and a
trace that is not the net show there.
"""

from __future__ import annotations

import math
import operator as op
import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ironrank.certificates.convolution import Convolution
from ironrank.certificates.functions import FUNCTIONS, plain_name, scaled, shifted
from ironrank.certificates.layers import MODULES
from ironrank.certificates.linear import EPS32, Local
from ironrank.certificates.trace import Memory, in_place, known, shown, trace
from ironrank.certificates.values import Step, Value, moved, norms, room, step_of
from ironrank.errors import IronrankError

_PLAIN = ("size", "dim", "ndimension", "numel", "getattr")  # they give numbers, not tensors


class Walk:
    """A net, ready to be walked through.

    Args:
        model: The net, of plain torch layers, in evaluation mode and float32.

    Attributes:
        lipschitz: From the image to the logits; known after the first walk.
        body: From the image to where the last linear layer starts; None where the net does not end in one.

    Raises:
        IronrankError: If its forward cannot be traced, hooks change what it does, or its numbers are not float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self.entry, self.graph = trace(model)
        self.memory, self.steps = Memory(self.graph), dict[str, Step]()
        self.lipschitz: float = math.inf
        self.body: float | None = None

    def __call__(self, x: Tensor) -> Value:
        """Walk through the net.

        Args:
            x: Pixels (b, c, h, w), float32 numbers held in float64.

        Returns:
            The logits (b, classes).

        Raises:
            IronrankError: If a layer or function has no bound.
        """
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = Value(x, 1.0, x.new_zeros(len(x)))
            elif node.op == "get_attr":
                values[node] = self._constant(str(node.target))
            elif node.op == "output":
                return self._logits(fx.map_arg(node.args[0], values.__getitem__))
            else:
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                values[node] = self._call(node, args, kwargs)
            for used in [n for n in node.all_input_nodes if list(n.users)[-1] is node]:
                del values[used]  # its last use
        raise IronrankError("no bound: the forward returns nothing")

    def _constant(self, name: str) -> Tensor:
        """Return a parameter, buffer or constant in float32, so that what the net computes of it is what it uses."""
        found = op.attrgetter(name)(self.entry)
        if not isinstance(found, Tensor):
            raise IronrankError(
                f"no bound for '{name.removeprefix('net.')}': a {type(found).__name__} is no layer"
            )
        return found.detach().clone()

    def _logits(self, value: Any) -> Value:
        if not isinstance(value, Value) or value.x.dim() != 2:
            raise IronrankError("no bound: the forward must return logits (b, classes), one tensor")
        last = value.source if value.source and isinstance(value.source[0], Convolution) else None
        self.lipschitz, self.body = value.lipschitz, last[1] if last else None
        return value

    def _call(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        values = _values((args, kwargs))
        name = plain_name(node.target)
        result = self._run(node, args, kwargs) if values else _plain_run(node, args, kwargs)
        if not values or (name in _PLAIN and not isinstance(result, Tensor)):
            return result
        self._check(node, name, args, kwargs, values, result)
        if len(values) > 1:
            return self._joined(node, name, values, result)
        step = self.steps.get(node.name)
        if step is None:
            step = self.steps[node.name] = step_of(self._local(node, name, args, kwargs), values[0])
        if step.local.method in _SHARING:
            self.memory.shares(node)
        return moved(values[0], result, step)

    def _check(
        self, node: fx.Node, name: str, args: tuple, kwargs: dict[str, Any], values: list[Value], result: Any
    ) -> None:
        """Refuse what would make the rules unsound: mixed samples, values that spread out, changes of other values."""
        if not known(node):
            raise self._refusal(node, "only functions of torch are known")
        if not isinstance(result, Tensor) or result.shape[:1] != values[0].x.shape[:1]:
            raise self._refusal(node, "samples must stay apart")
        if result.dtype != torch.float64 or "out" in kwargs:
            raise self._refusal(node, "it must return numbers of the type that it takes")
        if name in _ARITHMETIC and (
            any(v.x.shape != result.shape for v in values) or len(args) > 2 or kwargs
        ):
            raise self._refusal(node, "a value is broadcast, or there are more arguments than two")
        if in_place(self.entry, node):
            if not isinstance(args[0], Value) or self.memory.read_later(node):
                raise self._refusal(node, "it works in place on a value that is used again, or on a constant")
            self.memory.shares(node)

    def _run(self, node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compute the node in float64, on copies, so that what works in place harms no other value."""
        args, kwargs = _tensors(args), _tensors(kwargs)
        if node.op == "call_module":
            module = self.entry.get_submodule(str(node.target))
            return torch.func.functional_call(module, _doubles(module), args, kwargs)
        if node.op == "call_method" and node.target == "float":
            return args[0]
        return _plain_run(node, args, kwargs)

    def _local(self, node: fx.Node, name: str, args: tuple, kwargs: dict[str, Any]) -> Local:
        """Return the bounds of a node with one value among its arguments."""
        try:
            if node.op == "call_module":
                module = self.entry.get_submodule(str(node.target))
                if type(module) not in MODULES or "forward" in vars(module):
                    raise self._refusal(node, "only layers that are known have one")
                self._check_dimensions(node, type(module).__name__.lower(), args[0])
                return MODULES[type(module)](module, args[0].shape)
            if name in _ARITHMETIC:
                return _arithmetic(name, args)
            if name in FUNCTIONS and isinstance(args[0], Value):
                self._check_dimensions(node, name, args[0])
                return FUNCTIONS[name](args[0].shape, *args[1:], **kwargs)
        except IronrankError:
            raise
        except (TypeError, LookupError, AttributeError, RuntimeError, ValueError) as error:
            raise self._refusal(node, f"its arguments are not understood: {error}") from None
        raise self._refusal(node, "only functions that are known have one")

    def _check_dimensions(self, node: fx.Node, name: str, value: Value) -> None:
        """Refuse what torch takes for one image without a batch: its samples would be channels."""
        dims = re.search(r"(?<!norm)([123])d$", name.replace("dropout", "norm"))
        if dims and len(value.shape) != 2 + int(dims[1]):
            raise self._refusal(node, f"its input must be samples x channels x {dims[1]} axes")

    def _joined(self, node: fx.Node, name: str, values: list[Value], result: Tensor) -> Value:
        if name in ("add", "iadd", "sub", "isub"):
            total = math.fsum(v.lipschitz for v in values)
        elif name in ("cat", "concat") and result.shape[0] == len(values[0].x):
            total = math.hypot(*(v.lipschitz for v in values))
        else:
            raise self._refusal(node, "it joins several values in a way that has none")
        error, slope = sum(v.error for v in values), math.fsum(v.slope for v in values)
        self.steps.setdefault(node.name, Step(Local(1.0, method="sum"), total, None, False))
        error = error + EPS32 * (norms(result) + error)
        slope += EPS32 * (total + slope)
        return Value(result, total, error, slope, room=room(values, error, slope))

    def _refusal(self, node: fx.Node, reason: str) -> IronrankError:
        if node.op == "call_module":
            kind = type(self.entry.get_submodule(str(node.target))).__name__
            return IronrankError(f"no bound for module '{shown(node)}' ({kind}): {reason}")
        return IronrankError(f"no bound for function '{plain_name(node.target)}' at '{node.name}': {reason}")

    def rows(self) -> list[dict[str, Any]]:
        """Return, for each node in order: name, bound, method, and the Lipschitz constant from the image to it."""
        names = {node.name: shown(node) for node in self.graph.nodes}
        return [
            {"name": names[name], "bound": step.local.gain, "lipschitz": step.lipschitz,
             "method": step.local.method + (", folded" if step.folded else "")}
            for name, step in self.steps.items()
            if step.local.method not in ("identity", "reorders", "shift")
        ]  # fmt: skip


_SHARING = ("identity", "reorders")  # methods of layers and functions that may return a view
_ARITHMETIC = ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div")


def _values(arguments: Any) -> list[Value]:
    """Return the values among arguments, however deep, as often as they occur."""
    found: list[Value] = []
    pytree.tree_map_only(Value, found.append, arguments)
    return found


def _plain_run(node: fx.Node, args: tuple, kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _arithmetic(name: str, args: tuple) -> Local:
    """Return the bounds of arithmetic between one value and a constant."""
    left, right = args[:2]
    value, constant = (left, right) if isinstance(left, Value) else (right, left)
    kind = name.removeprefix("i")
    if kind in ("add", "sub"):
        return shifted(value.shape, constant)  # constant - value turns the sign, which no norm sees
    if kind in ("truediv", "div") and value is right:
        raise TypeError("division by a value")
    return scaled(value.shape, constant, divide=kind != "mul")


def _tensors(arguments: Any) -> Any:
    """Return the arguments in float64, with copies of the tensors in place of values."""
    kinds = (Value, Tensor)
    return pytree.tree_map_only(
        kinds, lambda a: a.x.clone() if isinstance(a, Value) else _raised(a), arguments
    )


def _doubles(module: nn.Module) -> dict[str, Tensor]:
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: _raised(tensor) for name, tensor in held.items()}


def _raised(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor
