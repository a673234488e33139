"""The optimizer's moments of a parameter that is written in other coordinates.

    X (a, b, ...)      the parameter in the old coordinates: a core, or a factor
    M (a', a)          N (b', b)         the change of its first and its second axis; where there is none, the identity
    X' = M X N^T       the parameter in the new ones

A mean of gradients changes as the parameter does: ``m' = M m N^T``. A mean of squared gradients is a variance about
zero of each entry; for entries that vary independently it is carried by the squared coefficients,

    (1)  v' = (M o M) v (N o N)^T + (1 - w) mean(v),   w_ij = sum_k M_ik^2 sum_l N_jl^2

which is never negative, and exact where coordinates are permuted, dropped, or change sign. w is the share of an entry
that the old coordinates know of. Along a new direction it is 0: there nothing is known, and the mean of the known
stands in. Zeros would do harm: the steps of Adam are bounded by lr while its moments have started together, and are up
to six times longer where a second moment starts from zero beside a count of many steps.

The published code of RobustDLRT carries v by ``(M sqrt(v) N^T)^2``, where terms of different sign cancel, and starts
new directions from zero. (1) is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg.precision import full_precision

MEANS = ("momentum_buffer", "exp_avg")  # as SGD and the Adam family call them
SQUARES = ("exp_avg_sq", "max_exp_avg_sq")


@torch.no_grad()
def carry(
    optimizer: torch.optim.Optimizer, p: nn.Parameter, M: Tensor | None = None, N: Tensor | None = None
) -> None:
    """Write the moments of a parameter in other coordinates, in place; before or after the parameter itself.

    Args:
        optimizer: Its optimizer; where it has no moments yet nothing happens.
        p: The parameter (a, b, ...).
        M: Change of the first axis (a', a), or None.
        N: Change of the second axis (b', b), or None.

    Raises:
        IronrankError: If the optimizer keeps something else of the parameter's shape.
    """
    held: dict[str, Any] = optimizer.state.get(p, {})
    for name, value in held.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if name not in MEANS + SQUARES:
            kind = type(optimizer).__name__
            raise IronrankError(f"{kind} keeps '{name}' of each parameter: moments are carried through a change of "
                                "rank for SGD and Adam; take one of them")  # fmt: skip
        held[name] = (changed if name in MEANS else changed_squares)(value, M, N).to(value.dtype).contiguous()


@full_precision
def changed(X: Tensor, M: Tensor | None = None, N: Tensor | None = None) -> Tensor:
    """Return ``M X N^T``, acting on the first two axes.

    Args:
        X: A tensor (a, b, ...).
        M: A matrix (a', a), or None.
        N: A matrix (b', b), or None.

    Returns:
        A tensor (a', b', ...).
    """
    if M is not None:
        X = torch.tensordot(M, X, ([1], [0]))
    return X if N is None else torch.tensordot(N, X, ([1], [1])).transpose(0, 1)


@full_precision
def changed_squares(v: Tensor, M: Tensor | None = None, N: Tensor | None = None) -> Tensor:
    """Return second moments in other coordinates: equation (1).

    Args:
        v: Means of squares (a, b, ...).
        M: A matrix (a', a), or None.
        N: A matrix (b', b), or None.

    Returns:
        Means of squares (a', b', ...).
    """
    squares = [None if X is None else X.square() for X in (M, N)]
    known = changed(torch.ones_like(v), *squares)
    return changed(v, *squares) + (1 - known).clamp_min(0) * v.mean()
