r"""Spectral norms from above: bounds that hold, also against the rounding of the float64 they are computed in.

Power iteration approaches a spectral norm from below, so it certifies nothing. Two ways from above are used here, both
on the Gram matrix ``G = A^* A`` (n, n) of the smaller side, whose largest eigenvalue is the square of the norm.

Many small matrices: Gram iteration. ``G_0 = G``, ``G_{k+1} = G_k^2``, so that ``lambda(G)^(2^k) = lambda(G_k)``, and
any upper bound on lambda(G_k) becomes sharp as k grows. Published forms take the Frobenius norm; with the trace t and
the Frobenius norm f, Wolkowicz and Styan's

    lambda <= t/n + sqrt((n - 1)/n (f^2 - t^2/n))

is never above f and is exact for flat spectra, which is what well conditioned layers have. From below,
``lambda >= f^2/t`` says when to stop, and which matrices of a batch cannot hold the largest norm; what is dropped keeps
its bound, so that a wrong lower bound could cost time and never soundness.

Large matrices: a guess ``s`` from below, made a little larger, is proven by a Cholesky factorization of ``s I - G``:
if it runs through, no eigenvalue of that matrix is below ``- c tr(s I - G)`` with c about n times the unit roundoff.

Rounding: ``gamma(n)`` bounds the relative error of a sum of n products in any order; in float64 with four times the
unit roundoff, which covers complex numbers as well. Every step above carries it along.

Sources: Delattre, Barthélemy, Araujo, Allauzen, "Efficient bound of Lipschitz constant for convolutional layers by Gram
iteration", 2023 (read in secondary sources; the pruning, the stopping rule, the bound by the trace and the account of
rounding are ours). Wolkowicz and Styan, "Bounds for eigenvalues using traces", 1980. Rump, "Verification of positive
definiteness", 2006; Higham, "Accuracy and stability of numerical algorithms", 2002, sections 3 and 10.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ironrank.errors import IronrankError

RTOL = 1e-3  # of an eigenvalue; a norm is half as far off
_LARGE = 256  # above this one matrix is proven by Cholesky: an n^3 / 3 in place of many products of 2 n^3
_STEPS = 48
_SLACK = 1 + 1e-12  # scalar arithmetic: a few dozen roundings of 1e-16


def gamma(n: int, unit: float = 2 * torch.finfo(torch.float64).eps) -> float:
    """Bound the relative error of a sum of n products, in any order.

    Args:
        n: Number of products.
        unit: Error of one operation: the unit roundoff, or a larger number for caution.

    Returns:
        ``(n + 2) unit / (1 - (n + 2) unit)``; infinite where that has no meaning.
    """
    share = (n + 2) * unit
    return share / (1 - share) if share < 1 else math.inf


def spectral_norm(A: Tensor, rtol: float = RTOL, known: float = 0.0) -> float:
    """Bound the largest spectral norm of a batch of matrices from above.

    Args:
        A: Matrices (..., n, m), real or complex; computed in float64.
        rtol: How far the bound may be above the squared norm, at most about.
        known: A number that the result may be at least, such as the bound of an earlier batch: no work is spent
            below it.

    Returns:
        A number that no singular value of any matrix exceeds, and at least ``known``.

    Raises:
        IronrankError: If an entry is not finite.

    Example:
        >>> bound = spectral_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> 4.0 <= bound < 4.01
        True
    """
    A = A.to(torch.complex128 if A.is_complex() else torch.float64)
    if not A.numel():
        return known
    unit = _power_of_two(A)
    if not unit:
        return known
    A = (A.mH if A.shape[-1] > A.shape[-2] else A) / unit  # exact; no square is too small or too large
    G = (A.mH @ A).reshape(-1, A.shape[-1], A.shape[-1])
    error = gamma(A.shape[-2]) * A.abs().square().sum((-2, -1)).max().item()  # ||fl(G) - G||_F
    found = math.sqrt(largest_eigenvalue(G, rtol, min(known / unit, 1e150) ** 2) + error)
    return max(known, found * _SLACK * unit)


def _power_of_two(A: Tensor) -> float:
    """Return the power of two below the largest entry, 0 where all are."""
    largest = A.abs().max().item()
    if not math.isfinite(largest):
        raise IronrankError("no bound: weights or statistics are not finite")
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 0.0


def largest_eigenvalue(G: Tensor, rtol: float = RTOL, known: float = 0.0) -> float:
    """Bound the largest absolute eigenvalue of Hermitian positive semi-definite matrices from above.

    Args:
        G: Matrices (b, n, n), float64 or complex128; what is not Hermitian in them is rounding.
        rtol: How far the bound may be above, at most about.
        known: See `spectral_norm`.

    Returns:
        The bound over the whole batch, at least ``known``.

    Raises:
        IronrankError: If an entry is not finite.
    """
    if not torch.isfinite(torch.view_as_real(G) if G.is_complex() else G).all():
        raise IronrankError("no bound: weights or statistics are not finite")
    G = (G + G.mH) / 2
    if G.shape[-1] > _LARGE:
        for matrix in G:
            known = _by_cholesky(matrix, rtol, known)
        return known
    return _by_gram_iteration(G, rtol, known)


def _by_gram_iteration(G: Tensor, rtol: float, known: float) -> float:
    n = G.shape[-1]
    step_error = gamma(n) + gamma(n * n)  # of a product of matrices of Frobenius norm 1, and of that norm
    H, scales = _normalized(G)
    scales, best = scales.unsqueeze(0), known
    for _ in range(_STEPS):
        low, high = _bounds(H, scales, step_error)
        floor = max(known, low.max().item())
        open_ = high > floor * (1 + rtol)
        best = max(best, high[~open_].max().item() if bool((~open_).any()) else 0.0)
        if not bool(open_.any()):
            return best * _SLACK
        H, more = _normalized(_squared(H[open_]))
        scales = torch.cat([scales[:, open_], more.unsqueeze(0)])
    return max(best, _bounds(H, scales, step_error)[1].max().item()) * _SLACK


def _squared(H: Tensor) -> Tensor:
    product = H @ H
    return (product + product.mH) / 2


def _normalized(G: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices over their Frobenius norms, and the norms; zero matrices stay."""
    scale = G.abs().square().sum((-2, -1)).sqrt()
    return G / torch.where(scale > 0, scale, 1.0).view(-1, 1, 1), scale


def _bounds(H: Tensor, scales: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds on the eigenvalues of the first matrices, from those of the last.

    With ``H_k = H_{k-1}^2 / f_k`` up to an error e, ``lambda_{k-1}^2 <= f_k (lambda_k + e)``.
    """
    n = H.shape[-1]
    trace = H.diagonal(dim1=-2, dim2=-1).sum(-1).real
    spread = ((n - 1) / n * (1 - trace.square() / n).clamp_min(0) + error).sqrt()
    high, low = trace / n + spread, 1 / trace.clamp_min(1.0)
    for f in reversed(scales[1:].unbind()):
        high, low = (f * (high + error)).sqrt(), (f * low).sqrt()
    return scales[0] * low, scales[0] * (high + error)


def _by_cholesky(G: Tensor, rtol: float, known: float) -> float:
    """Return a bound for one matrix: ``known`` where that is one already."""
    proven = _proven(G, known)
    if proven is not None:
        return max(known, proven)
    guess, share = _from_below(G), rtol / 4
    while (proven := _proven(G, guess * (1 + share))) is None:
        share *= 2  # the guess was too low
    return max(known, proven)


def _proven(G: Tensor, s: float) -> float | None:
    """Return a bound a little above s, if a Cholesky factorization proves that s is one up to rounding."""
    shifted = -G
    shifted.diagonal().add_(s)
    trace = shifted.diagonal().real.sum().item()
    if int(torch.linalg.cholesky_ex(shifted).info):
        return 0.0 if s == 0 and not bool(G.any()) else None
    # the factorization is that of a matrix off by the first term, the shift is rounded by the second
    return (s + gamma(len(G) + 1) * trace + gamma(2) * s) * _SLACK


def _from_below(G: Tensor, steps: int = 60) -> float:
    """Return a Rayleigh quotient near the largest eigenvalue: Lanczos from a fixed start, kept orthonormal."""
    start = torch.randn(len(G), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = torch.linalg.qr(start.to(G)).Q
    for _ in range(min(steps, len(G) - 1)):
        new = G @ Q[:, -1:]
        for _ in range(2):
            new = new - Q @ (Q.mH @ new)
        length = new.norm()
        if not bool(
            length > 1e-12 * G.diagonal().real.sum()
        ):  # the space is invariant: no more to find in it
            break
        Q = torch.cat([Q, new / length], dim=1)
    return torch.linalg.eigvalsh(Q.mH @ G @ Q)[-1].item()
