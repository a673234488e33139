"""Truncated singular value decomposition: the nearest matrix of a given rank (Eckart, Young 1936)."""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg.factors import USV
from ironrank.linalg.precision import full_precision

# What float32 LAPACK reaches is below 1e-5; a failure shows as an error near 1.
_ORTHONORMAL = 1e-3


@full_precision
def checked_svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD ``P diag(s) Q^T``, checked, and computed again in float64 where LAPACK failed.

    The float32 divide-and-conquer SVD of some LAPACK builds silently returns vectors that are not orthogonal, or stops,
    when many singular values are nearly equal, which is just what a clamped core has (seen with MKL 2024.2 on AVX2).

    Args:
        W: Matrices (..., n, m), finite.

    Returns:
        P (..., n, k), s (..., k), Q^T (..., k, m) with k = min(n, m).

    Raises:
        LinAlgError: If float64 fails too.
    """
    try:
        P, s, Qt = torch.linalg.svd(W, full_matrices=False)
        identity = torch.eye(s.shape[-1], dtype=W.dtype, device=W.device)
        worst = max((P.mT @ P - identity).abs().max().item(), (Qt @ Qt.mT - identity).abs().max().item())
        if worst < _ORTHONORMAL or W.dtype == torch.float64:
            return P, s, Qt
    except torch.linalg.LinAlgError:
        if W.dtype == torch.float64:
            raise
    P, s, Qt = torch.linalg.svd(W.double(), full_matrices=False)
    return P.to(W.dtype), s.to(W.dtype), Qt.to(W.dtype)


def check_rank(W: Tensor, rank: int) -> None:
    """Refuse a rank that W cannot have.

    Args:
        W: Matrices (..., n, m).
        rank: The rank.

    Raises:
        IronrankError: If it is not between 1 and min(n, m).
    """
    largest = min(W.shape[-2:])
    if not 1 <= rank <= largest:
        raise IronrankError(
            f"rank {rank} of a {W.shape[-2]} x {W.shape[-1]} matrix: allowed is 1 to {largest}"
        )


@full_precision
def truncated_svd(W: Tensor, rank: int) -> USV:
    """Return the best approximation of ``W`` of a given rank, ``U diag(s) V^T``.

    Args:
        W: Matrices (..., n, m).
        rank: The rank r, from 1 to min(n, m).

    Returns:
        U (..., n, r) and V (..., m, r) with orthonormal columns, S (..., r, r) diagonal, largest first.

    Raises:
        IronrankError: If the rank is not between 1 and min(n, m).

    Example:
        >>> W = torch.ones(3, 2)
        >>> torch.allclose(truncated_svd(W, 1).dense(), W)
        True
    """
    check_rank(W, rank)
    P, s, Qt = checked_svd(W)
    return USV(P[..., :rank], torch.diag_embed(s[..., :rank]), Qt[..., :rank, :].mT)
