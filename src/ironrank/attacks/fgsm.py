"""The fast gradient sign method: one step, as far as the ball allows.

Source: Goodfellow et al. 2015; with a random start, as FGSM-RS, Wong et al. 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks.base import Attack, Loss, loss_and_gradient
from ironrank.attacks.threat import project, random_start, steepest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    r"""One step :math:`x' = P(x_0 + \alpha \epsilon \, d)`, :math:`d` the steepest direction at :math:`x_0`.

    :math:`P` projects on ball and box. FGSM-RS is ``start=1, alpha=1.25``. The point is returned as it is:
    where the loss bends within eps, it can be lower than at ``x``. On a model that is linear in its pixels, a
    step from ``x`` never lowers the loss.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = FGSM(eps=0.25)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.7500, 0.2500]])
        >>> attack.describe()
        'FGSM Linf'
    """

    name = "fgsm"
    start: float = setting(0.0, "radius of the random start, in units of eps; 0 starts at x", ge=0, le=1)
    alpha: float = setting(1.0, "step size, in units of eps", gt=0)

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the point after the step; see `Attack.perturb`."""
        point = random_start(x, self.start * self.eps, self.norm, generator) if self.start else x
        _, gradient = loss_and_gradient(loss, point)
        return project(point + self.alpha * self.eps * steepest(gradient, self.norm), x, self.eps, self.norm)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        kind = "FGSM-RS" if self.start else "FGSM"
        step = "" if self.alpha == 1 else f" alpha={self.alpha:g}"
        return f"{kind} {self.norm}{self._loss_note()}{step}"
