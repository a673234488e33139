r"""Low-rank projected gradient ascent: the change of each channel is a matrix of small rank.

An image of c channels is changed by c matrices :math:`D = U V^T` (h, w) of rank at most r. What such a change finds is
a pattern of a few rows and columns, such as stripes, where PGD may set every pixel for itself; r is the size of that
freedom, and at full rank the attack is PGD. That changes of low rank fool nets well is the observation of the source.

    symbol   name here     shape
    D        change        (b, ..., h, w), every (h, w) of rank at most r
    r        rank
    T_r      low_rank      the nearest matrices of rank r (Eckart, Young 1936)

One step, from the gradient G at ``box(x + D)``, with d the steepest direction for G as in PGD:

    (1)  D <- T_r(cut(D + a d)), where cut clamps D to the box, so that x + D is an image, and for Linf to the ball
    (2)  D <- D eps / |D|, wherever |D| > eps, so that the rank stays as it is

It is one round of alternating projections on the allowed changes and on those of rank r. In L2, and away from the box,
it is the exact projection on their intersection, and ascent on a linear net ends at the best change of rank r. In Linf
T_r may raise single pixels, and (2) shrinks the whole change for them: it is then allowed, but uses less of the ball
than PGD does. The best change of rank r in that ball is hard to find even where the net is linear and r = 1.

What is returned is ``box(x + D)``: where the box cuts pixels off, the rank of what remains may be above r.

Source: Savostianova, Zangrando, Tudisco, "Low-rank adversarial PGD attack", 2024, arXiv 2410.12607, of which we know
the abstract and a summary by others: its attack ascends the two factors U and V by their normalized gradients, in L2.
The projection in place of that, Linf, the random start and the choice of the best iterate are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ironrank.attacks.passes import Loss
from ironrank.attacks.pgd import PGD
from ironrank.attacks.threat import random_start, shorten, steepest
from ironrank.errors import IronrankError
from ironrank.linalg import low_rank
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class LowRankPGD(PGD):
    """PGD among the changes whose every channel has a small rank; see the top of this file.

    Attributes:
        rank: Largest rank of the change of a channel; from the smaller side of the image on, it is PGD.

    Example:
        >>> attack = LowRankPGD(eps=0.1, rank=1, steps=2, random_start=False)
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> attack(lambda x: torch.stack((-x.sum((1, 2, 3)), x.sum((1, 2, 3))), 1), x, torch.tensor([0]))
        tensor([[[[0.6000, 0.6000],
                  [0.6000, 0.6000]]]])
        >>> attack.describe()
        'PGD-2 Linf rank 1'
    """

    name = "low-rank-pgd"
    rank: int = setting(
        4, "largest rank of the change of each channel", ge=1, paper="0.1 to 0.5 of full rank"
    )

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the climbs from all starts reach; see `Attack.perturb`.

        Args:
            loss: Maps pixels (b, ..., h, w) to one loss per sample (b,).
            x: Pixels (b, ..., h, w) in [0, 1].
            generator: Source of randomness, on the device of ``x``.

        Returns:
            Pixels (b, ..., h, w) inside ball and box.

        Raises:
            IronrankError: If the samples have no rows and columns.
        """
        if x.dim() < 3:
            raise IronrankError(f"low-rank-pgd on pixels of shape {tuple(x.shape)}: images (b, ..., h, w) are needed; "
                                "use pgd")  # fmt: skip
        if self.rank >= min(x.shape[-2:]):
            same = {field.name: getattr(self, field.name) for field in fields(PGD)}
            return PGD(**same).perturb(loss, x, generator)
        return super().perturb(loss, x, generator)

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the change (b, ..., h, w) that a climb begins with."""
        if not self.random_start:
            return torch.zeros_like(x)
        return self._allowed(random_start(x, self.eps, self.norm, generator) - x)

    def moved(self, place: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        """Return the change (b, ..., h, w) after a step."""
        # a decomposition fails for the whole batch where one sample's gradient is not a number
        target = place + self.length * steepest(gradient.nan_to_num(), self.norm)
        if self.norm == "Linf":
            target = shorten(target, self.eps, self.norm)
        return self._allowed((x + target).clamp(0, 1) - x)

    def pixels(self, place: Tensor, x: Tensor) -> Tensor:
        """Return the image that a change (b, ..., h, w) makes."""
        return (x + place).clamp(0, 1)

    def _allowed(self, change: Tensor) -> Tensor:
        """Return the nearest changes of this rank, shrunk until they are inside the ball."""
        change = low_rank(change, self.rank).dense()  # (1)
        flat = change.flatten(1)
        size = flat.abs().amax(1) if self.norm == "Linf" else flat.norm(dim=1)
        return change * (self.eps / size.clamp_min(self.eps)).view(-1, *[1] * (change.dim() - 1))  # (2)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"{super().describe()} rank {self.rank}"
