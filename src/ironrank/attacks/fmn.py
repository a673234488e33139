r"""FMN, fast minimum norm: how near is the nearest point that fools the model, for each sample.

One run gives the whole curve of accuracy against eps, where other attacks need a run for each eps.

Source: Pintor, Roli, Brendel, Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints",
NeurIPS 2021 (algorithm 1, as we know it; the wording was not at hand).

    symbol in the paper   name here   meaning
    L                     lead        margin of the best wrong class; positive where the model is fooled
    eps_k                 radius      radius of the ball that the change is cut to at step k, one for each sample
    alpha_k               pull        length of a gradient step in units of the radius, falling as a cosine
    gamma_k               swing       share by which the radius grows or shrinks, falling as a cosine

One step from the change :math:`\delta`, with the gradient g of L, q the dual norm and s the steepest direction:

.. math:: \epsilon_k = \begin{cases}
    \min((1 - \gamma_k) \epsilon_{k-1}, \|\delta^*\|) & \text{fooled here} \\
    (1 + \gamma_k) \epsilon_{k-1} & \text{fooled before} \\
    (1 + \gamma_k) \max(\|\delta\| - L / \|g\|_q, \epsilon_{k-1}) & \text{never fooled} \end{cases}
    \qquad \delta \leftarrow \text{box}(\text{ball}_{\epsilon_k}(\delta + \alpha_k \epsilon_k s(g)))

:math:`\delta^*` is the smallest fooling change so far. Deviations, all ours. The paper's step is
:math:`\alpha_k g / \|g\|_2` for every norm: on the adversarially trained MNIST net of the tests it left 92 % of 40
images right at Linf 0.4, where the step above leaves none. Pixels that the box holds back do not count in g. Before the
model is first fooled the radius never shrinks, and is a little longer than the boundary of a linear model is far. No
radius is larger than the box. At the end :math:`\delta^*` is shortened along its line by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironrank.attacks.base import Attack, check_batch, private_generator, under_attack
from ironrank.attacks.losses import Aim
from ironrank.attacks.passes import Loss
from ironrank.attacks.search import Highest, classes_of, of_rows
from ironrank.attacks.threat import length, per_sample, project, shorten, steepest
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """The nearest fooling point; as an attack within eps, a sample leaves as soon as one is found there.

    Where none is found, it is the last point, brought back to eps, or ``x`` if that has the higher loss. The search
    follows the margin whatever ``loss`` is, which only compares points.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> near = FMN(steps=50).distances(lambda x: x @ weight.T, torch.tensor([[0.4, 0.6]]), torch.tensor([0]))
        >>> [round(value, 2) for value in near.tolist()]  # x_0 has to reach x_1, each moves half of 0.2
        [0.1]
        >>> FMN().describe()
        'FMN-100 Linf'
    """

    name = "fmn"
    steps: int = setting(100, "number of gradient steps", ge=1, paper="1000")
    pull: float = setting(
        1.0, "first length of a gradient step, in units of the radius; the last is 1/100", gt=0
    )
    swing: float = setting(
        0.05, "first share by which a radius grows or shrinks; the last is 0.001", gt=0, lt=1, paper="0.05"
    )
    halvings: int = setting(6, "number of bisections at the end", ge=0, paper="0")

    @property
    def gradient_steps(self) -> int:
        """The number of steps."""
        return self.steps

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a fooling point within eps, where there is one; see `Attack.perturb`."""
        classes_of(loss, "fmn")
        highest = Highest(x, loss, stop=True)
        highest.look(x, highest.rows)
        rows = highest.rows
        if len(rows):
            near, last, found = self.search(loss.take(rows), x[rows], enough=self.eps * (1 - 1e-6))
            point = torch.where(per_sample(found.isfinite(), x), near, last)
            highest.look(project(point, x[rows], self.eps, self.norm), rows)
        return highest.point

    def distances(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return how far the nearest fooling point is that the search meets; eps plays no part.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes).
            x: Pixels (b, ...) in [0, 1].
            y: True classes (b,), int64.
            generator: As for an attack; nothing here is random.

        Returns:
            Lengths (b,) of changes that do fool the model, pixel units: upper bounds of the distance to the boundary. 0
            where the model is wrong at ``x``, infinity where no point was found.
        """
        check_batch(x, y)
        private_generator(generator, x.device)
        if len(x) == 0:
            return x.new_zeros(0)
        with under_attack(model):
            x, y = x.detach().clone(), y.clone()
            return self.search(Loss(model, Aim("margin", y), self.precision), x)[2]

    def search(self, loss: Loss, x: Tensor, enough: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Look for the nearest fooling point of each sample.

        Args:
            loss: About classes.
            x: Pixels (b, ...).
            enough: Length that satisfies: a sample that reaches it is left alone.

        Returns:
            The nearest fooling points (b, ...), the last points (b, ...), the lengths of the former (b,); infinity
            where there is none.
        """
        loss = replace(loss, measure=Aim("margin", classes_of(loss, "fmn").y))
        state = _Nearest(x, loss, self.norm)
        rows, point, radius = state.all, x, x.new_full((len(x),), torch.inf)
        for k in range(self.steps + 1):
            seen = loss.take(rows).seen(point)
            fooled = state.met(point, rows, seen.logits)
            state.last[rows] = point
            going = state.nearest[rows] > enough
            if k == self.steps or not going.any():
                break
            assert seen.gradient is not None
            rows, point, radius, fooled, lead, gradient = (
                values[going] for values in (rows, point, radius, fooled, seen.losses, seen.gradient)
            )  # fmt: skip
            fall = (1 + math.cos(math.pi * k / self.steps)) / 2
            swing, pull = (
                end + (begin - end) * fall
                for begin, end in ((self.swing, 0.001), (self.pull, self.pull / 100))
            )
            change = point - x[rows]
            gradient = gradient * free(point, gradient)
            radius = self._radius(radius, swing, fooled, state.nearest[rows], lead, gradient, change)
            change = change + per_sample(pull * radius, x) * steepest(gradient, self.norm)
            point = (x[rows] + shorten(change, per_sample(radius, x), self.norm)).clamp(0, 1)
        state.bisect(self.halvings, enough)
        return state.point, state.last, state.nearest

    def _radius(
        self,
        radius: Tensor,
        swing: float,
        fooled: Tensor,
        nearest: Tensor,
        lead: Tensor,
        gradient: Tensor,
        change: Tensor,
    ) -> Tensor:
        """Return the next radius (k,); see the top of this file."""
        flat = gradient.flatten(1)
        slope = torch.linalg.vector_norm(flat, 1 if self.norm == "Linf" else 2, dim=1)
        widest = (
            1.0 if self.norm == "Linf" else math.sqrt(flat.shape[1])
        )  # no change is longer inside the box
        first = length(change, self.norm).flatten() - lead / slope.clamp_min(torch.finfo(slope.dtype).tiny)
        never = torch.maximum(first, radius.where(radius.isfinite(), 0.0))
        grown = torch.where(nearest.isfinite(), radius, never) * (1 + swing)
        shrunk = torch.minimum(radius * (1 - swing), nearest)
        found = torch.where(fooled, shrunk, grown).nan_to_num(nan=widest).clamp(1e-6, widest)
        return found.to(change.dtype)  # a net may answer in float64

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"FMN-{self.steps} {self.norm}{self._loss_note()}"


def free(point: Tensor, direction: Tensor) -> Tensor:
    """Return bool (b, ...): which pixels can move in this direction without leaving the box."""
    return ~((point <= 0) & (direction < 0) | (point >= 1) & (direction > 0))


class _Nearest:
    """The nearest fooling point of each sample so far."""

    def __init__(self, x: Tensor, loss: Loss, norm: str) -> None:
        self.x, self.loss, self.norm = x, loss, norm
        self.all = torch.arange(len(x), device=x.device)
        self.point, self.last = x.clone(), x.clone()
        self.nearest = x.new_full((len(x),), torch.inf)

    def met(self, point: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Take down points (k, ...) of the samples at ``rows``, and return which fool the model, bool (k,)."""
        aim = self.loss.take(rows).aim
        assert aim is not None
        if self.loss.compares_apart:
            logits = self.loss.take(rows).looked(point).logits
        fooled = aim.fooled(logits)
        far = length(point - of_rows(self.x, rows), self.norm).flatten()
        better = fooled & (far < self.nearest[rows])
        self.point[rows[better]], self.nearest[rows[better]] = point[better], far[better]
        return fooled

    def bisect(self, halvings: int, enough: float) -> None:
        """Shorten the nearest changes along their lines; what is taken down has been shown to the model."""
        rows = self.all[self.nearest.isfinite() & (self.nearest > enough)]
        if len(rows) == 0:
            return
        change = self.point[rows] - self.x[rows]
        low, high = torch.zeros_like(self.nearest[rows]), torch.ones_like(self.nearest[rows])
        for _ in range(halvings):
            middle = (low + high) / 2
            point = self.x[rows] + per_sample(middle, change) * change
            fooled = self.met(point, rows, self.loss.take(rows).looked(point).logits)
            low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
