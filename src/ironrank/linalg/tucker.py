"""Tucker-2: a convolution kernel written by a basis of its output channels, one of its input channels, and a core.

    W = S x_1 U x_2 V,   W[a, b, ...] = sum_ij U[a, i] S[i, j, ...] V[b, j]

    W (n, c, *k)      n output channels, c input channels, kernel size k, K its product
    U (n, r1)         V (c, r2)         S (r1, r2, *k)
    W_(1) (n, c K)    W_(2) (c, n K)    the unfoldings by output and by input channels

`hosvd` takes the leading left singular vectors of both unfoldings; its squared error is at most the sum of the
energies that the two truncations drop, hence at most twice the best one. `hooi` alternates: the best U for a given V,
then the best V for that U; no step of it raises the error. By ``power`` it takes three steps of block power iteration
in place of each decomposition. With A the positive semidefinite matrix whose leading directions are looked for,
``tr(Q^T A Q)`` over an orthonormal basis Q of the range of ``A U`` is never below that over U, so the error does not
rise then either.

Singular vectors come from Gram matrices, which have the size of a channel count where the unfoldings are K c or K n
wide; `ironrank.linalg.projection` says what that costs in accuracy (for singular values below 3e-4 of the largest, in
float32) and where float64 takes over. At full rank nothing is lost but rounding, since then every orthonormal basis
will do. The functions are pure: map many layers by `side_by_side`, the dearest first.

Source: De Lathauwer, De Moor, Vandewalle, "A multilinear singular value decomposition", and "On the best rank-1 and
rank-(R1, ..., RN) approximation of higher-order tensors", 2000. Use for kernels: Kim et al., "Compression of deep
convolutional neural networks for fast and low power mobile applications", 2016.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.linalg.precision import full_precision
from ironrank.linalg.projection import gram, leading
from ironrank.linalg.stiefel import retract_cholesky, retract_qr

Ranks = tuple[int, int]

_POWER = (
    3  # steps of block power iteration: with fewer the error stays above that of tensorly's partial_tucker
)


class Tucker2(NamedTuple):
    """Two channel bases and a core: U (n, r1), S (r1, r2, *k), V (c, r2)."""

    U: Tensor
    S: Tensor
    V: Tensor

    def dense(self) -> Tensor:
        """Return the kernel (n, c, *k)."""
        inner = torch.einsum("ij...,bj->ib...", self.S, self.V)
        return (self.U @ inner.flatten(1)).reshape(self.U.shape[0], *inner.shape[1:])


def full_ranks(shape: tuple[int, ...]) -> Ranks:
    """Return the ranks of the two unfoldings of a generic kernel (n, c, *k): ``min(n, c K)`` and ``min(c, n K)``."""
    n, c, *k = shape
    size = math.prod(k)
    return min(n, c * size), min(c, n * size)


def feasible_ranks(shape: tuple[int, ...], ranks: Ranks) -> Ranks:
    """Return the ranks without their idle part: ``r1 <= r2 K`` and ``r2 <= r1 K`` hold for every core.

    Args:
        shape: Shape of the kernel (n, c, *k).
        ranks: r1 from 1 to n and r2 from 1 to c.

    Returns:
        Ranks of the same kernels, none larger than given.

    Example:
        >>> feasible_ranks((64, 16, 3, 3), (40, 2))
        (18, 2)
    """
    size, (r1, r2) = math.prod(shape[2:]), ranks
    r1 = min(r1, r2 * size)
    return r1, min(r2, r1 * size)


def check_ranks(shape: tuple[int, ...], ranks: Ranks) -> None:
    """Refuse ranks that no Tucker-2 form of such a kernel can have.

    Args:
        shape: Shape of the kernel (n, c, *k).
        ranks: (r1, r2).

    Raises:
        IronrankError: If a rank is out of range, or larger than the core lets it be.
    """
    most, size = full_ranks(shape), math.prod(shape[2:])
    if not all(1 <= rank <= full for rank, full in zip(ranks, most, strict=True)):
        kernel = " x ".join(map(str, shape))
        raise IronrankError(
            f"ranks {ranks} for a {kernel} kernel: allowed is 1 to {most[0]} and 1 to {most[1]}"
        )
    if feasible_ranks(shape, ranks) != tuple(ranks):
        raise IronrankError(
            f"ranks {ranks} with a kernel of {size} points: allowed is r1 <= {size} r2 and r2 <= {size} r1; "
            f"take {feasible_ranks(shape, ranks)}"
        )


@full_precision
def channel_spectra(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values of both unfoldings, in float64, largest first.

    From Gram matrices in float64: exact down to 1e-8 of the largest, which is below the rounding of a float32 weight.

    Args:
        weight: Kernel (n, c, *k).

    Returns:
        Those by output channels (min(n, c K),) and by input channels (min(c, n K),).
    """
    X = _channels_last(weight.double())
    grams = (M @ M.mT for M in (X.flatten(1), X.flatten(0, 1).mT))
    values = (torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt() for gram in grams)
    first, second = (s[:most] for s, most in zip(values, full_ranks(tuple(weight.shape)), strict=True))
    return first, second


@full_precision
def hosvd(weight: Tensor, ranks: Ranks) -> Tucker2:
    """Return the truncated higher-order SVD of a kernel in its two channel modes; see the top of this file.

    Args:
        weight: Kernel (n, c, *k).
        ranks: (r1, r2).

    Returns:
        Orthonormal U (n, r1), V (c, r2), and the core that is best for them.

    Raises:
        IronrankError: If the ranks are not possible.

    Example:
        >>> W = torch.ones(4, 3, 2, 2)
        >>> torch.allclose(hosvd(W, (1, 1)).dense(), W)
        True
    """
    check_ranks(tuple(weight.shape), ranks)
    X = _channels_last(weight)
    U, V = leading(X.flatten(1), ranks[0]), leading(X.flatten(0, 1).mT, ranks[1])
    return _with_core(X @ V, U, V, weight)


@full_precision
def hooi(
    weight: Tensor, ranks: Ranks, start: Tucker2 | None = None, sweeps: int = 2, power: bool = False
) -> Tucker2:
    """Return a Tucker-2 approximation by higher-order orthogonal iteration; see the top of this file.

    Most is gained in the first two sweeps. From the result for nearly the same kernel one is enough: after a change of
    1 % its error was below that of a cold `hosvd` in all cases tried, and about that of a converged iteration.

    Args:
        weight: Kernel (n, c, *k).
        ranks: (r1, r2).
        start: An earlier result for a similar kernel, of the same ranks; by default `hosvd`.
        sweeps: Number of alternations, at least 1.
        power: Whether to move the start's bases by block power iteration, where the kernel has hardly changed; without
            it only the start's V is read.

    Returns:
        Orthonormal U (n, r1), V (c, r2), and the core that is best for them. The error is at most that of the best
        form with the start's V; by ``power``, of that with both of its bases. It is never above the start's own.

    Raises:
        IronrankError: If the ranks are not possible, the start does not fit or is missing, or sweeps is below 1.
    """
    check_ranks(tuple(weight.shape), ranks)
    if sweeps < 1:
        raise IronrankError(f"sweeps={sweeps}: allowed is at least 1")
    if power and start is None:
        raise IronrankError("power=True moves the bases of a start: pass one, such as hosvd(weight, ranks)")
    X = _channels_last(weight)
    V = (
        leading(X.flatten(0, 1).mT, ranks[1])
        if start is None
        else _fitting(start.V.to(weight), weight.shape[1], ranks[1])
    )
    bases = (_fitting(start.U.to(weight), len(weight), ranks[0]), V) if power and start else (None, None)
    for _ in range(sweeps):
        U = _towards((X @ V).flatten(1), ranks[0], bases[0])
        half = (U.mT @ X.flatten(1)).reshape(ranks[0], *X.shape[1:])
        V = _towards(half.flatten(0, 1).mT, ranks[1], bases[1])
        bases = (U, V) if power else bases
    return Tucker2(U, _kernel_last(half @ V, weight), V)


def _towards(M: Tensor, rank: int, basis: Tensor | None) -> Tensor:
    """Return the leading left singular vectors of ``M``; or a basis that was moved towards them, if one is given."""
    if basis is None:
        return leading(M, rank)
    rows, columns = M.shape
    # a Gram matrix costs about as much as one step without it, and a step with it next to nothing
    A = gram(M) if rows <= columns else None
    for _ in range(_POWER):
        basis = retract_qr(M @ (M.mT @ basis) if A is None else A @ basis)
    return basis


def _channels_last(weight: Tensor) -> Tensor:
    """Return the kernel as (n, K, c): both unfoldings and both products are plain matrix products on it."""
    return weight.flatten(2).transpose(1, 2).contiguous() if weight.dim() > 2 else weight.unsqueeze(1)


def _kernel_last(core: Tensor, weight: Tensor) -> Tensor:
    """Return a core (r1, K, r2) as (r1, r2, *k)."""
    return core.transpose(1, 2).reshape(core.shape[0], core.shape[2], *weight.shape[2:])


def _with_core(image: Tensor, U: Tensor, V: Tensor, weight: Tensor) -> Tucker2:
    core = (U.mT @ image.flatten(1)).reshape(U.shape[1], *image.shape[1:])
    return Tucker2(U, _kernel_last(core, weight), V)


def _fitting(basis: Tensor, channels: int, rank: int) -> Tensor:
    """Return a basis of a start, orthonormal, or refuse one of another size."""
    if basis.shape != (channels, rank):
        raise IronrankError(
            f"start with a basis of shape {tuple(basis.shape)}: expected {(channels, rank)}; "
            "a start has the ranks that are asked for"
        )
    return retract_cholesky(basis)
