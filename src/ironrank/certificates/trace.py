"""From a net to the graph of what it does, and refusals by name of what no graph shows.

A trace runs the forward once, on a stand-in for the image, and writes down the layers and functions that are called.
Hooks change a layer from outside, and functions of other makers may have the name of one that is known: both are
refused here. So are numbers that are not float32, whose rounding is another one, or not finite.

A value and a view of it are one memory. What works in place on it changes both, which a graph does not show; so it is
refused where any name of that memory is read again.
"""

from __future__ import annotations

import builtins
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as modules
from torch.utils._python_dispatch import TorchDispatchMode

from ironrank.certificates.functions import plain_name
from ironrank.certificates.layers import MODULES
from ironrank.errors import IronrankError

_KNOWN = {
    id(function): function for home in (torch, F, operator, builtins) for function in vars(home).values()
}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_IN_PLACE = ("iadd", "isub", "imul", "itruediv")
_OWN_MEMORY = ("clone", "neg", "pad")  # of those that leave the numbers as they are


class Entry(nn.Module):
    """Calls a net with an image alone, as a user does: with its own ``__call__`` and defaults."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        """Return what the net returns."""
        return self.net(x)


class _Proxy(fx.Proxy):
    """Stands in for a value, and keeps ``x += y`` apart from ``x = x + y``, which changes no other name of x."""


def _augmented(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
):
    setattr(_Proxy, f"__{_name}__", _augmented(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Layers of torch are nodes; other modules are looked into."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> tuple[Entry, fx.Graph]:
    """Trace a net.

    Args:
        model: The net, in evaluation mode and float32.

    Returns:
        What the names in the graph start from, and the graph.

    Raises:
        IronrankError: If hooks change what the net does, its numbers are not finite and float32, or its forward
            cannot be traced.
    """
    _check_hooks(model)
    _check_numbers(model)
    entry = Entry(model)
    try:
        return entry, _Tracer().trace(entry)
    except Exception as error:  # tracing runs the forward of a stranger: whatever it raises
        reason = " ".join(str(error).split())[:200]
        raise IronrankError(
            f"no bound: the forward of {type(model).__name__} cannot be traced ({reason})"
        ) from None


def _check_hooks(model: nn.Module) -> None:
    if any(getattr(modules, name) for name in _GLOBAL_HOOKS):
        raise IronrankError("no bound: there are hooks on all modules; remove them")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise IronrankError(
                f"no bound for module '{name}' ({type(module).__name__}): it has hooks; remove them"
            )


def _check_numbers(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise IronrankError(
                f"no bound: '{name}' is {tensor.dtype}; the rounding of float32 alone is known"
            )
        if not torch.isfinite(tensor).all():
            raise IronrankError(f"no bound: '{name}' is not finite")


class Watch(TorchDispatchMode):
    """Refuses what a graph does not show while a net is executed: random numbers, and numbers that are not float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch."""
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise IronrankError(f"no bound: the net is random: it calls {func}")
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise IronrankError(
                    f"no bound: {func} gives {tensor.dtype}; the rounding of float32 alone is known"
                )
        return result


def known(node: fx.Node) -> bool:
    """Return whether a node calls a layer, a method, or a function of torch or Python that has a public name there."""
    return node.op != "call_function" or _KNOWN.get(id(node.target)) is node.target


def shown(node: fx.Node) -> str:
    """Return the name of a layer in the net, or that of a call of a function in the graph."""
    return str(node.target).removeprefix("net").removeprefix(".") if node.op == "call_module" else node.name


class Memory:
    """Which values of a graph share memory.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.owner: dict[fx.Node, fx.Node] = {}

    def shares(self, node: fx.Node) -> None:
        """Note that a node may return the memory of its first input."""
        first = node.all_input_nodes[0]
        if plain_name(node.target) not in _OWN_MEMORY:
            self.owner[node] = self.owner.get(first, first)

    def read_later(self, node: fx.Node) -> bool:
        """Return whether the memory of a node's first input is read after the node, other than through it."""
        first, place = node.all_input_nodes[0], self.place
        owner = self.owner.get(first, first)
        names = [n for n in place if self.owner.get(n, n) is owner and place[n] < place[node]]
        return any(place[user] > place[node] for name in names for user in name.users)


def in_place(entry: nn.Module, node: fx.Node) -> bool:
    """Return whether a node works in place."""
    if node.op == "call_module":
        return bool(getattr(entry.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or bool(node.kwargs.get("inplace")) or plain_name(name) in _IN_PLACE
