"""Accuracy against eps, all of it from one run of a minimum-norm attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ironrank.attacks import FMN
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge.accuracy import batches


def minimum_norm(model: nn.Module, images: Images, attack: FMN | None = None) -> Tensor:
    """Return, for each image, the length of the smallest change found that fools the model.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.
        attack: Norm and steps of the search; its eps plays no part. By default `FMN` in Linf.

    Returns:
        Lengths (n,), pixel units, on the CPU; 0 where the model is wrong without any change, infinity where no change
        was found. Each belongs to a change that was shown to the model: the true distance is at most that.
    """
    attack = attack or FMN()
    generator = torch.Generator()
    return torch.cat([attack.distances(model, x, y, generator=generator).cpu() for x, y in batches(images)])


def curve_of(distances: Tensor, right: Tensor, radii: Sequence[float]) -> list[float]:
    """Return the accuracy at each radius: the share of images that are right and farther from fooling than that.

    Args:
        distances: Lengths (n,) from `minimum_norm`.
        right: Which images the model gets right without any change, bool (n,).
        radii: Pixel units, at least 0.

    Returns:
        Fractions, one for each radius; they never rise with the radius.

    Raises:
        IronrankError: If there are no images, or the two do not belong together.

    Example:
        >>> curve_of(torch.tensor([0.1, 0.3, 0.0]), torch.tensor([True, True, False]), (0.0, 0.1, 0.2, 0.3))
        [0.6666666666666666, 0.3333333333333333, 0.3333333333333333, 0.0]
    """
    if distances.shape != right.shape or distances.dim() != 1 or len(right) == 0:
        raise IronrankError(
            f"curve of {tuple(distances.shape)} distances and {tuple(right.shape)} answers: "
            "one of each is needed for every image, and at least one image"
        )
    return [(right & (distances > radius)).double().mean().item() for radius in radii]
