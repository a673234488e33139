"""Ordinary training: the cross-entropy on the images as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.objectives.base import Memory, Net, Objective


@dataclass(frozen=True, kw_only=True)
class Clean(Objective):
    r"""The mean cross-entropy :math:`-\log p_y(x)`.

    Example:
        >>> round(Clean()(torch.zeros_like, torch.rand(4, 2), torch.tensor([0, 1, 0, 1])).item(), 4)
        0.6931
    """

    name = "clean"

    def __call__(
        self,
        model: Net,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return the loss; nothing is drawn. See `Objective`."""
        return self._cross_entropy(model(x), y)
