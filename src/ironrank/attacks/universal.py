r"""A universal perturbation: one change for all images, found on some and judged on others.

An attacker who cannot see the image has to make do with one :math:`\delta`, added to every image. Where it fools a net
on images that it was not made on, the net has directions that matter more than what is in the picture.

The images come in a random order, batch by batch, and after each batch

.. math:: \delta \leftarrow \text{ball}_\epsilon \big(\delta
    + \alpha \, s(\textstyle\sum_i \nabla f(\text{box}(x_i + \delta), y_i)) \big)

with s the steepest direction. Source: sign-gradient ascent on all images at once, as in Shafahi et al., "Universal
adversarial training", AAAI 2020, and before that Moosavi-Dezfooli et al. 2017; known from summaries. That the loss is
the margin, cut off above zero (images that are fooled pull no longer), and that the best change is kept are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ironrank.attacks.base import check_batch, private_generator, under_attack
from ironrank.attacks.losses import LOSSES, Aim, predicts
from ironrank.attacks.passes import Loss, begun, loss_and_gradient
from ironrank.attacks.threat import NORMS, shorten, steepest
from ironrank.data import Images
from ironrank.settings import Settings, setting

Model = Callable[[Tensor], Tensor]
CHECKED = 10  # steps after which the change is tried on all images


class UniversalResult(NamedTuple):
    """One change, and what it does to images that it was not made on.

    Attributes:
        perturbation: The change (c, h, w), pixel units; images are clamped to [0, 1] after it is added.
        survivors: Which images of the second set are right with and without it, bool (n,), on the CPU.
        right: Which are right without it, bool (n,).
    """

    perturbation: Tensor
    survivors: Tensor
    right: Tensor


@dataclass(frozen=True, kw_only=True)
class Universal(Settings):
    """How a universal perturbation is made.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
        >>> x = torch.tensor([[0.5, 0.4], [0.7, 0.5]])
        >>> made = Universal(eps=0.1).perturbation(lambda x: -x @ weight.T, x, torch.tensor([0, 0]))
        >>> made  # lowers x_0 and raises x_1, on both
        tensor([-0.1000,  0.1000])
    """

    name = "universal"
    norm: str = setting("Linf", "norm that measures the change", choices=NORMS)
    eps: float = setting(8 / 255, "largest change in that norm, pixel units", ge=0)
    loss: str = setting("margin", "what is driven up, on average over the images", choices=tuple(LOSSES))
    steps: int = setting(100, "number of steps, each on one batch", ge=1)
    batch_size: int = setting(100, "number of images for each step", ge=1)
    step_size: float = setting(0.1, "first length of a step, in units of eps; it falls to a tenth", gt=0)
    enough: float = setting(1.0, "margin from which on a fooled image pulls no longer, in logits", ge=0)

    def perturbation(
        self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Make one change for all images.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes).
            x: Pixels (n, ...) in [0, 1].
            y: True classes (n,), int64.
            generator: Source of randomness, one number is drawn; by default torch's global one.

        Returns:
            The change (...) of length at most eps, of those tried the one that fools the model on most of these images.
        """
        check_batch(x, y)
        private = private_generator(generator, x.device)
        best = change = torch.zeros_like(x[:1])
        if self.eps == 0 or len(x) == 0:
            return best[0]
        with under_attack(model):
            fewest, order = len(x), torch.empty(0, dtype=torch.int64)
            for k in range(self.steps):
                if len(order) == 0:
                    order = torch.randperm(len(x), generator=private, device=x.device)
                rows, order = order[: self.batch_size], order[self.batch_size :]
                length = self.eps * self.step_size * (1 - 0.9 * k / self.steps)
                change = self._stepped(model, x[rows], y[rows], change, length)
                if (k + 1) % CHECKED == 0 or k + 1 == self.steps:
                    left = int(right_under(model, x, y, change).sum())
                    best, fewest = (change, left) if left <= fewest else (best, fewest)
        return best[0]

    def _stepped(self, model: Model, x: Tensor, y: Tensor, change: Tensor, length: float) -> Tensor:
        """Return the change (1, ...) after one step on one batch."""
        point = (x + change).clamp(0, 1)
        loss = begun(Loss(model, Aim(self.loss, y)), point)
        _, gradient = loss_and_gradient(Loss(model, self._capped(loss.measure)), point)
        pull = gradient.nan_to_num().sum(0, keepdim=True)
        return shorten(change + length * steepest(pull, self.norm), self.eps, self.norm)

    def _capped(self, measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        if self.loss != "margin":
            return measure
        return lambda logits, point: measure(logits, point).clamp_max(self.enough)


@torch.no_grad()
def right_under(model: Model, x: Tensor, y: Tensor, change: Tensor, batch_size: int = 500) -> Tensor:
    """Return which images the model gets right with this change.

    Args:
        model: Maps pixels (b, ...) to logits (b, classes).
        x: Pixels (n, ...) in [0, 1].
        y: True classes (n,).
        change: (1, ...), pixel units.
        batch_size: Images at a time.

    Returns:
        bool (n,).
    """
    parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
    return torch.cat([predicts(model((part + change).clamp(0, 1)), classes) for part, classes in parts])


def universal(
    model: Model, made_on: Images, judged_on: Images, settings: Universal | None = None, *, seed: int = 0
) -> UniversalResult:
    """Make a universal perturbation on some images and judge it on others.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        made_on: Images to make it on, such as training images.
        judged_on: Other images.
        settings: How it is made; by default `Universal()`.
        seed: Seed of the order of the images.

    Returns:
        The change, and which of the other images survive it.
    """
    settings = settings or Universal()
    generator = torch.Generator().manual_seed(seed)
    x, other = (images.pixels(torch.arange(len(images))) for images in (made_on, judged_on))
    change = settings.perturbation(model, x, made_on.y, generator=generator)
    with under_attack(model):
        right, still = (
            right_under(model, other, judged_on.y, d[None]) for d in (torch.zeros_like(change), change)
        )
    return UniversalResult(change, (right & still).cpu(), right.cpu())
