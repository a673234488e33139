"""Geometry in float32 or better, whatever the surroundings use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])
HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Function) -> Function:
    """Run a function on tensors outside autocast, with half-precision arguments raised to float32.

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
        with torch.autocast(kind, enabled=False):
            return function(*raised, **kwargs)

    return cast(Function, wrapped)


thin_qr = full_precision(torch.linalg.qr)
