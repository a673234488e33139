"""Soft orthogonality: a penalty that draws dense weights towards orthonormal rows or columns.

Nothing holds the weights on a manifold; a term of the loss grows with their distance from ``X^T X = I``, summed over
all directions (SO) or for the worst one (SRIP).

    kind    term(X), X (a, b) the weight as a tall matrix
    so      || X^T X - I ||_F^2
    srip    || X^T X - I ||_2, the spectral norm, by power iteration

Source: Bansal, Chen, Wang, "Can we gain more from orthogonality regularizations in training deep CNNs?", NeurIPS 2018,
known to us by name and formula. Ours: the smaller Gram matrix for wide weights too; one vector followed from step to
step, where the paper starts each power iteration at random; a weight that stays the same for the whole training.

When not to use it: where orthonormality must hold; see `ironrank.methods.cayley`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ironrank.linalg import stretch
from ironrank.linalg.precision import full_precision
from ironrank.methods.penalised import Penalised
from ironrank.settings import setting

KINDS = ("so", "srip")


@dataclass(frozen=True, kw_only=True)
class SoftOrthogonal(Penalised):
    """Draw dense weights towards orthonormal ones by a penalty.

    Attributes:
        kind: "so", the squared Frobenius norm of ``X^T X - I``, or "srip", its spectral norm.

    Example:
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(net.weight).data.mul_(2)
        >>> SoftOrthogonal(weight=0.1).penalty(net, {}).item()  # 0.1 (3^2 + 3^2)
        1.8000...
    """

    name: ClassVar[str] = "soft-orthogonal"
    kind: str = setting("so", "norm of X^T X - I", choices=KINDS)

    @property
    def shift(self) -> float | None:
        """1 for the spectral norm."""
        return 1.0 if self.kind == "srip" else None

    def term(self, X: Tensor, v: Tensor | None) -> Tensor:
        """Return the penalty of one layer; see `Penalised.term`."""
        return defect(X) if v is None else (stretch(X, v) - 1).abs()


@full_precision
def defect(X: Tensor) -> Tensor:
    """Return ``||X^T X - I||_F^2`` of a tall matrix (a, b)."""
    identity = torch.eye(X.shape[1], dtype=X.dtype, device=X.device)
    return (X.mT @ X - identity).square().sum()
