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
HALF = (torch.float16, torch.bfloat16)


_lock = threading.Lock()
_inside = 0
_before: list[Any] = []


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Compute in float32 where float32 is asked for: on CUDA, convolutions take TF32 by default (10 bits of mantissa).

    The switches are those of the whole process. The first of several threads turns them off, the last one puts them
    back. Who reads torch's older switches (`allow_tf32`) meanwhile gets its error about two kinds of them.
    """
    global _inside, _before
    switches = _switches()
    with _lock:
        if not _inside:
            _before = [getattr(holder, name) for holder, name, _ in switches]
            for holder, name, off in switches:
                setattr(holder, name, off)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for (holder, name, _), value in zip(switches, _before, strict=True):
                    setattr(holder, name, value)


def _switches() -> list[tuple[Any, str, Any]]:
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
