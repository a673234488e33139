"""Projected gradient ascent: many short steps, each brought back into ball and box.

Source: Madry et al. 2018, with the step size 2.5 eps / steps of their study over eps. Runs towards classes, one after
the other, are as in the targeted attacks of Croce and Hein 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.passes import Loss, loss_and_gradient
from ironrank.attacks.search import Highest, goals, of_rows
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

    With ``targets=k`` there are k runs instead of one, each towards one wrong class, the likeliest at ``x`` first;
    points are compared by the untargeted loss all the same. With ``stop`` a sample keeps the first point at which it is
    fooled and costs nothing more: the way to judge a model, where it only matters whether there is such a point.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = PGD(eps=0.25, steps=20, restarts=5)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.7500, 0.2500]])
        >>> attack.describe(), PGD(loss="dlr", targets=9, stop=True).describe()
        ('PGD-20 x5 Linf', 'PGD-20 Linf dlr targets=9')
    """

    name = "pgd"
    steps: int = setting(20, "number of gradient steps", ge=1)
    step_size: float | None = setting(None, "length of a step, pixel units; None is 2.5 * eps / steps", gt=0)
    restarts: int = setting(1, "number of random starts; each sample keeps its worst", ge=1)
    random_start: bool = setting(True, "start from a random point of the ball, not from x")
    keep: str = setting("best", "iterate that is returned", choices=("best", "last"))
    targets: int = setting(0, "number of wrong classes to run towards; 0 runs away from the true one", ge=0)
    stop: bool = setting(False, "whether a sample stops where it is first fooled")

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
        several = {"restarts": self.restarts > 1, "targets": self.targets > 0, "stop": self.stop}
        unused = [key for key, is_set in several.items() if is_set]
        if unused and self.keep == "last":
            raise IronrankError(
                f"pgd.{unused[0]}={getattr(self, unused[0])} with keep='last': {unused[0]} needs keep='best'"
            )

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
        if self.keep == "last":
            return self._last(loss, self.start(x, generator), x)
        highest, logits = Highest(x, loss, self.stop), x
        if self.random_start or self.targets or self.stop:
            logits = highest.look(x, highest.rows)
        for goal in goals(loss, logits, self.targets):
            for _ in range(self.restarts):
                self._climb(goal, self.start(x, generator), x, highest)
        return highest.point

    def _climb(self, goal: Loss, place: Tensor, x: Tensor, highest: Highest) -> None:
        """Climb from a start (b, ...) with the samples that are still going, and tell what is met."""
        rows = highest.rows
        place = of_rows(place, rows)
        for _ in range(self.steps):
            if len(rows) == 0:
                return
            gradient = highest.visit(goal, self.pixels(place, of_rows(x, rows)), rows).gradient
            assert gradient is not None
            staying = highest.staying(rows)
            if staying is not None:
                rows, place, gradient = rows[staying], place[staying], gradient[staying]
            place = self.moved(place, gradient, of_rows(x, rows))
        if len(rows):
            highest.look(self.pixels(place, of_rows(x, rows)), rows)

    def _last(self, loss: Loss, place: Tensor, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            _, gradient = loss_and_gradient(loss, self.pixels(place, x))
            place = self.moved(place, gradient, x)
        return self.pixels(place, x)

    @property
    def length(self) -> float:
        """Length of a step, pixel units."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return where a climb begins (b, ...): pixels, or what `pixels` makes pixels of."""
        return random_start(x, self.eps, self.norm, generator) if self.random_start else x

    def moved(self, place: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """Return the place (b, ...) after a step along the gradient at its pixels."""
        return project(place + self.length * steepest(gradient, self.norm), x, self.eps, self.norm)

    def pixels(self, place: Tensor, x: Tensor) -> Tensor:
        """Return the pixels (b, ...) of a place; a subclass may keep its places in another form."""
        return place

    def scaled(self, share: float) -> Self:
        """Return the same attack in a smaller ball, with steps as much smaller; see `Attack.scaled`."""
        step = None if self.step_size is None else share * self.step_size
        return replace(self, eps=share * self.eps, step_size=step)

    def inside(self, norm: str, eps: float) -> Self:
        """Return the same attack in another ball, in another norm with steps of default length; see `Attack.inside`."""
        moved = super().inside(norm, eps)
        return moved if norm == self.norm and self.eps and eps else replace(moved, step_size=None)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        restarts = "" if self.restarts == 1 else f" x{self.restarts}"
        targets = f" targets={self.targets}" if self.targets else ""
        return f"PGD-{self.steps}{restarts} {self.norm}{self._loss_note()}{targets}"


def stronger(attack: Attack) -> PGD:
    """Return the next attack that training goes on with where it learned to fool this one.

    Args:
        attack: Any attack.

    Returns:
        PGD of twice the steps; for an attack of another kind a new one, and ball, loss, precision stay.

    Example:
        >>> from ironrank.attacks.fgsm import FGSM
        >>> stronger(FGSM(eps=0.1)).steps, stronger(stronger(FGSM(eps=0.1))).steps
        (2, 4)
    """
    if isinstance(attack, PGD):
        return replace(attack, steps=2 * attack.steps)
    same = {name: getattr(attack, name) for name in ("norm", "eps", "loss", "precision")}
    return PGD(**same, steps=2 * max(1, attack.gradient_steps), keep="last")
