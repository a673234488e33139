r"""Auto-PGD: gradient ascent with momentum whose step size halves where it stops paying.

Source: Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020. The formulas are as we know them from the paper (algorithm 1); its wording was not at hand.

    symbol in the paper   name here    meaning
    eta                   step         step size, one for each sample, 2 eps at first
    alpha                 momentum     share of the new direction, 0.75
    rho                   rho          share of rising steps below which a sample halves its step, 0.75
    w_0, w_1, ...         checkpoints  iterations at which the step size is looked at

One step, :math:`P` the projection and :math:`s` the steepest direction:

.. math::
    z = P(x_k + \eta s(\nabla f(x_k))), \qquad x_{k+1} = P(x_k + \alpha (z - x_k) + (1 - \alpha) (x_k - x_{k-1}))

At a checkpoint a sample halves its step and goes back to its best point if fewer than :math:`\rho` of the steps since
the last checkpoint raised the loss, or if neither step size nor best loss have changed since the last checkpoint.

Our deviations: a sample that is fooled leaves at once (it is fooled either way), and the start is uniform in the ball,
not stretched to its surface. `pyautoattack` rounds the lengths between checkpoints down, the paper the checkpoints
up, which is the same at 100 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.passes import Loss, Seen
from ironrank.attacks.search import Highest, goals, of_rows
from ironrank.attacks.threat import per_sample, project, random_start, steepest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD; ``loss="ce"``, ``loss="dlr"``, and ``loss="dlr", targets=9`` are the three of AutoAttack.

    Each sample keeps the first point that fools the model, else the point of highest untargeted loss, ``x`` among them.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = APGD(eps=0.25, stop=False)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor([[0.7500, 0.2500]])
        >>> APGD(loss="dlr", targets=9).describe()
        'APGD-100 Linf dlr targets=9'
    """

    name = "apgd"
    steps: int = setting(100, "number of gradient steps", ge=1, paper="100")
    restarts: int = setting(1, "number of random starts; each sample keeps its worst", ge=1, paper="1 or 5")
    targets: int = setting(
        0, "number of wrong classes to run towards; 0 runs away from the true one", ge=0, paper="0 or 9"
    )
    rho: float = setting(
        0.75, "share of rising steps below which the step is halved", ge=0, le=1, paper="0.75"
    )
    momentum: float = setting(0.75, "share of the new direction in a step", gt=0, le=1, paper="0.75")
    stop: bool = setting(True, "whether a sample stops where it is first fooled")

    @property
    def gradient_steps(self) -> int:
        """The number of steps."""
        return self.steps

    @property
    def leaves_x_first(self) -> bool:
        """Always: the start is random."""
        return True

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the climbs from all starts reach; see `Attack.perturb`."""
        highest = Highest(x, loss, self.stop)
        logits = highest.look(x, highest.rows)
        for goal in goals(loss, logits, self.targets):
            for _ in range(self.restarts):
                start = random_start(x, self.eps, self.norm, generator)
                if len(highest.rows):
                    self.climb(goal, start, x, highest)
        return highest.point

    def climb(self, goal: Loss, start: Tensor, x: Tensor, highest: Highest) -> None:
        """Climb from one start with the samples that are still going.

        Args:
            goal: What is climbed.
            start: Pixels (b, ...) inside ball and box.
            x: Pixels (b, ...), the centre.
            highest: Is told every point.
        """
        rows = highest.rows
        seen = highest.visit(goal, of_rows(start, rows), rows)
        path = _Path.begun(rows, of_rows(x, rows), of_rows(start, rows), seen, 2 * self.eps)
        looks = checkpoints(self.steps)
        for k in range(1, self.steps + 1):
            path = path.only(highest.staying(path.rows))
            if len(path.rows) == 0:
                return
            path.move(1.0 if k == 1 else self.momentum, self.eps, self.norm)
            path.note(highest.visit(goal, path.point, path.rows, gradient=k < self.steps))
            if k in looks:
                path.adapt(self.rho * looks[k])

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        restarts = "" if self.restarts == 1 else f" x{self.restarts}"
        targets = f" targets={self.targets}" if self.targets else ""
        return f"APGD-{self.steps}{restarts} {self.norm}{self._loss_note()}{targets}"


def checkpoints(steps: int) -> dict[int, int]:
    r"""Return where the step size is looked at, and how many steps after the last time.

    .. math:: w_j = \lceil p_j N \rceil, \quad p_0 = 0, \ p_1 = 0.22,
        \ p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03, 0.06)

    Args:
        steps: Number of steps N.

    Returns:
        Iteration -> steps since the checkpoint before.

    Example:
        >>> checkpoints(100)
        {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    """
    found, last, share, stride = {}, 0, 0.22, 0.22
    while share <= 1:
        here = math.ceil(share * steps - 1e-9)  # 0.57 * 100 is a little below 57, 0.7 * 100 may be above 70
        if here > last:
            found[here], last = here - last, here
        stride = max(stride - 0.03, 0.06)
        share += stride
    return found


@dataclass
class _Path:
    """Where each sample (k of them) is on one climb, and where it has been."""

    rows: Tensor  # its index in the batch (k,)
    x: Tensor  # centre (k, ...)
    point: Tensor
    before: Tensor  # the point one step ago
    gradient: Tensor  # at the point
    losses: Tensor  # (k,) at the point
    best_point: Tensor
    best_gradient: Tensor
    best: Tensor  # (k,) highest loss on this climb
    best_then: Tensor  # (k,) the same at the last checkpoint
    step: Tensor  # (k,) step size
    halved: Tensor  # (k,) whether the step size changed at the last checkpoint
    rises: Tensor  # (k,) steps since then that raised the loss

    @classmethod
    def begun(cls, rows: Tensor, x: Tensor, start: Tensor, seen: Seen, step: float) -> _Path:
        """Return the path of one point; as if the step had just changed, so the first checkpoint only counts rises."""
        losses, gradient = seen.losses, seen.gradient
        assert gradient is not None
        return cls(
            rows=rows, x=x, point=start, before=start, gradient=gradient, losses=losses, best_point=start,
            best_gradient=gradient, best=losses, best_then=losses, step=x.new_full(losses.shape, step),
            halved=torch.ones_like(losses, dtype=torch.bool), rises=torch.zeros_like(losses),
        )  # fmt: skip

    def only(self, staying: Tensor | None) -> _Path:
        """Return the path of the samples that stay, bool (k,); None where all do."""
        if staying is None:
            return self
        return replace(self, **{field.name: getattr(self, field.name)[staying] for field in fields(self)})

    def move(self, momentum: float, eps: float, norm: str) -> None:
        """Take one step; see the top of this file."""
        ahead = self.point + per_sample(self.step, self.x) * steepest(self.gradient, norm)
        z = project(ahead, self.x, eps, norm)
        blend = self.point + momentum * (z - self.point) + (1 - momentum) * (self.point - self.before)
        self.before, self.point = self.point, project(blend, self.x, eps, norm)

    def note(self, seen: Seen) -> None:
        """Take down losses and gradients at the point; the best ones are kept."""
        better = seen.losses > self.best
        self.rises = self.rises + (seen.losses > self.losses)
        self.losses = seen.losses
        self.best = torch.where(better, seen.losses, self.best)
        self.best_point = torch.where(per_sample(better, self.x), self.point, self.best_point)
        if seen.gradient is not None:
            self.gradient = seen.gradient
            self.best_gradient = torch.where(per_sample(better, self.x), seen.gradient, self.best_gradient)

    def adapt(self, enough: float) -> None:
        """Halve the step of the samples that rose too seldom or are stuck, and put them back to their best point."""
        self.halved = (self.rises < enough) | (~self.halved & (self.best <= self.best_then))
        back = per_sample(self.halved, self.x)
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.point = torch.where(back, self.best_point, self.point)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.best_then, self.rises = self.best, torch.zeros_like(self.rises)
