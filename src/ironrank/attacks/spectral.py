r"""The spectral attack: start and search along the directions in which the model is most sensitive.

A net that is kept well conditioned is meant to have no direction that stands out. This attack asks that very question:
it looks for the leading right singular vectors of the Jacobian and searches along them first. The attack is ours.

    J     Jacobian of the centred logits at x (classes, d), one for each sample; a common shift changes no class
    A     mean of such Jacobians over points drawn from the whole box: the product of the layers, with every activation
          replaced by its mean slope; one for all samples
    V     the leading right singular vectors of J, or of A (d, k)

1. V of J and of A, by block power iteration: J v and J^T u come from automatic differentiation, J is never built.
2. Candidates: x plus and minus each direction, as long as the ball allows.
3. From the best candidate of each kind, ascent along the gradient's projection on the span of V, then along all of it.

A does not depend on the images under attack, so no sample depends on its neighbours. A sample that is fooled leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.passes import NO_GRADIENT, Loss
from ironrank.attacks.search import Highest, of_rows
from ironrank.attacks.threat import length, per_sample, project, steepest
from ironrank.errors import IronrankError
from ironrank.settings import setting

PROBES = 8  # points of the box over which the mean Jacobian is taken


@dataclass(frozen=True, kw_only=True)
class SpectralAttack(Attack):
    """Ascent that begins in the span of the leading singular directions; see the top of this file.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> attack = SpectralAttack(eps=0.25)
        >>> attack(lambda x: x @ weight.T, torch.tensor([[0.4, 0.6]]), torch.tensor([0])).argmax(1)
        tensor([0])
        >>> attack.describe()
        'spectral-20 k=4 Linf'
    """

    name = "spectral"
    directions: int = setting(4, "number k of leading directions, of each kind", ge=1)
    rounds: int = setting(3, "number of rounds of power iteration", ge=1)
    steps: int = setting(20, "number of gradient steps from each start, half of them inside the span", ge=1)
    stop: bool = setting(True, "whether a sample stops where it is first fooled")

    @property
    def gradient_steps(self) -> int:
        """The number of steps from one start."""
        return self.steps

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the climbs from the best candidates reach; see `Attack.perturb`."""
        highest = Highest(x, loss, self.stop)
        highest.look(x, highest.rows)
        logits = lambda point: loss.logits(point, loss.exact)  # noqa: E731
        probes = torch.rand((PROBES, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        own = leading(logits, x, self.directions, self.rounds, generator)
        shared = leading(logits, probes, self.directions, self.rounds, generator, mean=True)
        for span in (own, shared.expand(len(x), *shared.shape[1:])):
            rows = highest.rows
            if len(rows):
                start = self._start(loss, of_rows(x, rows), of_rows(span, rows), rows, highest)
                self._climb(loss, start, x, span, rows, highest)
        return highest.point

    def _start(self, loss: Loss, here: Tensor, span: Tensor, rows: Tensor, highest: Highest) -> Tensor:
        """Return the best candidate of each sample at ``rows``, whose pixels are ``here`` (k, ...), and tell all."""
        best, point = here.new_full((len(rows),), -torch.inf), here
        for direction in span.unbind(2):
            for sign in (1, -1):
                change = sign * self.eps * steepest(direction.view_as(here), self.norm)
                tried = project(here + change, here, self.eps, self.norm)
                seen = loss.take(rows).looked(tried)
                highest.offer(tried, rows, seen.logits, seen.losses)
                better = seen.losses > best
                best = torch.where(better, seen.losses, best)
                point = torch.where(per_sample(better, here), tried, point)
        return point

    def _climb(
        self, loss: Loss, point: Tensor, x: Tensor, span: Tensor, rows: Tensor, highest: Highest
    ) -> None:
        """Climb from a start (k, ...), first in the span (b, d, directions), then anywhere."""
        for k in range(self.steps):
            staying = highest.staying(rows)
            if staying is not None:
                rows, point = rows[staying], point[staying]
            if len(rows) == 0:
                return
            gradient = highest.visit(loss, point, rows).gradient
            assert gradient is not None
            inside = 2 * k < self.steps
            ahead = (
                within(gradient, of_rows(span, rows), self.norm) if inside else steepest(gradient, self.norm)
            )
            size = 2.5 * self.eps / self.steps * (2 if inside else 1)
            point = project(point + size * ahead, of_rows(x, rows), self.eps, self.norm)
        highest.look(point, rows)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"spectral-{self.steps} k={self.directions} {self.norm}{self._loss_note()}"


def within(gradient: Tensor, span: Tensor, norm: str) -> Tensor:
    """Return the part of each gradient that lies in a span, of length 1.

    Args:
        gradient: Gradients (b, ...).
        span: Orthonormal directions of each sample (b, d, k).
        norm: ``Linf`` or ``L2``.

    Returns:
        Directions (b, ...); zero where nothing of a gradient lies in its span.
    """
    flat = steepest(gradient, "L2").flatten(1)[:, :, None]
    part = (span @ (span.mT @ flat)).view_as(gradient)
    return part / length(part, norm).clamp_min(torch.finfo(part.dtype).tiny)


def leading(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    count: int,
    rounds: int,
    generator: torch.Generator,
    *,
    mean: bool = False,
) -> Tensor:
    """Return the leading right singular vectors of the Jacobian of the centred logits, by block power iteration.

    Where as many directions are asked for as there are classes less one, one round is exact.

    Args:
        logits: Maps pixels (b, ...) to logits (b, classes).
        x: Pixels (b, ...).
        count: Number of directions k, cut to classes - 1 and to the number of pixels.
        rounds: Number of rounds.
        generator: Source of the first block.
        mean: Whether it is the mean Jacobian over x, one for all.

    Returns:
        Orthonormal directions (b, d, k), the leading one first; (1, d, k) for the mean.
    """
    forward, backward, classes = products(logits, x, mean)
    count = max(1, min(count, classes - 1, x[0].numel()))
    U = torch.randn((1, classes, count), generator=generator, device=x.device, dtype=x.dtype)
    U = U.expand(1 if mean else len(x), -1, -1)
    for _ in range(rounds):
        V = torch.linalg.qr(backward(U).nan_to_num()).Q
        U = forward(V).nan_to_num()
        U = U / U.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)[:, None, None]
    turn = torch.linalg.svd(U, full_matrices=False).Vh.mT  # J V = P S Q^T: the singular vectors are V Q
    return V @ turn


def products(
    logits: Callable[[Tensor], Tensor], x: Tensor, mean: bool = False
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], int]:
    """Return the Jacobian of the centred logits as two functions, from one pass of the model.

    Args:
        logits: Maps pixels (b, ...) to logits (b, classes).
        x: Pixels (b, ...).
        mean: Whether it is the mean Jacobian over x; batches of matrices then have the length 1.

    Returns:
        ``V (b, d, k) -> J V (b, classes, k)``, ``U (b, classes, k) -> J^T U (b, d, k)``, and the number of classes.

    Raises:
        IronrankError: If no gradient reaches the pixels.
    """
    x = x.detach().requires_grad_()
    z = logits(x).to(x.dtype)
    z = z - z.mean(1, keepdim=True)
    seed = torch.zeros_like(z, requires_grad=True)
    if not z.requires_grad:
        raise IronrankError(NO_GRADIENT)
    (pulled,) = torch.autograd.grad(z, x, seed, create_graph=True, allow_unused=True)
    if pulled is None:
        raise IronrankError(NO_GRADIENT)
    # what is pulled back is linear in the seed, and its gradient there is J v

    def each(values: Tensor, like: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        wide = values.expand(len(x), -1, -1)
        found = torch.stack([product(column.reshape(like.shape)).flatten(1) for column in wide.unbind(2)], 2)
        return found.mean(0, keepdim=True) if mean else found

    def forward(V: Tensor) -> Tensor:
        return each(V, x, lambda v: torch.autograd.grad(pulled, seed, v, retain_graph=True)[0])

    def backward(U: Tensor) -> Tensor:
        return each(U, z, lambda u: torch.autograd.grad(z, x, u, retain_graph=True)[0])

    return forward, backward, z.shape[1]
