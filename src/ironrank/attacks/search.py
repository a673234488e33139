"""What searches share: the best point of each sample so far, which samples go on, and towards which classes.

A search may work on fewer and fewer samples: one that is fooled leaves, and costs nothing more. `rows` are the indices,
in the batch, of those that go on. Random numbers are always drawn for the whole batch, so that a sample meets the same
ones whoever has left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.attacks.losses import Aim
from ironrank.attacks.passes import Loss, Seen
from ironrank.errors import IronrankError


class Highest:
    """The point of highest loss of each sample so far; a loss that is not a number never wins.

    Attributes:
        loss: What points are compared by; a search may climb another one, towards a class.
        stop: Whether a fooled sample keeps its first fooling point and leaves.
        point: The best pixels (b, ...).
        losses: Their losses (b,).
        fooled: Whether they fool the model, bool (b,); all False where the measure is not about classes.
    """

    def __init__(self, x: Tensor, loss: Loss, stop: bool = False) -> None:
        self.loss, self.stop = loss, stop
        self.point = x.clone()
        self.losses = x.new_full(x.shape[:1], -torch.inf)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def rows(self) -> Tensor:
        """Indices (k,) of the samples that go on."""
        if self.stop:
            return (~self.fooled).nonzero()[:, 0]
        return torch.arange(len(self.losses), device=self.losses.device)

    def look(self, point: Tensor, rows: Tensor) -> Tensor:
        """Compare a point without a gradient.

        Args:
            point: Pixels (k, ...) of the samples at ``rows``.
            rows: Indices (k,).

        Returns:
            The logits (k, classes) there.
        """
        seen = self.loss.take(rows).looked(point)
        self.offer(point, rows, seen.logits, seen.losses)
        return seen.logits

    def visit(self, goal: Loss, point: Tensor, rows: Tensor, gradient: bool = True) -> Seen:
        """Compare a point, and return what the goal says there.

        Args:
            goal: What is climbed, for the whole batch.
            point: Pixels (k, ...) of the samples at ``rows``.
            rows: Indices (k,).
            gradient: Whether the gradient is needed.

        Returns:
            Logits, losses and gradients of the goal.
        """
        seen = goal.take(rows).seen(point, gradient)
        if self.loss.compares_apart:
            self.look(point, rows)
        else:
            own = goal is self.loss
            losses = seen.losses if own else self.loss.take(rows).measure(seen.logits, point)
            self.offer(point, rows, seen.logits, losses)
        return seen

    def offer(self, point: Tensor, rows: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Take the points that are better than what is known.

        Args:
            point: Pixels (k, ...) of the samples at ``rows``.
            rows: Indices (k,).
            logits: Scores there (k, classes).
            losses: Losses there (k,).
        """
        aim = self.loss.take(rows).aim
        fooled = torch.zeros_like(rows, dtype=torch.bool) if aim is None else aim.fooled(logits)
        better = losses > self.losses[rows]
        if self.stop:  # cross-entropy may be lower where the model is fooled: being fooled counts first
            better = torch.where(fooled == self.fooled[rows], better, fooled)
        won = rows[better]
        self.point[won] = point.detach()[better]
        self.losses[won] = losses[better].to(self.losses.dtype)
        self.fooled[won] = fooled[better]

    def staying(self, rows: Tensor) -> Tensor | None:
        """Return bool (k,), which of the samples at ``rows`` go on; None where all do."""
        if not self.stop:
            return None
        staying = ~self.fooled[rows]
        return None if staying.all() else staying


def of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the samples at ``rows`` of a batch (b, ...); the batch itself where that is all of them."""
    return values if len(rows) == len(values) else values[rows]


def goals(loss: Loss, logits: Tensor, targets: int) -> list[Loss]:
    """Return what is climbed, one run after the other.

    Args:
        loss: The untargeted loss.
        logits: Scores (b, classes) at the images themselves.
        targets: Number of wrong classes to try, the likeliest first; 0 for the untargeted loss.

    Returns:
        One loss for each run, at most classes - 1 of them.

    Raises:
        IronrankError: If targets are asked for where no classes are attacked.
    """
    if targets == 0:
        return [loss]
    aim = classes_of(loss, "targets")
    wrong = logits.scatter(1, aim.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    count = min(targets, logits.shape[1] - 1)
    return [Loss(loss.model, aim.towards(wrong[:, k]), loss.precision) for k in range(count)]


def classes_of(loss: Loss, what: str) -> Aim:
    """Return what a loss is about, where that is classes.

    Args:
        loss: Any loss.
        what: What needs the classes, for the message.

    Returns:
        The aim.

    Raises:
        IronrankError: If it is another measure, such as that of TRADES.
    """
    if loss.aim is None:
        raise IronrankError(
            f"{what}: the attack needs true classes, but another measure is driven up here; use pgd or apgd"
        )
    return loss.aim
