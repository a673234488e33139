"""Points a little aside, in general position: where the tests of slopes look, and where some attacks have to walk.

Plain areas of an image, and pixels that are exactly black or white, are places where maxima tie and rectifiers switch:
an honest net is bent there, and has no slope. A little aside, with no two pixels alike, it has one. So tests look at
slopes there. But then a net may be honest aside and deceive where a pixel is exactly black or white or like others, as
in all that common attacks meet. Attacks that walk aside as well are not misled: they use what the tests have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks import PGD
from ironrank.attacks.threat import shorten

ASIDE = 1 / 30  # how far from a place slopes are looked at, in units of eps
NEAR = 1 / 100  # how far attacks keep from ties and faces: as far as points of attacks are looked at again
SMALL = 1 / 1000, 1 / 10_000  # steps over which slopes are looked at, in units of eps
FLOOR = 3e-5  # smallest step of a pixel: below, rounding of float32 would be measured


def step_of(norm: str, eps: float, share: float, x: Tensor) -> float:
    """Return the length of a step that is a share of eps, but long enough for float32."""
    return max(share * eps, FLOOR if norm == "Linf" else FLOOR * x[0].numel() ** 0.5)


def reach_of(norm: str, eps: float, share: float, x: Tensor) -> float:
    """Return how far each pixel has to move for a share of eps."""
    return share * eps * (1 if norm == "Linf" else x[0].numel() ** -0.5)


def aside(x: Tensor, reach: float, edge: float, generator: torch.Generator) -> Tensor:
    """Return points near by, in general position.

    Args:
        x: Pixels (b, ...).
        reach: How far a pixel moves at most.
        edge: Distance from black and white that is kept: the net may be undefined outside the box, where steps of this
            length would lead. At most a quarter counts.
        generator: Source of randomness; all samples are moved alike.

    Returns:
        Pixels (b, ...) in [edge, 1 - edge].
    """
    shift, more = (torch.rand(x.shape[1:], generator=generator).to(x) for _ in range(2))
    edges = min(edge, 0.25) + reach * more  # one for each pixel
    return torch.minimum(torch.maximum(x + reach * (2 * shift - 1), edges), 1 - edges)


@dataclass(frozen=True, kw_only=True)
class AsidePGD(PGD):
    """PGD that shows the net only points in general position, inside ball and box.

    Example:
        >>> attack = AsidePGD(eps=0.3, steps=5)
        >>> point = attack(lambda x: x.flatten(1), torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0]))
        >>> bool((point > 0).all() and (point < 1).all() and point[..., 0] < 0.71 and point[..., 1] > 0.29)
        True
    """

    name = "aside-pgd"

    def pixels(self, place: Tensor, x: Tensor) -> Tensor:
        """Return the place, aside by a hundredth of eps; the same shift whenever it is asked for."""
        generator = torch.Generator().manual_seed(0)
        reach = reach_of(self.norm, self.eps, NEAR, x)
        edge = step_of(self.norm, self.eps, SMALL[0], x) / (1 - NEAR)
        change = shorten(aside(place, reach, edge, generator) - x, self.eps, self.norm)
        return x + change * (1 - NEAR * torch.rand(x.shape[1:], generator=generator).to(x))

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"{super().describe()} aside"
