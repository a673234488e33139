"""Attacks of another shape, as attacks of an audit.

AutoAttack judges whole batches by itself; a universal perturbation is made on some images and judged on others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ironrank.attacks import Universal
from ironrank.attacks.base import Attack
from ironrank.attacks.losses import LOSSES
from ironrank.attacks.threat import project
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge.adapter import installed
from ironrank.judge.autoattack import SQUARE_FLAG, VERSIONS, autoattack
from ironrank.judge.samples import Samples
from ironrank.settings import setting

_GRID = 1e-3  # how far from a whole byte a pixel may be, in bytes


class Found(NamedTuple):
    """What an attack did to some images.

    Attributes:
        changed: Pixels (b, ...), inside ball and box.
        free: Which of them a gradient-free part of the attack found, bool (b,).
        flags: What the attack says about itself.
    """

    changed: Tensor
    free: Tensor
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StandardAutoAttack(Attack):
    """The standard version of AutoAttack, as `ironrank.judge.autoattack.autoattack` runs it.

    Its flag "square beats white-box" is left to the audit, which counts over all images and not batch by batch.
    """

    name = "autoattack"
    seed: int = setting(0, "seed of everything random in it")

    def found(self, model: nn.Module, samples: Samples) -> Found:
        """Run it on one batch.

        Args:
            model: Maps pixels (b, c, h, w) to logits (b, classes).
            samples: Images of whole bytes.

        Returns:
            What it did.
        """
        images = bytes_of(samples)
        assert images is not None
        result = autoattack(
            model, images, self.norm, self.eps, seed=self.seed, batch_size=max(1, len(images))
        )
        changed = project(result.adversarial.to(samples.x), samples.x, self.eps, self.norm)
        flags = tuple(flag for flag in result.flags if flag != SQUARE_FLAG)
        return Found(changed, result.broken_by == VERSIONS["standard"].index("square"), flags)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"AutoAttack standard {self.norm}"


@dataclass(frozen=True, kw_only=True)
class OneForAll(Attack):
    """One universal perturbation, made on every second image of a batch and added to all of them.

    What it does to the images that it was not made on, the odd ones, is what a universal perturbation is judged by.
    """

    name = "universal"
    loss: str = setting("margin", "what is driven up", choices=tuple(LOSSES))
    steps: int = setting(100, "number of steps", ge=1)

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Make the perturbation, and add it; see `Attack.__call__`."""
        maker = Universal(norm=self.norm, eps=self.eps, loss=self.loss, steps=self.steps)
        return (x + maker.perturbation(model, x[::2], y[::2], generator=generator)).clamp(0, 1)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"universal-{self.steps} {self.norm}"


def bytes_of(samples: Samples) -> Images | None:
    """Return samples as images of bytes, or None where their pixels are no whole bytes."""
    whole = (samples.x * 255).round()
    if samples.x.dim() != 4 or bool(((samples.x * 255) - whole).abs().max() > _GRID):
        return None
    return Images(whole.to(torch.uint8), samples.y)


def check_autoattack(samples: Samples) -> None:
    """Check that AutoAttack can be run.

    Args:
        samples: The images.

    Raises:
        IronrankError: If no package is installed, or pixels are no whole bytes.
    """
    installed(None)
    if bytes_of(samples) is None:
        raise IronrankError(
            "audit with AutoAttack: it takes images of whole bytes; pass Images, or take level quick"
        )
