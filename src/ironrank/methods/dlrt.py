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

One step, each gradient from a ``backward`` of its own, on the same batch:

    (1)  K = U S:    K <- K - lr dL/dK at W = K V^T
    (2)  L = V S^T:  L <- L - lr dL/dL at W = U L^T, from the same weights as (1)
    (3)  U' = orth [K | U],  V' = orth [L | V],  cut to min(n, m, 2 r) columns;  S' = (U'^T U) S (V^T V')
    (4)  S' <- S' - lr dL/dS' at W = U' S' V'^T; biases and dense layers move here
    (5)  S' = P C Q^T (SVD);  U <- U' P_r',  S <- C_r',  V <- V' Q_r',  r' after theta and the limits

"- lr dL/d" stands for a step of any optimizer. Its moments of U and V are those of K and L, whose columns are
coordinates along V and U: they are carried into the new bases, as those of S are; in the source the optimizer is SGD
without momentum. It differs from `RobustDLRT` at beta = 0: there bases grow by gradients and do not step.

In (3) the new directions stand first. Where there is no room for all, as at full rank, they go in whole and the old
ones as far as there is room: so a basis of full rank moves too; what then drops out of W is of second order in lr.

After ``steps`` steps, if that is set, there is (4) alone: the bases stand still, and S is not diagonal any more. That
is how a training of `RobustDLRT` ends; of DLRT's own code we know no such stretch.

Deviations from the published code: (5) multiplies V' by Q, there by its transpose; (1) to (4) may have momentum; biases
and running statistics of batch norm see one of the three gradients, and (1), (2) leave the statistics alone.

When not to use it: where three gradients a step are too dear; for a bound on the condition number.
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
        with kept_statistics(model):
            loss, gK = _gradients(layers, backward, "K")
            _, gL = _gradients(layers, backward, "L")
        old = [_detached(layer) for layer in layers]
        model.zero_grad(set_to_none=True)
        for layer, (U, S, V), K, L in zip(layers, old, gK, gL, strict=True):
            layer.U.data, layer.V.data = U @ S, V @ S.mT
            layer.U.grad, layer.V.grad = K, L
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


def _gradients(layers: list[Any], backward: Backward, side: str) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, and its gradients with respect to K or to L of every layer, which stays as it is."""
    old = [_detached(layer) for layer in layers]
    for layer, (U, S, V) in zip(layers, old, strict=True):
        identity = torch.eye(len(S), dtype=S.dtype, device=S.device)
        layer.set_factors(USV(U @ S, identity, V) if side == "K" else USV(U, identity, V @ S.mT))
    loss = backward()
    found = [(layer.U if side == "K" else layer.V).grad for layer in layers]
    for layer, factors in zip(layers, old, strict=True):
        layer.set_factors(factors)
    return loss, found


@torch.no_grad()
def _span(layer: Any, old: USV, optimizer: torch.optim.Optimizer) -> None:
    """Write a layer, whose U and V hold K and L after their step, in the bases of equation (3)."""
    K, L = layer.U.detach().clone(), layer.V.detach().clone()
    n, m, r = len(K), len(L), len(old.S)
    bases = [retract_qr(torch.cat(pair, 1)[:, : min(n, m, 2 * r)]) for pair in ((K, old.U), (L, old.V))]
    layer.set_factors(old)
    rebase(layer, (bases[0], bases[1]), optimizer, crossed=True)
