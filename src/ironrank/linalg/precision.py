"""Geometry in float32 or better, whatever the surroundings use."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
Switch = tuple[Any, str, Any]  # where it is, its name, its value when it is off
HALF = (torch.float16, torch.bfloat16)


class _Off:
    """How many threads need TF32 to be off, and what its switches were before."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.before: list[Any] = []

    def enter(self, switches: list[Switch]) -> None:
        with self.lock:
            if not self.users:
                self.before = [getattr(holder, name) for holder, name, _ in switches]
                for holder, name, off in switches:
                    setattr(holder, name, off)
            self.users += 1

    def leave(self, switches: list[Switch]) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                for (holder, name, _), value in zip(switches, self.before, strict=True):
                    setattr(holder, name, value)


_OFF = _Off()


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Compute in float32 where float32 is asked for: on CUDA, convolutions take TF32 by default (10 bits of mantissa).

    The switches are those of the whole process. The first of several threads turns them off, the last one puts them
    back. Who reads torch's older switches (`allow_tf32`) meanwhile gets its error about two kinds of them.
    """
    switches = _switches()
    _OFF.enter(switches)
    try:
        yield
    finally:
        _OFF.leave(switches)


def _switches() -> list[Switch]:
    """Return the switches of TF32, and what they are when it is off."""
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):  # torch 2.9; they must not be mixed with the older kind
        places = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        return [(place, "fp32_precision", "ieee") for place in places]
    return [(place, "allow_tf32", False) for place in (backends.cudnn, backends.cuda.matmul)]


def full_precision(function: Function) -> Function:
    """Run a function on tensors outside autocast and without TF32, with half-precision arguments raised to float32.

    QR, SVD and Cholesky do not exist in half precision, and a product in bfloat16 loses orthonormality at once.

    Args:
        function: A function whose first arguments are tensors.

    Returns:
        The same function; its results are float32 or better.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        raised = [a.float() if isinstance(a, Tensor) and a.dtype in HALF else a for a in args]
        kind = next((a.device.type for a in raised if isinstance(a, Tensor)), "cpu")
        with torch.autocast(kind, enabled=False), no_tf32() if kind == "cuda" else contextlib.nullcontext():
            return function(*raised, **kwargs)

    return cast(Function, wrapped)


thin_qr = full_precision(torch.linalg.qr)
