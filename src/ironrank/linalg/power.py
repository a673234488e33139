"""Power iteration: the direction that a matrix stretches most, followed along while the matrix changes.

    X (a, b)     any matrix
    v (b,)       a unit vector
    A            X^T X - shift I, symmetric; never formed

One round is ``v <- A v / |A v|``. It converges to the eigenvector of A whose eigenvalue is largest in size, in each
round by the ratio of the second largest to it. From the v of nearly the same X one round keeps up. With that v,
``|v^T A v| = | |X v|^2 - shift |`` is the spectral norm of A and, as a function of X with v held, has its gradient;
with any other unit v it is smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.linalg.precision import full_precision


@full_precision
def dominant(X: Tensor, shift: float = 0.0) -> Tensor:
    """Return the unit eigenvector of ``X^T X - shift I`` whose eigenvalue is largest in size, by its decomposition.

    Args:
        X: Matrix (a, b).
        shift: Multiple of the identity that is taken off.

    Returns:
        v (b,).

    Example:
        >>> dominant(torch.diag(torch.tensor([1.0, 0.1])), shift=1.0).abs()
        tensor([0., 1.])
    """
    values, vectors = torch.linalg.eigh(X.mT @ X)
    return vectors[:, int((values - shift).abs().argmax())].contiguous()


@full_precision
def power_step(X: Tensor, v: Tensor, shift: float = 0.0, rounds: int = 1) -> Tensor:
    """Follow the dominant eigenvector of ``X^T X - shift I`` to a new X.

    Args:
        X: Matrix (a, b).
        v: Unit vector (b,), such as that of an earlier X.
        shift: Multiple of the identity that is taken off.
        rounds: Rounds of power iteration.

    Returns:
        A unit vector (b,); where A v is zero, v as it was.
    """
    for _ in range(rounds):
        new = X.mT @ (X @ v) - shift * v
        length = new.norm()
        v = torch.where(length > 0, new / length.clamp_min(torch.finfo(new.dtype).tiny), v)
    return v


@full_precision
def stretch(X: Tensor, v: Tensor) -> Tensor:
    """Return ``|X v|^2``, which autograd follows with respect to X.

    Args:
        X: Matrix (a, b).
        v: Vector (b,).

    Returns:
        A scalar.
    """
    return (X @ v).square().sum()
