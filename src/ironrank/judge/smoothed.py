r"""Gradients averaged over a neighbourhood that shrinks: for nets whose slopes at a point lead nowhere.

Ripples, steps and kinks, put there or trained, turn a slope away from where the loss rises over the length that an
attacker may go. The average over random points as far apart as that length does not see them; as the search comes
near its end, it may look closer:

.. math:: g_k = \sum_{i=1}^{4} \nabla f(x_k + r_k u_i), \quad m_k = (1 - k/K) \, m_{k-1} + g_k / \|g_k\|_1,
    \quad x_{k+1} = P(x_k + \alpha s(m_k)), \quad r_k = (1 - k/K) \, \epsilon

with :math:`u_i` random in the unit ball, s the steepest direction and P the projection. Averaging against shattered
gradients is in the spirit of Athalye, Carlini, Wagner 2018; momentum with gradients of length 1 is of Dong et al. 2018.
That both fade is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.attacks.base import Attack, Loss
from ironrank.attacks.losses import LOSSES
from ironrank.attacks.search import Highest, of_rows
from ironrank.attacks.threat import per_sample, project, steepest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class SmoothedPGD(Attack):
    """PGD from ``x`` along averaged gradients; see the top of this file.

    Each sample keeps the first point that fools the model, else the point of highest loss, ``x`` among them.

    Example:
        >>> from ironrank.attacks import PGD
        >>> ripple = lambda x: torch.stack([0 * x[:, 0], x.sum(1) + 0.03 * torch.sin(200 * x).sum(1) - 1.25], 1)
        >>> x, y = torch.full((1, 4), 0.25), torch.tensor([0])  # slopes of the ripple are up to 6 times that of the sum
        >>> seed = torch.Generator().manual_seed(0)
        >>> [bool((ripple(attack(ripple, x, y, generator=seed)).argmax(1) == y)) for attack in (
        ...     PGD(eps=0.1, loss="margin"), SmoothedPGD(eps=0.1))]
        [True, False]
    """

    name = "smoothed-pgd"
    loss: str = setting("margin", "what is driven up", choices=tuple(LOSSES))
    steps: int = setting(20, "number of steps, each 2.5 eps / steps long", ge=1)
    draws: int = setting(4, "number of gradients that are averaged", ge=1)

    @property
    def gradient_steps(self) -> int:
        """The number of steps."""
        return self.steps

    @property
    def leaves_x_first(self) -> bool:
        """Always: gradients are taken near it."""
        return True

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the best point met; see `Attack.perturb`."""
        highest = Highest(x, loss, stop=True)
        point, trail = x.clone(), torch.zeros_like(x)
        for k in range(self.steps):
            left = 1 - k / self.steps
            highest.look(of_rows(point, highest.rows), highest.rows)
            noise = self._noise(x, left * self.eps, generator)  # drawn even where nobody is left
            rows = highest.rows
            if len(rows) == 0:
                break
            gradient = self._averaged(loss.take(rows), of_rows(point, rows), noise)
            trail[rows] = left * trail[rows] + gradient
            ahead = point[rows] + 2.5 * self.eps / self.steps * steepest(trail[rows], self.norm)
            point[rows] = project(ahead, x[rows], self.eps, self.norm)
        highest.look(of_rows(point, highest.rows), highest.rows)
        return highest.point

    def _noise(self, x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
        """Return changes (draws, ...), the same for all samples."""
        like: dict[str, Any] = {"generator": generator, "device": x.device, "dtype": x.dtype}
        if self.norm == "L2":
            return radius * steepest(torch.randn((self.draws, *x.shape[1:]), **like), "L2")
        return radius * (2 * torch.rand((self.draws, *x.shape[1:]), **like) - 1)

    def _averaged(self, loss: Loss, point: Tensor, noise: Tensor) -> Tensor:
        """Return the mean of the gradients (k, ...) around a point, each sample's of mean absolute value 1."""
        total = torch.zeros_like(point)
        for change in noise:
            gradient = loss.seen((point + change).clamp(0, 1)).gradient
            assert gradient is not None
            total = total + gradient
        size = total.abs().flatten(1).mean(1).clamp_min(torch.finfo(total.dtype).tiny)
        return total / per_sample(size, total)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"smoothed PGD-{self.steps} x{self.draws} {self.norm}{self._loss_note()}"
