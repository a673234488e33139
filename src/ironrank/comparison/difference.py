r"""The difference of two accuracies on the same images, with an interval over images and over seeds.

With hits :math:`a_{si}, b_{si} \in \{0, 1\}` of seed s on image i, the difference is the mean of
:math:`d_{si} = a_{si} - b_{si}`. The bootstrap draws images and seeds with replacement, independently of each other,
and averages again; the 2.5 % and 97.5 % quantiles of these averages are the interval (Efron 1979; two-way after
McCullagh 2000, "Resampling and exchangeable arrays"). Drawing k seeds from k shrinks their variance by (k - 1) / k, so
what a seed adds to its images is first stretched by :math:`\sqrt{k / (k - 1)}`.

Where seeds differ more than images do, quantiles of so few draws are too narrow all the same: in our trials without a
true difference, three seeds with a spread of 4 points left out zero in 18 of 100 cases. So the interval is made wide
enough to hold Student's, over the means of the k seeds: mean :math:`\pm t_{k-1}\, s / \sqrt{k}`. One seed says nothing
about other seeds: its interval is over images alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS, AT_ONCE = 2000, 250
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


class Difference(NamedTuple):
    """A difference of accuracies, its 95 % interval, and what is behind it; fractions, not percent."""

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def verdict(self) -> str:
        """What the interval says: "higher", "lower" or "no difference shown"."""
        if self.low <= 0 <= self.high:
            return "no difference shown"
        return "higher" if self.mean > 0 else "lower"


def difference(a: Tensor, b: Tensor, draws: int = DRAWS) -> Difference:
    """Compare two nets on the same images.

    Args:
        a: Hits of the first net, bool (seeds, images).
        b: Hits of the second net, bool (seeds, images).
        draws: Number of bootstrap draws; always the same ones.

    Returns:
        The mean of a - b, and its interval.

    Example:
        >>> hits = torch.arange(100) < 50
        >>> difference(hits[None], hits[None])
        Difference(mean=0.0, low=0.0, high=0.0, seeds=1, images=100)
    """
    d = a.double() - b.double()
    seeds, images = d.shape
    middle = d.mean(0)
    stretched = middle + (d - middle) * (math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0)
    generator = torch.Generator().manual_seed(0)
    means = [_draw(stretched, min(AT_ONCE, draws - done), generator) for done in range(0, draws, AT_ONCE)]
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=d.dtype)).tolist()
    mean, half = d.mean().item(), _half_of_student(d.mean(1))
    return Difference(mean, max(-1.0, min(low, mean - half)), min(1.0, max(high, mean + half)), seeds, images)


def _half_of_student(means: Tensor) -> float:
    """Return half of Student's 95 % interval of the mean of so many values; 0 for a single one."""
    k = len(means)
    if k == 1:
        return 0.0
    quantile = STUDENT[min(k - 1, len(STUDENT)) - 1]  # beyond the table a little too wide
    return quantile * means.std().item() / math.sqrt(k)


def _draw(d: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Return the means (draws,) of d (seeds, images) with both sides drawn anew."""
    by_seed, by_image = (_weights(draws, size, generator) for size in d.shape)
    return ((by_seed @ d) * by_image).sum(1)


def _weights(draws: int, size: int, generator: torch.Generator) -> Tensor:
    """Return how often each of so many items is drawn, as shares (draws, size)."""
    drawn = torch.randint(size, (draws, size), generator=generator)
    counts = torch.zeros(draws, size, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / size
