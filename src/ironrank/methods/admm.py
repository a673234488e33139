"""What methods by ADMM share: the step that pulls weights W towards targets Z, the growth of rho, use in a user's loop.

    every step         the optimizer moves W along the gradient of  loss + rho/2 |W - Z + Y|^2
    every ``every``    Z, the dual Y and rho are updated

A method says how it pulls (`ADMM.ahead`) and what its targets are (`ADMM.update`).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ironrank.methods.attached import AttachedADMM
from ironrank.methods.base import Backward, Method, State

UPDATES = 60  # of the targets, however long the training


class ADMM(Method):
    """Base of the methods by ADMM; the settings named here are fields of the methods, in their own order."""

    begins: ClassVar[str] = "trained"
    ends: ClassVar[str] = "cut"
    rho_growth: float
    rho_max: float
    every: int

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of the method's file for the equations.

        Args:
            model: The dense model.
            optimizer: Any torch optimizer of its parameters.
            state: From `init`, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss of the objective before the step, without the pull.
        """
        loss = backward()
        self.ahead(model, state)
        optimizer.step()  # (1)
        self.behind(model, state, t)
        return loss

    def ahead(self, model: nn.Module, state: State) -> None:
        """Add the pull to the gradients: the second term of (1)."""
        raise NotImplementedError

    def behind(self, model: nn.Module, state: State, t: int) -> None:
        """Update the targets, if the step was the last of ``every``: the equations after (1)."""
        if (t + 1) % self.every == 0:
            self.update(model, state)

    def update(self, model: nn.Module, state: State) -> None:
        """Project, move the dual, raise rho, in place.

        Args:
            model: The dense model.
            state: From `init`.
        """
        raise NotImplementedError

    def paces(self, steps: int) -> dict[str, int]:
        """Return what makes `UPDATES` updates; see `Method.paces`."""
        return {"every": max(1, steps // UPDATES)}

    def raised(self, rho: float) -> float:
        """Return rho after an update; one that starts above its largest value stays."""
        return max(rho, min(rho * self.rho_growth, self.rho_max))

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AttachedADMM:
        """Run the same algorithm in a user's own loop: hooks before and after ``optimizer.step()``.

        Args:
            model: The dense model.
            optimizer: Any torch optimizer that holds its weights.

        Returns:
            The attachment; ``.finish()`` ends it and returns the small model, ``.state`` is what `watch` reads.

        Raises:
            IronrankError: If the optimizer does not hold the weights, or there is nothing to compress.
        """
        return AttachedADMM(self, model, optimizer)
