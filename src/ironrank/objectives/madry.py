"""Adversarial training: the loss on the worst pixels an attack finds.

Source: Madry et al. 2018. With a single-step attack this is FGSM training, FGSM-RS (Wong, Rice, Kolter 2020) or N-FGSM
(de Jorge et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.objectives.base import Memory, Net
from ironrank.objectives.robust import Robust


@dataclass(frozen=True, kw_only=True)
class Madry(Robust):
    r"""The mean cross-entropy :math:`\max_{x' \in B(x)} -\log p_y(x')`, the maximum found by an attack.

    Example:
        >>> from ironrank.attacks import PGD
        >>> objective = Madry(attack=PGD(eps=0.1, steps=2, random_start=False))
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> round(objective(lambda x: x, x, y).item(), 4)  # the logits become 0.4 and 0.6
        0.7981
    """

    name = "madry"

    def at_worst(
        self, model: Net, x: Tensor, y: Tensor, generator: torch.Generator | None, memory: Memory
    ) -> Callable[[Net], Tensor]:
        """Attack the batch; see `Robust.at_worst`."""
        worst = self.attack(model, x, y, generator=generator)
        return lambda net: self._cross_entropy(net(worst), y)
