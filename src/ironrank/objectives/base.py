"""The contract of an objective: one number from a model and a batch, the adversary hidden inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ironrank.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Objective(Settings):
    """What training makes small, as settings."""

    label_smoothing: float = setting(0.0, "share of the target spread evenly over all classes", ge=0, lt=1)

    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss of a batch, to call ``backward`` on.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes); used in the mode it is in.
            x: Pixels (b, ...) in [0, 1].
            y: True classes (b,), int64.
            generator: Source of randomness of the adversary, if there is one; by default torch's global one.

        Returns:
            The loss, a scalar, averaged over the batch.
        """
        raise NotImplementedError

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
