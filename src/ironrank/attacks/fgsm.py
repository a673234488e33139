"""The fast gradient sign method: one step. FGSM goes as far as the ball allows, N-FGSM farther.

Source: Goodfellow et al. 2015; FGSM-RS: Wong, Rice, Kolter 2020; N-FGSM: de Jorge et al. 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.passes import Loss, loss_and_gradient
from ironrank.attacks.threat import project, random_start, steepest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    r"""The fast gradient sign method, one step: :math:`x' = P(x_0 + \alpha \epsilon \, d)`.

    :math:`d` is the steepest direction at the start :math:`x_0`; :math:`P` projects on ball and box. FGSM-RS is
    ``start=1, alpha=1.25``. The point is returned as it is: where the loss bends within eps, it can be lower than at
    ``x``. On a model that is linear in its pixels, a step from ``x`` never lowers the loss.

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

    @property
    def leaves_x_first(self) -> bool:
        """Whether there is a random start."""
        return self.start > 0

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


@dataclass(frozen=True, kw_only=True)
class FGSMRS(FGSM):
    """FGSM from a random point of the ball, with a step of 1.25 eps, projected; for training.

    Example:
        >>> FGSMRS().describe()
        'FGSM-RS Linf alpha=1.25'
    """

    name = "fgsm-rs"
    start: float = setting(1.0, "radius of the random start, in units of eps", ge=0, le=1, paper="1")
    alpha: float = setting(1.25, "step size, in units of eps", gt=0, paper="1.25")


@dataclass(frozen=True, kw_only=True)
class NFGSM(Attack):
    r"""N-FGSM, for training only: noise beyond the ball, one step from there, and no projection on the ball.

    .. math:: x_0 = \mathrm{box}(x + \eta), \quad \eta \sim U(-k \epsilon, k \epsilon), \qquad
        x' = \mathrm{box}(x_0 + \alpha \epsilon \, d)

    By design the result lies up to :math:`(k + \alpha) \epsilon` from x, its `radius`, so what a model withstands here
    says nothing about eps. The noise itself is cut at the box, as in the authors' code. For L2, which the paper does
    not have, the noise is uniform in the ball of radius k eps.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = NFGSM(eps=0.25, noise=0)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.7500, 0.2500]])
        >>> NFGSM(eps=0.1).radius
        0.30000000000000004
    """

    name = "n-fgsm"
    noise: float = setting(2.0, "radius k of the noise, in units of eps", ge=0, paper="2")
    alpha: float = setting(1.0, "step size, in units of eps", gt=0, paper="1")

    @property
    def radius(self) -> float:
        """(noise + alpha) eps: this attack leaves the ball of radius eps."""
        return (self.noise + self.alpha) * self.eps

    @property
    def leaves_x_first(self) -> bool:
        """Whether there is noise."""
        return self.noise > 0

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the point after noise and step; see `Attack.perturb`."""
        point = random_start(x, self.noise * self.eps, self.norm, generator) if self.noise else x
        _, gradient = loss_and_gradient(loss, point)
        return (point + self.alpha * self.eps * steepest(gradient, self.norm)).clamp(0, 1)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"N-FGSM {self.norm}{self._loss_note()} k={self.noise:g}"
