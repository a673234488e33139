"""What one pass of a model tells an attack: losses of samples, to compare points by, and gradients, to follow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ironrank.attacks.losses import Aim
from ironrank.errors import IronrankError

# logits (b, classes) and the pixels (b, ...) they belong to -> losses (b,)
Measure = Callable[[Tensor, Tensor], Tensor]
PRECISIONS = ("float32", "bfloat16")
NO_GRADIENT = (
    "attack on a model without a gradient at its pixels: logits that autograd can follow are needed; "
    "remove no_grad, detach or rounding from the model"
)


class Seen(NamedTuple):
    """What one pass of the model tells about a point; all of it detached.

    Attributes:
        logits: Scores (b, classes), float32 or better.
        losses: What is climbed (b,).
        gradient: Of the losses in the pixels (b, ...), finite; None where it was not asked for.
    """

    logits: Tensor
    losses: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """One loss per sample, as a function of pixels (b, ...): in full where points are compared, fast where they move.

    Attributes:
        model: Maps pixels (b, ...) to logits (b, classes).
        measure: Maps logits and pixels to losses (b,).
        precision: Of the gradient steps; None for that of the surrounding autocast, in which points are compared too.
    """

    model: Callable[[Tensor], Tensor]
    measure: Measure
    precision: str | None = None

    def __call__(self, point: Tensor) -> Tensor:
        """Return the losses (b,) at these pixels, to compare points by."""
        return self._at(point, self.exact)

    def rough(self, point: Tensor) -> Tensor:
        """Return the losses (b,) at these pixels, to follow their gradient."""
        return self._at(point, self.precision)

    @property
    def compares_apart(self) -> bool:
        """Whether the losses met on the way are too rough to compare points by."""
        return self.precision == "bfloat16"

    @property
    def aim(self) -> Aim | None:
        """The classes that the measure is about; None where it is any other function."""
        return self.measure if isinstance(self.measure, Aim) else None

    def seen(self, point: Tensor, gradient: bool = True) -> Seen:
        """Return what a pass at these pixels (b, ...) tells; the precision is that of the steps.

        A gradient that is not a number counts as zero, so that one bad pixel does not end a search.

        Args:
            point: Pixels (b, ...).
            gradient: Whether to compute the gradient.

        Returns:
            Logits, losses and gradients.

        Raises:
            IronrankError: If no gradient reaches the pixels.
        """
        point = point.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient), autocast_as(self.precision, point.device):
            logits = self.logits(point, self.precision)
            losses = self.measure(logits, point)
        found = torch.nan_to_num(_gradient(losses, point)) if gradient else None
        return Seen(logits.detach(), losses.detach(), found)

    def looked(self, point: Tensor) -> Seen:
        """Return logits and losses at these pixels, to compare points by."""
        with torch.no_grad(), autocast_as(self.exact, point.device):
            logits = self.logits(point, self.exact)
            return Seen(logits, self.measure(logits, point))

    def take(self, rows: Tensor) -> Loss:
        """Return the loss of the samples at ``rows`` (int64).

        A measure that is no `Aim` belongs to the whole batch; none of its samples ever counts as fooled and leaves.
        """
        return self if self.aim is None else replace(self, measure=self.aim.take(rows))

    @property
    def exact(self) -> str | None:
        """The precision in which points are compared."""
        return None if self.precision is None else "float32"

    def logits(self, point: Tensor, precision: str | None) -> Tensor:
        """Return the logits (b, classes) at these pixels, in float32 or better."""
        with autocast_as(precision, point.device):
            logits = self.model(point)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _at(self, point: Tensor, precision: str | None) -> Tensor:
        with autocast_as(precision, point.device):  # the measure may hold a net of its own, such as a teacher
            return self.measure(self.logits(point, precision), point)


def autocast_as(precision: str | None, device: torch.device) -> AbstractContextManager:
    """Return the context in which a forward pass runs at this precision; None keeps what surrounds it."""
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def loss_and_gradient(loss: Loss, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return rough losses and their gradients; the sum keeps samples apart, the parameters get no gradient.

    Args:
        loss: Maps pixels (b, ...) to one loss per sample (b,).
        point: Pixels (b, ...).

    Returns:
        Losses (b,), detached, and gradients (b, ...).

    Raises:
        IronrankError: If no gradient reaches the pixels.
    """
    point = point.detach().requires_grad_()
    losses = loss.rough(point)
    return losses.detach(), _gradient(losses, point)


def begun(loss: Loss, x: Tensor) -> Loss:
    """Return the loss of a search that begins at these pixels: where it needs a scale, that is settled here."""
    if loss.aim is None:
        return loss
    with torch.no_grad():
        return replace(loss, measure=loss.aim.begun(lambda: loss.logits(x, loss.exact)))


def _gradient(losses: Tensor, point: Tensor) -> Tensor:
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
        if gradient is not None:
            return gradient
    raise IronrankError(NO_GRADIENT)
