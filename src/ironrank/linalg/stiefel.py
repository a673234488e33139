"""The Stiefel manifold St(n, r): matrices with orthonormal columns, U^T U = I.

    U (..., n, r)    a point
    G (..., n, r)    any matrix, such as a gradient
    X (..., n, r)    a tangent vector at U
    Y (..., n, r)    U + X, the straight step that a retraction brings back

Every retraction agrees with the straight step to first order. They differ in price and in the point they choose:
QR and Cholesky-QR give the unique Q with a positive diagonal of R, polar gives the nearest orthonormal matrix.

Source: Absil, Mahony, Sepulchre, "Optimization Algorithms on Matrix Manifolds", 2008, section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.linalg.precision import full_precision
from ironrank.linalg.svd import checked_svd

# A Cholesky factor whose diagonal spreads wider than this belongs to a matrix with condition number above 30 or so;
# one pass then loses more than three digits (the error of Cholesky-QR grows with cond^2), so Householder QR takes over.
_SPREAD = 1 / 30
# Two passes are accurate up to a condition number of about eps^(-1/2) (Yamamoto et al. 2015); stay well below.
_SPREAD_TWO_PASSES = 1 / 500


@full_precision
def horizontal(U: Tensor, G: Tensor) -> Tensor:
    """Project on the directions that change the column space: ``(I - U U^T) G``.

    Computed as ``G - U (U^T G)``, which costs 4 n r^2 operations instead of 4 n^2 r.

    Args:
        U: Points (..., n, r).
        G: Matrices (..., n, r).

    Returns:
        X (..., n, r) with ``U^T X = 0``.
    """
    return G - U @ (U.mT @ G)


@full_precision
def normal(U: Tensor, G: Tensor) -> Tensor:
    """Return the part that `horizontal` drops: ``U (U^T G)``.

    Args:
        U: Points (..., n, r).
        G: Matrices (..., n, r).

    Returns:
        Matrices (..., n, r) in the column space of U.
    """
    return U @ (U.mT @ G)


@full_precision
def tangent(U: Tensor, G: Tensor) -> Tensor:
    """Project on the tangent space of the Stiefel manifold: ``G - U sym(U^T G)``.

    Args:
        U: Points (..., n, r).
        G: Matrices (..., n, r).

    Returns:
        X (..., n, r) with ``U^T X`` skew-symmetric, the nearest such matrix to G.
    """
    A = U.mT @ G
    return G - U @ (0.5 * (A + A.mT))


@full_precision
def retract_qr(Y: Tensor) -> Tensor:
    """Return the Q of the Householder QR of ``Y`` whose R has a positive diagonal.

    A zero on the diagonal of R counts as positive, so that no column is lost when Y is rank-deficient.

    Args:
        Y: Matrices (..., n, r), n >= r.

    Returns:
        Q (..., n, r), orthonormal to rounding for every Y.
    """
    Q, R = torch.linalg.qr(Y)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    return Q * torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype).unsqueeze(-2)


@full_precision
def retract_cholesky(Y: Tensor, passes: int = 2) -> Tensor:
    """Return the same Q as `retract_qr` by one or two passes of Cholesky-QR, about five times faster.

    ``Y^T Y = R^T R``, ``Q = Y R^{-1}``. One pass is exact to rounding after a tangent step, where the singular values
    of ``Y = U + X`` with ``U^T X = 0`` are at least 1; use two passes for other matrices. Where Y is rank-deficient, or
    so close to it that the passes would lose orthonormality, it is detected on the diagonal of R, and Householder QR is
    used for the whole batch instead.

    Source: Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", 2015.

    Args:
        Y: Matrices (..., n, r), n >= r.
        passes: 1 or 2.

    Returns:
        Q (..., n, r), orthonormal.
    """
    spread = _SPREAD if passes == 1 else _SPREAD_TWO_PASSES
    Q = Y
    for number in range(passes):
        gram = Q.mT @ Q
        if number and not _nearly_identity(gram):  # a graded Y fools the diagonal of the first pass
            return retract_qr(Y)
        L, info = torch.linalg.cholesky_ex(gram)
        diagonal = L.diagonal(dim1=-2, dim2=-1)
        # "not (... >= ...)" also catches NaN
        if bool(info.any()) or not bool((diagonal.amin(-1) >= spread * diagonal.amax(-1)).all()):
            return retract_qr(Y)
        Q = torch.linalg.solve_triangular(L.mT, Q, upper=True, left=False)
    return Q


def _nearly_identity(gram: Tensor) -> bool:
    defect = gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return bool((defect.square().sum((-2, -1)) < 0.25).all())


@full_precision
def retract_polar(Y: Tensor) -> Tensor:
    """Return the orthonormal matrix nearest to ``Y``: its polar factor ``Y (Y^T Y)^{-1/2}``.

    By the eigenvectors of the Gram matrix; where Y is nearly rank-deficient (which is detected) by the SVD
    ``Y = P s Q^T``, polar factor ``P Q^T``, since there the Gram matrix has lost the small singular values. For exactly
    rank-deficient Y the nearest matrix is not unique: one of them is returned.

    Args:
        Y: Matrices (..., n, r), n >= r.

    Returns:
        Q (..., n, r), orthonormal.
    """
    values, vectors = torch.linalg.eigh(Y.mT @ Y)
    if not bool(((values[..., 0] >= 0.1 * values[..., -1]) & (values[..., 0] > 0)).all()):
        P, _, Qt = checked_svd(Y)
        return P @ Qt
    return Y @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT


@full_precision
def orthonormality_error(U: Tensor) -> Tensor:
    """Return the spectral norm ``||U^T U - I||_2``, computed in float64.

    It bounds the relative error of every squared singular value of ``U S V^T`` that comes from U.

    Args:
        U: Matrices (..., n, r).

    Returns:
        One number for each matrix (...).
    """
    U = U.double()
    identity = torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
    return torch.linalg.eigvalsh(U.mT @ U - identity).abs().amax(-1)
