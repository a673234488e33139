"""Projected gradient ascent: many short steps, each brought back into ball and box.

Source: Madry et al. 2018, with the step size 2.5 eps / steps of their study over eps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironrank.attacks.base import Attack, Loss, loss_and_gradient
from ironrank.attacks.threat import project, random_start, steepest
from ironrank.errors import IronrankError
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    r"""Repeat :math:`x_{k+1} = P(x_k + \alpha d_k)`, :math:`d_k` the steepest direction at :math:`x_k`.

    :math:`P` projects on ball and box. With ``keep="best"`` each sample keeps the point of highest loss among
    ``x``, all iterates and all restarts, so its loss is never lower than at ``x``. That costs up to two
    forward passes more than ``keep="last"``, the last iterate of Madry et al., which suits training. With
    ``precision="bfloat16"`` the gradients are rough, but iterates are still compared in float32: one forward pass more
    for each step.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = PGD(eps=0.25, steps=20, restarts=5)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.7500, 0.2500]])
        >>> attack.describe()
        'PGD-20 x5 Linf'
    """

    name = "pgd"
    steps: int = setting(20, "number of gradient steps", ge=1)
    step_size: float | None = setting(None, "length of a step, pixel units; None is 2.5 * eps / steps", gt=0)
    restarts: int = setting(1, "number of random starts; each sample keeps its worst", ge=1)
    random_start: bool = setting(True, "start from a random point of the ball, not from x")
    keep: str = setting("best", "iterate that is returned", choices=("best", "last"))

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is out of bounds, or the restarts would all be the same or go unused.
        """
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise IronrankError(
                f"pgd.restarts={self.restarts} without random_start: all would be equal; use restarts=1"
            )
        if self.restarts > 1 and self.keep == "last":
            raise IronrankError(f"pgd.restarts={self.restarts} with keep='last': restarts need keep='best'")

    @property
    def gradient_steps(self) -> int:
        """The number of steps."""
        return self.steps

    @property
    def leaves_x_first(self) -> bool:
        """Whether there is a random start."""
        return self.random_start

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the climbs from all starts reach; see `Attack.perturb`."""
        point, highest = x, _Highest(x) if self.keep == "best" else None
        if highest and self.random_start:
            highest.look(x, loss)
        for _ in range(self.restarts):
            point = random_start(x, self.eps, self.norm, generator) if self.random_start else x
            for _ in range(self.steps):
                here, (losses, gradient) = point, loss_and_gradient(loss, point)
                if highest and loss.compares_apart:
                    highest.look(here, loss)
                elif highest:
                    highest.offer(here, losses)
                point = project(here + self._length() * steepest(gradient, self.norm), x, self.eps, self.norm)
            if highest:
                highest.look(point, loss)
        return highest.point if highest else point

    def _length(self) -> float:
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        restarts = "" if self.restarts == 1 else f" x{self.restarts}"
        return f"PGD-{self.steps}{restarts} {self.norm}{self._loss_note()}"


def stronger(attack: Attack) -> PGD:
    """Return the next attack that training goes on with where it learned to fool this one.

    Args:
        attack: Any attack.

    Returns:
        PGD with two steps for an attack of one step, and with twice the steps for PGD; ball, loss, precision stay.

    Example:
        >>> from ironrank.attacks.fgsm import FGSM
        >>> stronger(FGSM(eps=0.1)).steps, stronger(stronger(FGSM(eps=0.1))).steps
        (2, 4)
    """
    if isinstance(attack, PGD):
        return replace(attack, steps=2 * attack.steps)
    return PGD(
        norm=attack.norm, eps=attack.eps, loss=attack.loss, precision=attack.precision, steps=2, keep="last"
    )


class _Highest:
    """The point of highest loss of each sample so far; a loss that is not a number never wins."""

    def __init__(self, x: Tensor) -> None:
        self.point = x
        self.losses = x.new_full(x.shape[:1], -torch.inf)

    @torch.no_grad()
    def look(self, point: Tensor, loss: Loss) -> None:
        self.offer(point, loss(point))

    def offer(self, point: Tensor, losses: Tensor) -> None:
        better = losses > self.losses
        self.point = torch.where(better.view(-1, *[1] * (point.dim() - 1)), point, self.point)
        self.losses = torch.where(better, losses.to(self.losses.dtype), self.losses)
