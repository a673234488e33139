"""Why a layer must stay as it is: what would break, or cannot be known to work, if it were replaced."""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter
from types import MethodType
from typing import Any

import torch
from torch import nn

from ironrank.layers import FACTORED
from ironrank.surgery.find import candidates

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def untouchable(model: nn.Module) -> dict[str, str]:
    """Return, for layers that must stay as they are, the reason by full name."""
    owners = Counter(_place(p) for _, module in model.named_modules(remove_duplicate=False)
                     for p in module.parameters(recurse=False))  # fmt: skip
    held, reasons = _held_aside(model), {}
    for name, layer in candidates(model):
        if type(layer) not in FACTORED:
            reasons[name] = f"{type(layer).__name__} is a sub-class that may use its weight otherwise"
        elif "weight" not in layer._parameters:
            reasons[name] = "its weight is parametrized"
        elif layer.weight.dtype not in DTYPES:
            kind = str(layer.weight.dtype).removeprefix("torch.")
            reasons[name] = f"its weight is {kind}, which is not decomposed"
        elif any(owners[_place(p)] > 1 for p in layer.parameters(recurse=False)):
            reasons[name] = "tied: its weight is shared with another layer"
        elif getattr(layer, "groups", 1) != 1:
            reasons[name] = f"grouped convolution (groups={layer.groups}): each group has a matrix of its own"
        elif any(
            (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
        ):
            reasons[name] = "it carries hooks"
        elif place := held.get(id(layer)):
            reasons[name] = (
                f"{place} holds it too, outside of the modules that torch knows: take nn.ModuleList"
            )
        elif user := _reads_weight(model, name):
            reasons[name] = f"{user} reads its weight instead of calling it"
    return reasons


def _place(p: nn.Parameter) -> int:
    """Return what two parameters that hold the same numbers have in common."""
    return id(p) if nn.parameter.is_lazy(p) else p.data_ptr() or id(p)


def _held_aside(model: nn.Module) -> dict[int, str]:
    """Return where modules are held in plain attributes, which a replacement would not reach, by id."""
    usual = vars(nn.Module()).keys()
    held: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in usual:
                where = f"{name}.{key}" if name else key
                held |= {id(found): where for found in _modules_in(value)}
    return held


def _modules_in(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, MethodType):
        return _modules_in(value.__self__)
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set):
        return []
    return [module for item in value for module in _modules_in(item)]


def _reads_weight(model: nn.Module, name: str) -> str:
    """Return the class of an enclosing module whose code reads ``.weight`` or ``.bias`` of the layer, or nothing."""
    parts = name.split(".")
    for depth in range(len(parts)):
        kind: Any = type(model.get_submodule(".".join(parts[:depth])))
        if kind.__module__.startswith("torch.nn.modules.container"):
            continue
        path = "".join(
            r"(?:\[[^\]]*\]|\.\w+)" if part.isdigit() else rf"\.{re.escape(part)}" for part in parts[depth:]
        )
        if re.search(rf"\bself{path}\.(weight|bias)\b", _forward_source(kind)):
            return kind.__name__
    return ""


@functools.cache
def _forward_source(kind: Any) -> str:
    """Return the source of all methods of a class but its construction, empty where there is none to read."""
    if kind is nn.Module:
        return ""
    texts = []
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        if (
            name.startswith(("__", "reset", "_reset", "init", "_init"))
            or member.__module__ == "torch.nn.modules.module"
        ):
            continue
        try:
            texts.append(inspect.getsource(member))
        except (OSError, TypeError):
            continue
    return "\n".join(texts)
