"""The first layer of every model: pixels in [0, 1] to zero mean and unit variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError


class Normalize(nn.Module):
    r"""Standardize each channel, :math:`(x - \mu) / \sigma`, inside the model.

    Attacks and data stay in pixel units because of it. Mean and deviation are buffers: they travel with the
    weights.

    Args:
        mean: Mean of each channel, in [0, 1] pixel units.
        std: Standard deviation of each channel, in [0, 1] pixel units, above 0.

    Raises:
        IronrankError: If the lengths differ or a deviation is not above 0.

    Example:
        >>> Normalize((0.5,), (0.25,))(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise IronrankError(
                f"mean={tuple(mean)}, std={tuple(std)}: one mean and one std above 0 per channel needed"
            )
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (b, c, h, w), standardized."""
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        """Return the channel means and deviations."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"
