"""The contract of an attack: inputs change inside ball and box, everything else is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from ironrank.attacks.losses import LOSSES, Aim
from ironrank.attacks.passes import PRECISIONS, Loss, Measure, begun
from ironrank.attacks.threat import NORMS
from ironrank.errors import IronrankError
from ironrank.layers.frozen import frozen
from ironrank.settings import Settings, setting

TOLERANCE = 1e-6  # pixels may miss the box by rounding


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

    def inside(self, norm: str, eps: float) -> Self:
        """Return the same attack in another ball; what is measured in eps changes with it.

        Args:
            norm: Norm of the ball.
            eps: Its radius, pixel units.

        Returns:
            The attack.
        """
        same = norm == self.norm and self.eps and eps
        return replace(self.scaled(eps / self.eps) if same else self, norm=norm, eps=eps)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"{self.label().upper()} {self.norm}{self._loss_note()}"

    def _loss_note(self) -> str:
        return "" if self.loss == "ce" else f" {self.loss}"


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
