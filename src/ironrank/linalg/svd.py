"""Truncated singular value decomposition: the nearest matrix of a given rank (Eckart, Young 1936)."""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg.factors import USV
from ironrank.linalg.precision import full_precision


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
    largest = min(W.shape[-2:])
    if not 1 <= rank <= largest:
        raise IronrankError(f"rank {rank} of a {W.shape[-2]} x {W.shape[-1]} matrix: allowed is 1 to {largest}")
    P, s, Qt = torch.linalg.svd(W, full_matrices=False)
    return USV(P[..., :rank], torch.diag_embed(s[..., :rank]), Qt[..., :rank, :].mT)
