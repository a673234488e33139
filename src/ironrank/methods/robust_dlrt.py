"""RobustDLRT: low-rank training with adaptive rank whose cores are drawn towards equal singular values.

Each weight is ``W = U S V^T`` with orthonormal U and V, or a Tucker-2 kernel ``S x_1 U x_2 V``. Bases are widened by
their gradients, then only the small cores move, some steps long, on the loss and on the spread of their singular
values; then what a tolerance allows is cut off. A small spread bounds the condition number, and with it how unevenly a
layer stretches.

Source: Schotthoefer, Yang, Schnake, "Dynamical low-rank compression of neural networks with robustness under
adversarial attacks", NeurIPS 2025, arXiv 2505.08022: Algorithm 1 and Proposition 2.

    symbol       name here      shape
    U, V         layer.U, .V    (n, r), (m, r), U^T U = V^T V = I
    S            layer.S        (r, r), or (r1, r2, *k)
    S_(1)        unfoldings     (r1, r2 K), the core unfolded by output channels; S itself for a matrix
    beta         beta           weight of the spread
    s*           cycle          steps of the core between two changes of basis
    theta        tolerance      share of |S|_F that truncation may drop
    R            `spread`       |S_(1) S_(1)^T - a^2 I|_F, a^2 = |S|_F^2 / r1

One cycle, of ``cycle`` training steps, each on its own batch:

    (1)  GU, GV: gradients of the bases                              at the first step of the cycle
    (2)  U' = orth [U | GU],  V' = orth [V | GV]
    (3)  S' = (U'^T U) S (V^T V'), or S x_1 U'^T U x_2 V'^T V
    (4)  S' moves on  loss + beta sum_l R(S'_l);  so do biases and dense layers on the loss        at every step
    (5)  S' = P C Q^T (SVD, or HOSVD of a Tucker-2 core);  U <- U' P,  V <- V' Q,  S <- C, cut to the ranks that theta
         and the limits leave                                        at the last step of the cycle

After ``steps`` steps, if that is set, (5) ends the cycle that is under way, and there is (4) alone from then on.

The moments of the optimizer are carried through (3) and (5), see `ironrank.methods.moments`.

Decisions where the paper leaves room or its code does otherwise:

* No batch is spent on (1) alone. The first step of a cycle takes two gradients on its batch, at the old bases for (1)
  and at the new ones for (4); the published code takes (1) and no step, so that one batch in s* trains nothing.
* The bases have no gradient in (4), so that neither the optimizer nor its weight decay touches them: they stay
  orthonormal. In the published code decoupled weight decay shrinks them. Biases train; there those of linear layers do
  not. The exception are cores at full rank, see below.
* In (2) only directions of the gradient that stand out of rounding are added, the largest first where there is no room
  for all. The bases of a matrix gain as many: the poorer one is filled up with what is left of unit vectors.
* Where the core is as large as it can be (full rank), before or by (2), a basis that does not span everything moves by
  its horizontal gradient in (4), see `ironrank.methods.tangent`; in the published code it stands still. Ours.
* beta R is added to the loss, as in the code; the text scales the two gradients separately.
* Dense layers are not regularised. The first and the last layer are factored at full rank by default, where R(S) is
  R(W), which the published code adds for its dense ones. R = 0, where R has no gradient, counts as having gradient 0.
* The published code ends with an epoch at fixed rank. What moves there we do not know; here it is what moves in (4),
  the penalty stays, and bases whose gradient is dropped stand still to the bit.
* A net that is saved or judged within a cycle is truncated first, as (5) does.

When not to use it: where the rank shall be known beforehand (use condlr, or a budget); where clean accuracy alone
matters (beta = 0, or dlrt); as a defence by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ironrank.layers import FORMS
from ironrank.linalg import feasible_ranks, horizontal, retract_cholesky, retract_qr, side_by_side, spread
from ironrank.linalg.svd import checked_svd
from ironrank.methods.adaptive import Adaptive, adaptive_layers
from ironrank.methods.base import Backward, State
from ironrank.methods.lowrank import ENDS
from ironrank.methods.tangent import make_tangent
from ironrank.methods.turning import rebase
from ironrank.objectives.robust import kept_statistics
from ironrank.ranks.cores import Pair, pair_of
from ironrank.settings import setting
from ironrank.surgery import layers_with_core


@dataclass(frozen=True, kw_only=True)
class RobustDLRT(Adaptive):
    """Train at low rank, adapt ranks, and draw the singular values of every core together.

    Attributes:
        beta: Weight of the spread.
        cycle: s*, steps of the core between two changes of basis.
        tolerance: theta.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 5))
        >>> [layer.rank for layer in RobustDLRT(keep=0.5).prepare(net) if not isinstance(layer, nn.Flatten)]
        [(8, 4), (4, 4), 5]
    """

    name: ClassVar[str] = "robust-dlrt"
    begins: ClassVar[str] = "trained"
    beta: float = setting(0.05, "weight of the spread of singular values", ge=0, paper="0.05 to 0.2")
    cycle: int = setting(
        10, "steps of the core between two changes of basis", ge=1, paper="10; 75 on ImageNet"
    )
    tolerance: float = setting(
        0.1, "share of a core's norm that truncation may drop", ge=0, lt=1, paper="0.1, 0.05, 0.08, 0.013"
    )
    form: str = setting("tucker2", "low-rank form of convolutions", choices=(*FORMS, "auto"), paper="tucker2")
    first: str = setting("full-rank", "form of the first layer", choices=ENDS, paper="dense, regularised")
    last: str = setting("full-rank", "form of the last layer", choices=ENDS, paper="dense, regularised")

    def init(self, model: nn.Module) -> State:
        """Note that no basis is widened yet.

        Args:
            model: The prepared model.

        Returns:
            ``widened``: 1 between (2) and (5), 0 else.
        """
        return {"widened": torch.tensor(0)}

    def penalty(self, model: nn.Module, state: State) -> Tensor | float:
        """Return ``beta sum_l R(S_l)``.

        Args:
            model: The prepared model.
            state: Not used.

        Returns:
            A scalar.
        """
        if self.beta == 0:
            return 0.0
        return (
            self.beta
            * torch.stack([spread(layer.unfoldings()[0]) for _, layer in layers_with_core(model)]).sum()
        )

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The prepared model.
            optimizer: SGD or one of the Adam family, of its parameters.
            state: From `init`, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step, with the penalty.
        """
        layers = list(adaptive_layers(model).values())
        if t % self.cycle == 0 and self.adapts(t):
            with kept_statistics(model):
                backward()  # (1)
            side_by_side(lambda layer: _widen(layer, optimizer), layers)  # (2), (3)
            state["widened"] = torch.tensor(1)
        loss = backward()
        before = _hold(layers, optimizer)
        optimizer.step()  # (4)
        _retract(before)
        if self.adapts(t) and ((t + 1) % self.cycle == 0 or not self.adapts(t + 1)):
            self.truncate(model, optimizer)  # (5)
            state["widened"] = torch.tensor(0)
        return loss

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Truncate a net whose bases are widened, and make sure that it is within its budget.

        Args:
            model: The trained model, changed in place.
            state: From `init`.

        Returns:
            The same model.
        """
        if int(state.get("widened", torch.tensor(0))):
            self.truncate(model)
        return super().finish(model, state)

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return what `Adaptive.watch` returns, and ``spread``, the sum of R over all layers as they are.

        Args:
            model: The prepared model.
            state: From `init`.

        Returns:
            Numbers by name.
        """
        spreads = [float(spread(layer.unfoldings()[0].detach())) for _, layer in layers_with_core(model)]
        return super().watch(model, state) | {"spread": sum(spreads)}


def _room(layer: Any, new: Pair) -> Pair:
    """Return the ranks of U and V after widening by so many directions, as far as the sizes allow."""
    n, m = len(layer.U), len(layer.V)
    first, second = (rank + more for rank, more in zip(pair_of(layer.rank), new, strict=True))
    if layer.form == "tucker2":
        return feasible_ranks(layer.weight_shape, (min(n, first), min(m, second)))
    return (min(n, m, max(first, second)),) * 2


@torch.no_grad()
def _widen(layer: Any, optimizer: torch.optim.Optimizer) -> None:
    """Span a layer's bases by themselves and their gradients: equations (2) and (3)."""
    bases = layer.U, layer.V
    new = [_directions(basis) for basis in bases]
    room = _room(layer, (new[0].shape[1], new[1].shape[1]))
    found = [
        retract_qr(torch.cat([basis.detach(), more, torch.eye(len(basis)).to(basis)], 1)[:, :columns])
        for basis, more, columns in zip(bases, new, room, strict=True)
    ]
    rebase(layer, (found[0], found[1]), optimizer)


def _directions(basis: nn.Parameter) -> Tensor:
    """Return orthonormal directions of a basis's gradient outside of its span, the largest first.

    What is lost in rounding is left out: it would differ from one machine, or number of processes, to another.
    """
    if basis.grad is None:
        return basis.new_zeros(len(basis), 0)
    P, s, _ = checked_svd(horizontal(basis.detach(), basis.grad))
    return P[:, s > torch.finfo(s.dtype).eps ** 0.5 * basis.grad.norm()]


def _hold(layers: list[Any], optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, Tensor]]:
    """Drop the gradients of bases, but for those that could not be widened; return these and where they are."""
    moving = []
    for layer in layers:
        ranks, full = pair_of(layer.rank), pair_of(layer.full_rank)
        for basis, core, rank, most in zip((layer.U, layer.V), layer.unfoldings(), ranks, full, strict=True):
            if rank == most < len(basis) and basis.grad is not None:
                make_tangent(basis, core, optimizer, "scalar")
                moving.append((basis, basis.detach().clone()))
            else:
                basis.grad = None
    return moving


@torch.no_grad()
def _retract(moved: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Bring bases that have moved back to orthonormal columns; of their steps the horizontal part counts."""
    for basis, old in moved:
        basis.copy_(retract_cholesky(old + horizontal(old, basis - old)))
