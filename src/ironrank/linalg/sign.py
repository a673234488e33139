"""The orthogonal factor of a matrix: all its singular values set to one, its singular vectors kept.

    G (n, m) = P diag(s) Q^T    ->    O = P Q^T

Where G has rank below min(n, m) the directions of zero singular values stay zero, so that row and column spaces of O
are those of G. For orthogonal A and B, both functions here take ``A G B`` to ``A O B``.

`orthogonal_factor` is the plain version, by the SVD. `newton_schulz` needs products only, and brings singular values
near one rather than to it: a quintic map, five times, moves every one from 0.01 |G|_F up to between 0.68 and 1.14.

Source of the quintic: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.linalg.precision import full_precision
from ironrank.linalg.svd import checked_svd

_QUINTIC = (3.4445, -4.7750, 2.0315)


@full_precision
def orthogonal_factor(G: Tensor) -> Tensor:
    """Return ``P Q^T`` of the SVD, without the directions of singular values that are zero or lost in rounding.

    Args:
        G: Matrix (n, m).

    Returns:
        A matrix (n, m) whose singular values are one or zero.

    Example:
        >>> orthogonal_factor(torch.diag(torch.tensor([5.0, 0.1, 0.0])))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 0.]])
    """
    P, s, Qt = checked_svd(G)
    kept = s > max(G.shape) * torch.finfo(G.dtype).eps * s[0]
    return (P * kept) @ Qt


@full_precision
def newton_schulz(G: Tensor, steps: int = 5) -> Tensor:
    """Return about ``P Q^T``, by steps ``X <- a X + (b A + c A^2) X`` with ``A = X X^T`` from ``X = G / |G|_F``.

    Args:
        G: Matrix (n, m).
        steps: Number of steps.

    Returns:
        A matrix (n, m); zero for a zero matrix.
    """
    if G.shape[0] > G.shape[1]:  # A has the size of the smaller side
        return newton_schulz(G.mT, steps).mT
    a, b, c = _QUINTIC
    X = G / G.norm().clamp_min(torch.finfo(G.dtype).tiny)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * (A @ A)) @ X
    return X
