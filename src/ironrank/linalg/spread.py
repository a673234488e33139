"""Spread of a spectrum: a smooth stand-in for the condition number, with a bound of the one by the other.

    S (..., n, m)     a core, an unfolding of one, or any matrix; r = min(n, m)
    s_1 >= ... >= s_r its singular values
    a^2               ||S||_F^2 / r, their mean square

    (1)  R(S) = || S^T S - a^2 I ||_F                 for n >= m; S S^T else, so that the Gram matrix is r x r
    (2)  R^2 / r = variance of the squared singular values
    (3)  grad R = 2 S (S^T S - a^2 I) / R             and  <grad R, S> = 2 R
    (4)  s_1 / s_r <= exp( R / (sqrt(2) s_r^2) )

R depends on singular values only, so orthonormal factors around S change nothing. It is zero where all singular values
are equal, and has no gradient there: where R is lost in rounding both count as zero.

Source: RobustDLRT (arXiv 2505.08022), its regulariser and its Proposition 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.linalg.precision import full_precision
from ironrank.linalg.spectrum import singular_values

_ROUNDING = 8.0  # units of rounding of ||S||_F^2 below which R is taken for zero


@full_precision
def spread(S: Tensor) -> Tensor:
    """Return R(S) of equation (1), to be added to a loss; its gradient is `spread_gradient`.

    Args:
        S: Matrices (..., n, m).

    Returns:
        One number for each matrix (...), at least 0.

    Example:
        >>> round(spread(torch.diag(torch.tensor([2.0, 0.0]))).item(), 4)
        2.8284
    """
    _, square, alive = _gap(S)
    return torch.where(alive, torch.where(alive, square, 1.0).sqrt(), 0.0)  # twice: no NaN in the gradient


@full_precision
def spread_gradient(S: Tensor) -> Tensor:
    """Return the gradient of R, equation (3); zero where R is.

    Args:
        S: Matrices (..., n, m).

    Returns:
        Matrices (..., n, m), of Frobenius norm at most ``2 s_1``.
    """
    if S.shape[-2] < S.shape[-1]:
        return spread_gradient(S.mT).mT
    gap, square, alive = _gap(S)
    length = torch.where(alive, square, 1.0).sqrt()
    return torch.where(alive, 2.0 / length, 0.0)[..., None, None] * (S @ gap)


@full_precision
def condition_bound(S: Tensor) -> Tensor:
    """Return the right side of equation (4), which the condition number does not exceed.

    Args:
        S: Matrices (..., n, m).

    Returns:
        One number for each matrix (...), float64; infinite where ``s_r`` is zero.
    """
    s = singular_values(S)
    return torch.exp(spread(S.double()) / (2**0.5 * s[..., -1].square()))


def _gap(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gram matrix less ``a^2 I``, its squared norm, and whether that is more than rounding."""
    tall = S if S.shape[-2] >= S.shape[-1] else S.mT
    gram, r = tall.mT @ tall, tall.shape[-1]
    whole = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    identity = torch.eye(r, dtype=S.dtype, device=S.device)
    gap = gram - (whole / r)[..., None, None] * identity
    square = gap.square().sum((-2, -1))
    return gap, square, square > (_ROUNDING * torch.finfo(S.dtype).eps * whole).square()
