"""A hash of all that decides what a net answers, so that an answer that was kept is not given for another net.

Counted are the printed form, parameters and buffers (also those that are not saved), what modules hold beside them
(numbers, text, bytes, tensors, lists, dictionaries, functions, objects), and the code of modules and functions that
are not torch's own. What a function calls elsewhere, and what lies in another program, such as a session of
onnxruntime, is not seen.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_TORCH = {*vars(nn.Module()), "training"}  # what torch keeps in every module


def fingerprint(*nets: nn.Module) -> str:
    """Return a hash of nets.

    Args:
        nets: The nets, in order.

    Returns:
        16 hexadecimal digits; the same in another process and on another device.
    """
    digest = _Digest()
    for net in nets:
        digest.module(net)
    return digest.hash.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the values of a tensor as bytes."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class _Digest:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._met: dict[int, Any] = {}  # keeps what was met, so that nothing else gets its address

    def module(self, net: nn.Module) -> None:
        self._word(net)
        for place, module in net.named_modules():
            self._word(place)
            self._value(type(module).forward)
            self._items({key: value for key, value in vars(module).items() if key not in _TORCH})
            hooks = module._forward_hooks, module._forward_pre_hooks
            for held in (module._parameters, module._buffers, *hooks):
                self._all(value for pair in held.items() for value in pair if not isinstance(value, int))

    def _word(self, word: object) -> None:
        self.hash.update(f"{word}\0".encode())

    def _items(self, items: Mapping[Any, Any]) -> None:
        for key, value in items.items():
            self._word(key)
            self._value(value)

    def _value(self, value: object) -> None:
        self._word(type(value).__qualname__)
        if value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype)):
            return self._word(value)
        if isinstance(value, bytes):
            return self.hash.update(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return self.hash.update(value.tobytes())
        if isinstance(value, Tensor):
            self._word(f"{value.dtype} {tuple(value.shape)}")
            return self.hash.update(tensor_bytes(value))
        if id(value) in self._met:
            return None
        self._met[id(value)] = value
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, Mapping):
            return self._items(value)
        if isinstance(value, (list, tuple)):
            return self._all(value)
        if isinstance(value, (set, frozenset)):
            return self._all(sorted(value, key=repr))
        return self._object(value)

    def _all(self, values: Iterable[object]) -> None:
        for value in values:
            self._value(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, MethodType):
            self._value(value.__self__)
            value = value.__func__
        if isinstance(value, functools.partial):
            return self._all((value.func, value.args, value.keywords))
        if isinstance(value, FunctionType):
            return self._function(value)
        if callable(value) and hasattr(value, "__qualname__"):  # a class, or a function that is not Python's
            return self._word(f"{getattr(value, '__module__', '')} {value.__qualname__}")
        slots = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))
        held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
        return self._items(held | getattr(value, "__dict__", {}))

    def _function(self, function: FunctionType) -> None:
        self._word(f"{function.__module__} {function.__qualname__}")
        if not (function.__module__ or "").startswith("torch."):
            self._code(function.__code__)
        self._all((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                self._value(cell.cell_contents)
            except ValueError:  # an empty cell
                self._word("empty")

    def _code(self, code: CodeType) -> None:
        self.hash.update(code.co_code)
        self._word((code.co_names, code.co_varnames, code.co_freevars))
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant)
            else:
                self._word(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
