"""Hold out a part of the training images for validation."""

from __future__ import annotations

import torch

from ironrank.data.base import Images
from ironrank.data.seeds import mix
from ironrank.errors import IronrankError


def split(images: Images, fraction: float) -> tuple[Images, Images]:
    """Split at random into what is trained on and what is held out, in the same way for every run.

    A run that starts from another, or learns from a teacher, would otherwise be validated on images that those were
    trained on. Of two fractions the larger one holds out what the smaller does, and more.

    Args:
        images: All training images, n of them.
        fraction: Share held out, in [0, 1); ``round(fraction n)`` images.

    Returns:
        Training and validation images, each in the old order; with fraction 0 all and none.

    Raises:
        IronrankError: If the fraction lies outside [0, 1) or leaves one side without images.

    Example:
        >>> images = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10))
        >>> train, validation = split(images, 0.3)
        >>> len(train), len(validation), sorted((train.y.tolist() + validation.y.tolist())) == list(range(10))
        (7, 3, True)
    """
    if not 0 <= fraction < 1:
        raise IronrankError(f"validation={fraction:g}: allowed is at least 0 and below 1")
    n, held = len(images), round(fraction * len(images))
    if fraction > 0 and held in (0, n):
        raise IronrankError(f"validation={fraction:g} of {n} images holds out {held}: take another fraction")
    if held == 0:
        return images, images.take(torch.zeros(0, dtype=torch.int64))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(mix(0, "validation")))
    return images.take(order[held:].sort().values), images.take(order[:held].sort().values)
