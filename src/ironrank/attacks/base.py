"""The contract of an attack: inputs change inside ball and box, everything else is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ironrank.attacks.losses import LOSSES, Aim
from ironrank.attacks.threat import NORMS
from ironrank.errors import IronrankError
from ironrank.layers.frozen import frozen
from ironrank.settings import Settings, setting

TOLERANCE = 1e-6  # pixels may miss the box by rounding

Measure = Callable[
    [Tensor, Tensor], Tensor
]  # logits (b, classes) and the pixels they belong to -> losses (b,)
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
        with torch.set_grad_enabled(gradient):
            logits = self.logits(point, self.precision)
            losses = self.measure(logits, point)
        found = torch.nan_to_num(_gradient(losses, point)) if gradient else None
        return Seen(logits.detach(), losses.detach(), found)

    def looked(self, point: Tensor) -> Seen:
        """Return logits and losses at these pixels, to compare points by."""
        with torch.no_grad():
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
        return self.measure(self.logits(point, precision), point)


def autocast_as(precision: str | None, device: torch.device) -> AbstractContextManager:
    """Return the context in which a forward pass runs at this precision; None keeps what surrounds it."""
    if precision is None:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Attack(Settings):
    """A search for pixels near ``x`` that raise the model's loss; a subclass fills in `perturb`.

    The model is judged in evaluation mode, on merged weights, and no gradient of a parameter is computed. After the
    call the mode of every submodule, the batch-norm statistics and the parameters' gradients are as before. Samples
    do not influence each other.
    """

    norm: str = setting("Linf", "norm that measures the change of one sample", choices=NORMS)
    eps: float = setting(8 / 255, "largest change in that norm, pixel units", ge=0)
    loss: str = setting(
        "ce",
        "what is driven up: cross-entropy, also of rescaled logits, logit margin or DLR",
        choices=tuple(LOSSES),
    )
    precision: str | None = setting(
        None,
        "of the gradient steps, while points are compared in float32; none follows the run",
        choices=PRECISIONS,
    )

    @property
    def radius(self) -> float:
        """The largest distance from ``x`` that the result may have: eps, unless a class says otherwise."""
        return self.eps

    @property
    def gradient_steps(self) -> int:
        """Number of gradients along one climb."""
        return 1

    @property
    def leaves_x_first(self) -> bool:
        """Whether the first gradient is taken at a random point near ``x`` and not at ``x`` itself."""
        return False

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Attack a batch; one of wrong type, shape or range raises `IronrankError`.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes); a module, or any differentiable function.
            x: Pixels (b, ...) in [0, 1], float32 or float64.
            y: True classes (b,), int64.
            generator: Source of randomness, one number is drawn; by default torch's global one.

        Returns:
            Changed pixels (b, ...), type of ``x``, detached.
        """
        check_batch(x, y)
        with torch.inference_mode(False):
            y = y.clone()  # a clone, since tensors of inference mode know no gradient
        return self.maximise(model, x, Aim(self.loss, y), generator=generator)

    def maximise(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        measure: Measure,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Drive up any measure of the logits, in place of ``loss``.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes); a module, or any differentiable function.
            x: Pixels (b, ...) in [0, 1], float32 or float64.
            measure: Maps logits (b, classes), in float32 or better, and their pixels (b, ...) to losses (b,), each a
                function of its own sample only.
            generator: Source of randomness, one number is drawn; by default torch's global one.

        Returns:
            Changed pixels (b, ...), type of ``x``, detached.
        """
        private = private_generator(generator, x.device)
        if self.eps == 0 or len(x) == 0:
            return x.detach().clone()
        with under_attack(model):
            loss, x = Loss(model, measure, self.precision), x.detach().clone()
            return self.perturb(begun(loss, x), x, private).detach()

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Search; gradients are enabled and the model is in evaluation mode.

        Args:
            loss: Maps pixels (b, ...) to one loss per sample (b,).
            x: Pixels (b, ...) in [0, 1].
            generator: Source of randomness, on the device of ``x``.

        Returns:
            Pixels (b, ...) inside box and radius.
        """
        raise NotImplementedError

    def scaled(self, share: float) -> Self:
        """Return the same attack in a ball of a share of eps; what is measured in eps shrinks with it.

        Args:
            share: Above 0.

        Returns:
            The attack.
        """
        return replace(self, eps=share * self.eps)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"{self.label().upper()} {self.norm}{self._loss_note()}"

    def _loss_note(self) -> str:
        return "" if self.loss == "ce" else f" {self.loss}"


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


def check_batch(x: Tensor, y: Tensor) -> None:
    """Check pixels and classes once, at the door.

    Args:
        x: Pixels (b, ...).
        y: Classes (b,).

    Raises:
        IronrankError: If type, shape or range is wrong.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise IronrankError(
            f"attack on {x.dtype} pixels: allowed are float32 and float64 in [0, 1]; divide uint8 by 255, "
            "and use autocast for half precision"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise IronrankError(
            f"attack with classes {y.dtype} {tuple(y.shape)}: int64 of shape ({len(x)},) is needed"
        )
    if len(x) and not (x.min() >= -TOLERANCE and x.max() <= 1 + TOLERANCE):
        raise IronrankError(
            f"attack on pixels in [{x.min():g}, {x.max():g}]: allowed is [0, 1]; "
            "normalization belongs inside the model (its first layer)"
        )


def private_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return a fresh generator on ``device``, seeded with one number of the given or else the global one."""
    source = torch.device("cpu") if generator is None else generator.device
    seed = torch.randint(2**63 - 1, (), generator=generator, device=source)
    return torch.Generator(device).manual_seed(int(seed))


@contextmanager
def under_attack(model: Callable) -> Iterator[None]:
    """Let a model be searched for a while: evaluation mode, weights that stand still, gradients in pixels alone.

    Args:
        model: A module, or any other callable.

    Yields:
        Nothing.
    """
    with evaluation_mode(model), frozen(model), torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluation_mode(model: Callable) -> Iterator[None]:
    """Put every submodule into evaluation mode for a while, then each back into its own.

    Args:
        model: A module; any other callable has no mode and is left alone.

    Yields:
        Nothing.
    """
    modes = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
