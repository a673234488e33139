r"""Cayley SGD: dense weights that stay orthonormal, moved along Cayley transforms, with momentum.

Every tangent vector at an orthonormal X is ``M = A X`` with a skew-symmetric A, and the Cayley transform of A turns X
without stretching it. The transform needs an inverse; here a fixed-point iteration of a few products stands in for it,
and what it misses of orthonormality is mended by a QR step.

    symbol   name here   shape
    X        X           (a, b), a >= b, X^T X = I; see `ironrank.methods.stiefel`
    M        M           (a, b), momentum, tangent at X
    A        P, X        (a, a), skew: A = P X^T - X P^T with P = M - X (X^T M) / 2; never formed

Step (2) of `ironrank.methods.stiefel`:

    (2a)  l <- min(lr / c, 1 / |A|_F)
    (2b)  Y <- X + l M, then ``iterations`` times  Y <- X + (l/2) A (X + Y)
    (2c)  X <- Y, brought back by QR at every so many steps

The fixed point of (2b) is the Cayley transform ``(I - l/2 A)^{-1} (I + l/2 A) X``; the bound (2a) makes the iteration
contract by 1/2 or better. A product with A costs 4 a b^2 operations through P and X, where A itself has a^2 entries.

Source: Li, Fuxin, Todorovic, "Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform", ICLR
2020, known to us by the code that CondLR's authors compare with, and from memory; not checked against its text. There
the norm in (2a) is another, QR comes at random with probability 1/101, wide matrices only are held orthonormal, and the
momentum is dropped by a slip. Ours: both orientations, a scale, QR at every so many steps, momentum as above.

When not to use it: to make the net smaller; where the layers need different gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ironrank.linalg import retract_cholesky
from ironrank.linalg.precision import full_precision
from ironrank.methods.stiefel import Stiefel
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Cayley(Stiefel):
    """Keep dense weights orthonormal, along Cayley transforms.

    Attributes:
        iterations: Rounds of the fixed-point iteration in place of the inverse.
        every: Mend orthonormality by QR every so many steps; above 1 it drifts in between.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(8, 4)
        >>> _ = Cayley().init(net)
        >>> torch.allclose(net.weight @ net.weight.T, torch.eye(4), atol=1e-6)
        True
    """

    name: ClassVar[str] = "cayley"
    iterations: int = setting(2, "rounds of the fixed-point iteration", ge=1, paper="2")
    every: int = setting(
        1, "mend orthonormality by QR every so many steps", ge=1, paper="at random, 1 in 101"
    )

    def moved(self, X: Tensor, M: Tensor, length: float, t: int) -> Tensor:
        """Follow the Cayley transform; see `Stiefel.moved`."""
        Y = cayley(X, M, length, self.iterations)
        return retract_cholesky(Y) if (t + 1) % self.every == 0 else Y  # (2c)


@full_precision
def cayley(X: Tensor, M: Tensor, length: float, iterations: int) -> Tensor:
    """Approximate the Cayley transform along a tangent vector: equations (2a) and (2b).

    Args:
        X: Orthonormal columns (a, b).
        M: Tangent vector at X (a, b).
        length: How far to go, in units of M; cut where the iteration would not contract.
        iterations: Rounds of the iteration.

    Returns:
        A matrix (a, b), orthonormal up to the error of the iteration.
    """
    inner = X.mT @ M
    P = M - 0.5 * (X @ inner)
    # |A|_F^2 = 2 |P|^2 - 2 tr(P^T X P^T X), where P^T X = inner^T / 2
    norm = (2 * P.square().sum() - 0.5 * (inner.mT * inner).sum()).clamp_min(0).sqrt()
    step = (1 / norm.clamp_min(1e-30)).clamp(max=length)
    Y = X + step * M
    for _ in range(iterations):
        Z = X + Y
        Y = X + 0.5 * step * (P @ (X.mT @ Z) - X @ (P.mT @ Z))
    return Y
