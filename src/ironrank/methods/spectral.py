"""Spectral penalties on dense weights: on their condition number, their largest singular value, or their spread.

The soft counterpart, at full rank, of what CondLR does to low-rank layers: no scale is prescribed but for "norm", only
the ratio of singular values is drawn towards one.

    kind     term(X), X (a, b) the weight as a tall matrix, s_1 >= ... >= s_b its singular values
    cond     log(s_1 / s_b)
    norm     s_1^2 / 2, by power iteration
    spread   R(X) = || X^T X - a^2 I ||_F with a^2 the mean of the s_i^2, see `ironrank.linalg.spread`

"cond" moves two singular values at a time, and by its gradient ``u_b v_b^T / s_b`` strongly where s_b is small, as in
square layers with random weights; an s_b below 1e-6 of s_1 is left alone. It takes all eigenvalues of ``X^T X`` in
float64 at each step, some b^3 operations on top of the product that "spread" needs; and "spread" bounds it.

Source: norm: Yoshida, Miyato, "Spectral norm regularization for improving the generalizability of deep learning", 2017;
spread: the regulariser of RobustDLRT (arXiv 2505.08022), which its authors tried on dense nets as well; cond: the plain
logarithm of the quantity that both papers on conditioned low-rank nets bound. We know the first by its formula only.

When not to use it: to make the net smaller; where the bound on the condition number must hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ironrank.linalg import spread, stretch
from ironrank.linalg.precision import full_precision
from ironrank.methods.penalised import Penalised
from ironrank.settings import setting

KINDS = ("cond", "norm", "spread")
_LOST = 1e-12  # of the largest eigenvalue of the Gram matrix


@dataclass(frozen=True, kw_only=True)
class Spectral(Penalised):
    """Draw the singular values of dense weights together, or the largest down, by a penalty.

    Attributes:
        kind: "cond", "norm" or "spread"; see the top of this file.

    Example:
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> net.weight.data = torch.diag(torch.tensor([1.0, 2.718281828]))
        >>> round(Spectral(weight=1.0).penalty(net, {}).item(), 6)
        1.0
    """

    name: ClassVar[str] = "spectral"
    kind: str = setting("cond", "what is penalised", choices=KINDS)

    @property
    def shift(self) -> float | None:
        """0 for the largest singular value."""
        return 0.0 if self.kind == "norm" else None

    def term(self, X: Tensor, v: Tensor | None) -> Tensor:
        """Return the penalty of one layer; see `Penalised.term`."""
        if v is not None:
            return 0.5 * stretch(X, v)
        return log_condition(X) if self.kind == "cond" else spread(X)


@full_precision
def log_condition(X: Tensor) -> Tensor:
    """Return ``log(s_1 / s_b)`` of a tall matrix, which autograd follows.

    Args:
        X: Matrix (a, b), a >= b, not zero.

    Returns:
        A scalar of the type of X; where s_b is lost in rounding, that of the smallest that is not, without gradient
        from it.
    """
    X64 = X.double()
    values = torch.linalg.eigvalsh(X64.mT @ X64)
    last = torch.maximum(values[0], _LOST * values[-1].detach())
    return 0.5 * (values[-1].log() - last.log()).to(X.dtype)
