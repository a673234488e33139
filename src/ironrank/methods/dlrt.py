"""DLRT: low-rank training by three small steps, for the column space, the row space and the core, with adaptive rank.

Each weight is ``W = U S V^T`` with orthonormal U and V. A step moves ``K = U S`` and ``L = V S^T`` by their gradients,
which never divides by the small singular values of S, spans new bases by the old and the new directions, moves the core
in these, and drops the directions that it does not need: ranks go down, and up again.

Source: Schotthoefer, Zangrando, Kusch, Ceruti, Tudisco, "Low-rank lottery tickets: finding efficient low-rank neural
networks via matrix differential equations", NeurIPS 2022. Its full text was not at hand; the steps are known from what
its published code does.

    symbol       name here      shape
    U, V         layer.U, .V    (n, r), (m, r), U^T U = V^T V = I
    S            layer.S        (r, r)
    theta        tolerance      share of |S|_F that truncation may drop
    r_max        keep           largest rank, here as a share of the full rank

One step, which takes two gradients on the same batch, one for (1) and (2), one for (4):

    (1)  K = U S:    K <- K - lr dL/dK at W = K V^T
    (2)  L = V S^T:  L <- L - lr dL/dL at W = U L^T, the same weights as in (1)
    (3)  U' = orth [K | U],  V' = orth [L | V],  cut to min(n, m, 2 r) columns;  S' = (U'^T U) S (V^T V')
    (4)  S' <- S' - lr dL/dS' at W = U' S' V'^T; biases and dense layers move here
    (5)  S' = P C Q^T (SVD);  U <- U' P_r',  S <- C_r',  V <- V' Q_r',  r' after theta and the limits

"- lr dL/d" stands for a step of any optimizer. Its moments of U and V are those of K and L, whose columns are
coordinates along V and U: they are carried into the new bases, as those of S are; in the source the optimizer is SGD
without momentum. It differs from `RobustDLRT` at beta = 0: there bases grow by gradients and do not step.

One gradient does for (1) and (2), where the source takes two: of ``[U | 0] [V S^T | V]^T``, which is W too, the second
half of the left factor's is that of K, and the first half of the right factor's is that of L.

In (3) the new directions stand first. Where there is no room for all, as at full rank, they go in whole and the old
ones as far as there is room: so a basis of full rank moves too; what then drops out of W is of second order in lr.

After ``steps`` steps, if that is set, there is (4) alone: the bases stand still, and S is not diagonal any more. That
is how a training of `RobustDLRT` ends; of DLRT's own code we know no such stretch.

Deviations from the published code: (5) multiplies V' by Q, there by its transpose; (1) to (4) may have momentum; biases
and running statistics of batch norm see the second of the two gradients only.

When not to use it: where two gradients a step are too dear; for a bound on the condition number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg import USV, retract_qr, side_by_side
from ironrank.methods.adaptive import Adaptive, adaptive_layers
from ironrank.methods.base import Backward, State
from ironrank.methods.lowrank import ENDS
from ironrank.methods.turning import rebase
from ironrank.objectives.robust import kept_statistics
from ironrank.settings import setting
from ironrank.surgery import factored_layers


@dataclass(frozen=True, kw_only=True)
class DLRT(Adaptive):
    """Train at low rank by K, L and S steps; ranks adapt.

    Attributes:
        tolerance: theta.
        form: "channel" or "spatial"; the K, L and S steps are those of a matrix.
        last: The last layer; dense in the published experiments.

    Example:
        >>> net = DLRT(keep=0.5, last="low-rank").prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
        >>> net[0].rank, net[2].rank
        (4, 2)
    """

    name: ClassVar[str] = "dlrt"
    tolerance: float = setting(
        0.15, "share of a core's norm that truncation may drop", ge=0, lt=1, paper="0.09 to 0.45"
    )
    keep: float = setting(0.5, "largest rank, as a share of the full rank", gt=0, le=1, paper="0.5")
    min_rank: int = setting(2, "smallest rank", ge=1, paper="2")
    form: str = setting("channel", "low-rank form of convolutions", choices=("channel", "spatial"))
    last: str = setting("dense", "form of the last layer", choices=ENDS, paper="dense")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give the chosen layers a core and two bases, or adopt a net that is factored already, without Tucker-2.

        Args:
            model: The model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If it holds Tucker-2 layers, or the budget is out of reach.
        """
        for name, layer in factored_layers(model):
            if layer.form == "tucker2":
                raise IronrankError(f"dlrt: layer '{name}' is in Tucker-2 form, and the steps are those of a matrix: "
                                    "take robust-dlrt, or start from a dense net")  # fmt: skip
        return super().prepare(model)

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The prepared model.
            optimizer: SGD or one of the Adam family, of its parameters.
            state: Not used.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step.
        """
        layers = list(adaptive_layers(model).values())
        if not self.adapts(t):
            return _core_step(layers, optimizer, backward)
        old = [_detached(layer) for layer in layers]
        with kept_statistics(model):
            loss, found = _gradients(layers, old, backward)
        model.zero_grad(set_to_none=True)
        for layer, (U, S, V), gradients in zip(layers, old, found, strict=True):
            layer.U.data, layer.V.data = U @ S, V @ S.mT
            layer.U.grad, layer.V.grad = gradients
        optimizer.step()  # (1), (2)
        side_by_side(lambda pair: _span(*pair, optimizer), zip(layers, old, strict=True))  # (3)
        _core_step(layers, optimizer, backward)
        self.truncate(model, optimizer, crossed=True)  # (5)
        return loss


def _core_step(layers: list[Any], optimizer: torch.optim.Optimizer, backward: Backward) -> Tensor:
    """Move all but the bases, and return the loss before: equation (4)."""
    loss = backward()
    for layer in layers:
        layer.U.grad = layer.V.grad = None
    optimizer.step()
    return loss


def _detached(layer: Any) -> USV:
    return USV(*(factor.detach().clone() for factor in layer.factors()))


def _gradients(
    layers: list[Any], old: list[USV], backward: Backward
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None]]]:
    """Return the loss, and its gradients with respect to K and L of every layer, which keeps its old factors."""
    for layer, factors in zip(layers, old, strict=True):
        layer.set_factors(_joint(factors))
    loss = backward()
    found = [_parted(layer.U.grad, layer.V.grad, factors) for layer, factors in zip(layers, old, strict=True)]
    for layer, factors in zip(layers, old, strict=True):
        layer.set_factors(factors)
    return loss, found


def _joint(factors: USV) -> USV:
    """Return factors of the same matrix whose gradients hold those of K and of L, see `_parted`."""
    U, S, V = factors
    n, m, r = len(U), len(V), len(S)
    L = V @ S.mT
    if 2 * r <= min(n, m):
        left, right = torch.cat((U, torch.zeros_like(U)), 1), torch.cat((L, V), 1)
    elif n <= m:  # no room: one factor is the matrix, and the other the identity
        left, right = _identity(U), L @ U.mT
    else:
        left, right = U @ L.mT, _identity(V)
    return USV(left, _identity(right.mT), right)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def _parted(left: Tensor | None, right: Tensor | None, factors: USV) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of K (n, r) and L (m, r) from those of the joint factors."""
    if left is None or right is None:  # the loss does not depend on the layer
        return None, None
    U, S, V = factors
    n, m, r = len(U), len(V), len(S)
    if 2 * r <= min(n, m):
        return left[:, r:].contiguous(), right[:, :r].contiguous()
    whole = right.mT if n <= m else left
    return whole @ V, whole.mT @ U


@torch.no_grad()
def _span(layer: Any, old: USV, optimizer: torch.optim.Optimizer) -> None:
    """Write a layer, whose U and V hold K and L after their step, in the bases of equation (3)."""
    K, L = layer.U.detach().clone(), layer.V.detach().clone()
    n, m, r = len(K), len(L), len(old.S)
    bases = [retract_qr(torch.cat(pair, 1)[:, : min(n, m, 2 * r)]) for pair in ((K, old.U), (L, old.V))]
    layer.set_factors(old)
    rebase(layer, (bases[0], bases[1]), optimizer, crossed=True)
