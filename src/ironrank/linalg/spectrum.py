"""Singular values: measures of their spread, and maps that narrow it.

    S (..., r, r)    a core, an unfolding of one (..., r, q), or any matrix where only measures are asked
    s_1 >= ... >= s_r its singular values
    tau              allowed excess of the condition number: s_1 / s_r <= 1 + tau
    c                centre of the allowed band, the mean or the root-mean-square (RMS) of the singular values

Source of the band: CondLR (Savostianova, Zangrando, Ceruti, Tudisco, NeurIPS 2023), as far as its published
code shows it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg.precision import full_precision
from ironrank.linalg.svd import checked_svd

CENTRES = ("mean", "rms")
# The Gram matrix squares the condition number; its eigenvectors are good enough only while that stays small.
_NARROW = 0.1


@full_precision
def singular_values(W: Tensor) -> Tensor:
    """Return the singular values (..., min(n, m)) of W (..., n, m) in float64, largest first."""
    tall = (W if W.shape[-2] >= W.shape[-1] else W.mT).double()
    if tall.shape[-2] > 2 * tall.shape[-1]:
        tall = torch.linalg.qr(tall, mode="r").R  # the same singular values, in a smaller matrix
    return torch.linalg.svdvals(tall)


def condition_number(W: Tensor, rank: int | None = None) -> Tensor:
    """Return ``s_1 / s_r``, infinite where ``s_r`` is zero or lost in rounding.

    Args:
        W: Matrices (..., n, m).
        rank: r; by default min(n, m).

    Returns:
        One number for each matrix (...), float64.

    Example:
        >>> condition_number(torch.diag(torch.tensor([4.0, 2.0]))).item()
        2.0
    """
    s = singular_values(W)
    last = s[..., (rank or s.shape[-1]) - 1]
    lost = last <= s[..., 0] * torch.finfo(W.dtype).eps
    return torch.where(lost, torch.inf, s[..., 0] / torch.where(lost, 1.0, last))


def stable_rank(W: Tensor) -> Tensor:
    """Return ``||W||_F^2 / ||W||_2^2``, between 1 and the rank.

    Args:
        W: Matrices (..., n, m), not zero.

    Returns:
        One number for each matrix (...), float64.
    """
    s = singular_values(W)
    return s.square().sum(-1) / s[..., 0].square()


def tail_rank(s: Tensor, tolerance: float) -> int:
    """Return the smallest rank whose tail ``(s_{r+1}, ...)`` has a norm of at most a share of the whole.

    Args:
        s: Singular values (r,), largest first.
        tolerance: The share, at least 0; at 0 only exact zeros are dropped.

    Returns:
        The rank, at least 1.

    Example:
        >>> [tail_rank(torch.tensor([3.0, 4e-1, 3e-1]), share) for share in (0.0, 0.1, 0.2, 2.0)]
        [3, 2, 1, 1]
    """
    squares = s.double().square()
    tails = squares.flip(0).cumsum(0).flip(0)  # entry r: what rank r drops
    return max(1, int((tails > tolerance**2 * squares.sum()).sum()))


def centre_of(s: Tensor, centre: str) -> Tensor:
    """Return the mean or the RMS (..., 1) of singular values s (..., r).

    Args:
        s: Singular values (..., r).
        centre: "mean" or "rms".

    Returns:
        The centre (..., 1).

    Raises:
        IronrankError: If the centre has another name.
    """
    if centre not in CENTRES:
        raise IronrankError(f"centre={centre!r}: allowed is {', '.join(CENTRES)}")
    return s.mean(-1, keepdim=True) if centre == "mean" else s.square().mean(-1, keepdim=True).sqrt()


def band(c: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Return the band ``[c - e, c + e]`` with ``e = tau c / (2 + tau)``, so that its ends have the ratio 1 + tau.

    The ends are drawn in by a few units of rounding, so that the matrix put together again obeys the bound.

    Args:
        c: Centres.
        tau: Allowed excess of the condition number, at least 0.

    Returns:
        Lower and upper end.
    """
    tau = max(0.0, tau - 8 * torch.finfo(c.dtype).eps * (2 + tau))
    e = tau * c / (2 + tau)
    return c - e, c + e


@full_precision
def clamp(S: Tensor, tau: float, centre: str = "mean") -> Tensor:
    """Move the singular values of S into the band about their own mean or RMS; singular vectors stay.

    For a fixed band this is the nearest matrix in the Frobenius norm. About the matrix's own centre it is not
    idempotent: the clamped values have another centre, and a second clamp moves them again, though they obey
    ``s_1 / s_r <= 1 + tau`` already. With ``tau = 0`` it is `nearest_orthogonal` times the centre.

    By the eigenvectors of ``S^T S``, or by the SVD where S is not well conditioned (detected).

    Args:
        S: Cores (..., r, r), or wide or tall matrices such as unfolded cores (..., r, q).
        tau: Allowed excess of the condition number, at least 0.
        centre: "mean" or "rms".

    Returns:
        Matrices of the same shape with condition number at most 1 + tau.

    Raises:
        IronrankError: If tau is negative.

    Example:
        >>> S = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
        >>> s = torch.linalg.svdvals(clamp(S, tau=1.0))
        >>> round((s[0] / s[1]).item(), 9)
        2.0
    """
    if tau < 0:
        raise IronrankError(f"tau={tau}: allowed is at least 0 (cond <= 1 + tau)")
    if S.shape[-2] < S.shape[-1]:  # the Gram matrix below has the size of the columns
        return clamp(S.mT, tau, centre).mT
    values, vectors = torch.linalg.eigh(S.mT @ S)
    if not bool(((values[..., 0] >= _NARROW * values[..., -1]) & (values[..., 0] > 0)).all()):
        return _clamp_by_svd(S, tau, centre)
    s = values.sqrt()
    low, high = band(centre_of(s, centre), tau)
    scale = torch.minimum(torch.maximum(s, low), high) / s
    return (S @ (vectors * scale.unsqueeze(-2))) @ vectors.mT


def _clamp_by_svd(S: Tensor, tau: float, centre: str) -> Tensor:
    P, s, Qt = checked_svd(S)
    low, high = band(centre_of(s, centre), tau)
    return (P * torch.minimum(torch.maximum(s, low), high).unsqueeze(-2)) @ Qt


@full_precision
def nearest_orthogonal(S: Tensor, centre: str = "rms") -> Tensor:
    """Return the orthogonal polar factor of S times the centre of its singular values: condition number 1.

    Times the RMS it keeps the Frobenius norm of S; times the mean it is the nearest multiple of an orthogonal matrix.
    Near such a matrix by Newton-Schulz steps ``Q <- Q (3 I - Q^T Q) / 2`` (products only), else by the SVD.

    Args:
        S: Cores (..., r, r), or wide or tall matrices such as unfolded cores (..., r, q); not zero.
        centre: "rms" or "mean".

    Returns:
        Matrices of the same shape, with orthogonal rows or columns of equal length.
    """
    if S.shape[-2] < S.shape[-1]:
        return nearest_orthogonal(S.mT, centre).mT
    r = S.shape[-1]
    rms = (S.square().sum((-2, -1), keepdim=True) / r).sqrt()
    Q, identity = S / rms, torch.eye(r, dtype=S.dtype, device=S.device)
    for _ in range(8):  # quadratic: from 0.5 to rounding takes five in float64
        defect = Q.mT @ Q - identity
        size = defect.square().sum((-2, -1)).max().sqrt().item()
        if not size < 0.5:  # outside the region of fast convergence, or NaN
            return _polar_by_svd(S, centre)
        if size < 4 * torch.finfo(S.dtype).eps * r**0.5:
            break
        Q = Q - 0.5 * (Q @ defect)
    if centre == "rms":
        return rms * Q
    return (Q * S).sum((-2, -1), keepdim=True) / r * Q  # trace(Q^T S) is the sum of the singular values


def _polar_by_svd(S: Tensor, centre: str) -> Tensor:
    P, s, Qt = checked_svd(S)
    Q = P @ Qt
    Q = 1.5 * Q - 0.5 * Q @ (Q.mT @ Q)  # polish: the SVD's own rounding grows with r
    return centre_of(s, centre).unsqueeze(-1) * Q
