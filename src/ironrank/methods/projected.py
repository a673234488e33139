"""Projected SGD on the Stiefel manifold: dense weights that stay orthonormal, each step brought back at its end.

A straight step along the tangent space, then a retraction: QR, or the nearest orthonormal matrix (polar). It is the
plainest way to train orthonormal weights, and at small steps agrees with `ironrank.methods.cayley` to first order.

Step (2) of `ironrank.methods.stiefel`, X (a, b) with orthonormal columns and M its momentum:

    (2)  X <- R(X + (lr / c) M),  R the Q of the sign-fixed QR, or the polar factor

Source: Absil, Mahony, Sepulchre, "Optimization Algorithms on Matrix Manifolds", 2008. A row of this name stands in the
tables of CondLR; its code takes the same tangent direction and QR, and drops the momentum by a slip.

When not to use it: to make the net smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ironrank.linalg import retract_cholesky, retract_polar
from ironrank.methods.stiefel import Stiefel
from ironrank.settings import setting

RETRACTIONS = ("qr", "polar")


@dataclass(frozen=True, kw_only=True)
class Projected(Stiefel):
    """Keep dense weights orthonormal, by a retraction after each straight step.

    Attributes:
        retraction: "qr" or "polar".

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(8, 4)
        >>> _ = Projected().init(net)
        >>> torch.allclose(net.weight @ net.weight.T, torch.eye(4), atol=1e-6)
        True
    """

    name: ClassVar[str] = "projected"
    retraction: str = setting("qr", "how a step ends on the manifold", choices=RETRACTIONS, paper="qr")

    def moved(self, X: Tensor, M: Tensor, length: float, t: int) -> Tensor:
        """Take a straight step and bring it back; see `Stiefel.moved`."""
        Y = X + length * M
        return retract_cholesky(Y) if self.retraction == "qr" else retract_polar(Y)
