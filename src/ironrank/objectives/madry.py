"""Adversarial training: the loss on the worst pixels an attack finds.

Source: Madry et al. 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks import PGD, Attack
from ironrank.objectives.base import Objective
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Madry(Objective):
    r"""The mean cross-entropy :math:`\max_{x' \in B(x)} -\log p_y(x')`, the maximum found by an attack.

    The attack sees the model in evaluation mode; the loss is taken in the mode the model is in, so batch
    statistics come from the attacked images only.

    Example:
        >>> objective = Madry(attack=PGD(eps=0.1, steps=2, random_start=False))
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> round(objective(lambda x: x, x, y).item(), 4)  # the logits become 0.4 and 0.6
        0.7981
    """

    name = "madry"
    attack: Attack = setting(
        PGD(eps=8 / 255, steps=10, step_size=2 / 255, keep="last"),
        "adversary that changes the images before the loss",
        paper="CIFAR-10: PGD with 7 steps of 2/255, eps 8/255",
    )

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss on the attacked batch; see `Objective`."""
        return self._cross_entropy(model(self.attack(model, x, y, generator=generator)), y)
