"""CondLR: low-rank training with orthonormal bases and singular values kept in a narrow band.

Each weight is ``W = U S V^T`` with orthonormal U and V. Every step moves the three factors along the low-rank manifold,
brings U and V back to orthonormal columns, and moves the singular values of S into a band whose ends have the ratio
``1 + tau``, so that the condition number of the layer never exceeds ``1 + tau``. The net is cheap to train and to run,
and a small change of a layer's input, seen through its row space, is not stretched more than any other.

Source: Savostianova, Zangrando, Ceruti, Tudisco, "Robust low-rank training via approximate orthonormal constraints",
NeurIPS 2023. Its full text was not at hand; the equations below are derived, or read off the published
code's behaviour, and checked numerically. They are not the paper's equations.

    symbol         name here        shape
    U, V           layer.U, .V      (n, r), (m, r), U^T U = V^T V = I
    S              layer.S          (r, r), not diagonal
    tau            tau              >= 0; the bound on cond(W) is 1 + tau
    c, e           centre of the singular values and half-width tau c / (2 + tau) of the band

One step, from the gradients gU, gS, gV of one backward pass:

    (1)  dU = (I - U U^T) gU (S S^T)^{-1}      dV = (I - V V^T) gV (S^T S)^{-1}      dS = gS
    (2)  the optimizer moves U, S, V along -dU, -dS, -dV; its momentum is first projected to the present tangent space
    (3)  U <- Q of the sign-fixed QR of U,  V likewise
    (4)  tau > 0: singular values of S clamped to [c - e, c + e];  tau = 0: S <- c times its orthogonal polar factor

(1) is minus the projection of the full gradient on the tangent space of the rank-r matrices, since
``gU = G V S^T``. The scalar correction replaces ``S S^T`` by ``tr(S S^T)/r I``, which is exact at tau = 0.

A Tucker-2 convolution has a core S (r1, r2, *k) with the unfoldings ``S_(1)`` (r1, r2 K) by output and ``S_(2)``
(r2, r1 K) by input channels. There (1) takes ``S_(1) S_(1)^T`` for U and ``S_(2) S_(2)^T`` for V, and (4) acts on
``S_(1)``: the bound is one on the condition number of the kernel unfolded by output channels. ``S_(2)`` has none, so
the steps of V may be large where it is ill-conditioned (``correction="scalar"`` keeps them small). This is ours. In the
spatial form all is as for a matrix, with the one that the form holds.

Deviations from the published code, all on purpose: the correction there is the scalar ``(s_min/s_max)^2`` (or a
stale one), and it multiplies the momentum too; the tau = 0 projection there is QR instead of polar; weights
there start at random instead of from the given ones; biases exist only where the layer has one.

When not to use it: where clean accuracy at high compression matters more than a bound on the condition number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError, nearest
from ironrank.linalg import (
    clamp,
    condition_number,
    horizontal,
    nearest_orthogonal,
    orthonormality_error,
    retract_cholesky,
    side_by_side,
)
from ironrank.linalg.spectrum import CENTRES
from ironrank.methods.attached import Attached
from ironrank.methods.base import Backward, State
from ironrank.methods.lowrank import LowRank
from ironrank.methods.tangent import CORRECTIONS, make_tangent, steps_straight
from ironrank.settings import setting
from ironrank.surgery import factored_layers, last_match, trained_cores, weight_matrices

SCALES = ("weights", "norm")

NO_BOUND = 1e6  # from this tau on nothing is clamped


@dataclass(frozen=True, kw_only=True)
class CondLR(LowRank):
    """Train at low rank with condition number at most ``1 + tau``.

    Attributes:
        tau: Allowed excess of the condition number; from 1e6 on cores are left alone. (A band of any finite tau cuts
            singular values above twice their centre.)
        taus: tau by name pattern, in place of ``tau`` for the layers that match.
        centre: Centre of the band, "mean" or "rms" of the layer's own singular values.
        correction: "exact" for ``(S S^T)^{-1}``, "scalar" for ``r / tr(S S^T)``, "none" for plain horizontal gradients.
        scale: "weights" starts from the singular values that truncation keeps; "norm" scales them up to the Frobenius
            norm of the whole weight, so that the truncated layer passes on a signal of the same size.
        every: Retract and clamp at every so many steps; above 1 the bounds hold only then.

    Example:
        >>> net = CondLR(tau=0.1, keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> net[0].rank, net[2].rank
        (4, 2)
    """

    name: ClassVar[str] = "condlr"
    tau: float = setting(0.1, "allowed excess of the condition number", ge=0, paper="0, 0.1, 0.5")
    taus: dict[str, float] = setting({}, "tau by name pattern, in place of tau")
    centre: str = setting("mean", "centre of the band", choices=CENTRES, paper="mean; rms at tau=0")
    correction: str = setting("exact", "gradient correction of the bases", choices=CORRECTIONS)
    scale: str = setting("weights", "scale of the cores at the start", choices=SCALES)
    every: int = setting(1, "retract and clamp every so many steps", ge=1, paper="1")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed.
        """
        super().__post_init__()
        for pattern, tau in self.taus.items():
            if not 0 <= tau < float("inf"):
                raise IronrankError(f"condlr.taus['{pattern}']={tau}: allowed is at least 0")

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give the chosen layers a core and two bases, from their weights; or adopt a net that is factored already.

        In a net that is factored, such as a compressed one, these layers keep form, rank and function: what their
        bases lack to be orthonormal goes into the core, which they get if they had none. Dense layers stay dense, so
        ``keep``, ``ranks``, ``form``, ``exclude``, ``first`` and ``last`` are not used.

        Args:
            model: The model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If a pattern of ``taus`` matches no layer.
        """
        norms = {name: matrix.norm().item() for name, matrix in weight_matrices(model)}
        if adopted := factored_layers(model):
            for _, layer in adopted:
                layer.orthonormalize()
        else:
            self.factorize(model, core=True)
        names = [name for name, _ in trained_cores(model)]
        for pattern in self.taus:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise IronrankError(f"condlr.taus: no layer matches '{pattern}': {nearest(pattern, names)}")
        if self.scale == "norm":
            for name, layer in trained_cores(model):
                if norms[name]:
                    layer.S.data.mul_(norms[name] / layer.S.norm().item())
        return model

    def init(self, model: nn.Module) -> State:
        """Bring all factors into the constraint set: orthonormal bases, clamped cores.

        Args:
            model: The prepared model, changed in place.

        Returns:
            No state.
        """
        self.constrain(model)
        return {}

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The prepared model.
            optimizer: Any torch optimizer of its parameters.
            state: Not used.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step.
        """
        loss = backward()
        before = self.project(model, optimizer)  # (1), and the momentum of (2)
        optimizer.step()  # (2)
        self.retract(model, before, t)  # (3), (4)
        return loss

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Make sure that the constraints hold.

        Args:
            model: The trained model, changed in place.
            state: Not used.

        Returns:
            The same model.
        """
        if self.every > 1:
            self.constrain(model)
        return model

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Attached:
        """Run the same algorithm in a user's own loop: hooks before and after ``optimizer.step()``.

        Args:
            model: A model whose layers hold factors with a core, made by `prepare` or `ironrank.factorize`.
            optimizer: Any torch optimizer that holds these factors.

        Returns:
            The attachment; ``.remove()`` ends it, ``.steps`` counts. It warns if training goes on and it never fired.

        Raises:
            IronrankError: If the model has no such layer or the optimizer does not hold its factors.
        """
        return Attached(self, model, optimizer)

    def tau_of(self, name: str) -> float:
        """Return the tau of a layer, by its full name."""
        given = last_match(name, self.taus)
        return self.tau if given is None else given

    def constrain(self, model: nn.Module) -> None:
        """Bring every basis and core into the constraint set, in place; those that are in it stay as they are."""
        self._to_set(model, passes=2, only_outside=True)

    def project(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
        """Make gradients and momentum of all bases tangent, in place: equation (1).

        Args:
            model: The prepared model, with gradients.
            optimizer: Its optimizer.

        Returns:
            Copies of the bases, by ``id``, for optimizers whose step may leave the tangent space; none for SGD.
        """
        layers = trained_cores(model)
        tasks = [
            task for _, layer in layers for task in zip((layer.U, layer.V), layer.unfoldings(), strict=True)
        ]

        def work(task: tuple[nn.Parameter, Tensor]) -> None:
            make_tangent(*task, optimizer, self.correction)

        side_by_side(work, sorted((task for task in tasks if task[0].grad is not None), key=_size))
        return {id(U): U.detach().clone() for U, _ in tasks if not steps_straight(optimizer, U)}

    def retract(self, model: nn.Module, before: Mapping[int, Tensor], t: int) -> None:
        """Bring U, V and S back to the constraint set after a step: equations (3) and (4).

        Args:
            model: The prepared model, after the optimizer's step.
            before: What `project` returned: their steps are made tangent first.
            t: Number of the step, from 0: where it is not the last of ``every``, factors stay where it took them.
        """
        with torch.no_grad():
            for U in (basis for _, layer in trained_cores(model) for basis in (layer.U, layer.V)):
                if (old := before.get(id(U))) is not None:
                    U.copy_(old + horizontal(old, U - old))
        if (t + 1) % self.every == 0:
            self._to_set(model, passes=1 if self.every == 1 else 2)

    def _to_set(self, model: nn.Module, passes: int, only_outside: bool = False) -> None:
        layers = trained_cores(model)
        tasks: list[tuple[nn.Parameter, float | None]] = [
            (layer.S, tau) for name, layer in layers if (tau := self.tau_of(name)) < NO_BOUND
        ]
        tasks += [(basis, None) for _, layer in layers for basis in (layer.U, layer.V)]

        @torch.no_grad()
        def work(task: tuple[nn.Parameter, float | None]) -> None:
            (factor, tau), matrix = task, task[0].flatten(1)  # of a Tucker-2 core the unfolding by outputs
            if only_outside and is_inside(matrix, tau):
                return
            if tau is None:
                new = retract_cholesky(matrix, passes)
            else:
                new = clamp(matrix, tau, self.centre) if tau > 0 else nearest_orthogonal(matrix, self.centre)
            factor.copy_(new.reshape(factor.shape))

        side_by_side(work, sorted(tasks, key=_size))


def is_inside(factor: Tensor, tau: float | None) -> bool:
    """Return whether a core has condition number at most ``1 + tau``, or, for tau None, a basis is orthonormal.

    Args:
        factor: Core (r, q) or basis (n, r).
        tau: Allowed excess of the condition number; None for a basis.

    Returns:
        True where it holds up to rounding.
    """
    slack = 32 * torch.finfo(factor.dtype).eps
    if tau is None:
        return orthonormality_error(factor).item() <= slack
    return condition_number(factor).item() <= 1 + tau + slack


def _size(task: tuple[Tensor, Any]) -> float:
    n, m = task[0].flatten(1).shape
    r = min(n, m)
    return -r * r * (n if n > m else 20 * r + m)  # an eigen-decomposition costs about 20 r^3; dearest first
