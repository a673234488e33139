r"""Square attack: random search by squares of changed pixels, without a gradient.

Source: Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial attack via
random search", ECCV 2020 (algorithms 1 to 3). The formulas are as we know them from the paper; its wording was not at
hand.

    symbol in the paper   name here   meaning
    N                     queries     number of points tried
    p                     p           share of the image that the first square covers; halved along the way
    h                     side        side of the square, about sqrt(p w^2)
    eta                   bump        for L2, the pattern added to a window: a hill beside a valley

A try changes one window of the best image so far, and is kept where the loss rises. For Linf each channel of the window
is set to :math:`+\epsilon` or :math:`-\epsilon`. For L2 a second window is emptied, what it held is given to the first,
and there

.. math:: \nu \leftarrow \frac{t}{\|t\|} \sqrt{\|\nu_{W_1 \cup W_2}\|^2 + (\epsilon^2 - \|\nu\|^2) / c}, \qquad
    t = \pm \eta + \nu_{W_1} / \|\nu_{W_1}\|

for each of the c channels. The schedule of p is that of 10,000 queries, shrunk to N. Ours: every sample draws its own
windows, a window may also touch the last row and column, which in published code it never does, and images need not be
square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.losses import LOSSES
from ironrank.attacks.passes import Loss
from ironrank.attacks.search import Highest, of_rows
from ironrank.attacks.threat import length, per_sample, project
from ironrank.settings import setting

HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where p is halved


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search by squares; needs nothing of the model but its logits, so no gradient can mislead it.

    Each sample keeps the first point that fools the model, else the point of highest loss, ``x`` among them.

    Example:
        >>> attack = Square(eps=0.25, queries=40)
        >>> attack(lambda x: x.flatten(1), torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])).argmax(-1)
        tensor([[[1]]])
        >>> attack.describe()
        'Square-40 Linf'
    """

    name = "square"
    loss: str = setting(
        "margin", "what is driven up: logit margin, or another loss", choices=tuple(LOSSES), paper="margin"
    )
    queries: int = setting(1000, "number of points tried for each start", ge=1, paper="5000 in AutoAttack")
    restarts: int = setting(1, "number of starts; each sample keeps its worst", ge=1, paper="1")
    p: float = setting(0.8, "share of the image that the first square covers", gt=0, le=1, paper="0.8")

    @property
    def gradient_steps(self) -> int:
        """None: no gradient is used."""
        return 0

    @property
    def leaves_x_first(self) -> bool:
        """Always: the start is random."""
        return True

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the search finds; see `Attack.perturb`."""
        highest = Highest(x, loss, stop=True)
        highest.look(x, highest.rows)
        draw = _Draw(x, generator)
        for _ in range(self.restarts):
            start = draw.stripes() if self.norm == "Linf" else draw.tiles()
            self._search(draw, start * self.eps, highest)
        return highest.point

    def _search(self, draw: _Draw, change: Tensor, highest: Highest) -> None:
        """Search from one start, a change (b, c, h, w)."""
        rows = highest.rows
        change = self._inside(of_rows(change, rows), draw, rows)
        losses = self._told(change, draw, rows, highest)
        for k in range(self.queries):
            staying = highest.staying(rows)
            if staying is not None:
                rows, change, losses = rows[staying], change[staying], losses[staying]
            high, wide = window(
                share(self.p, k / self.queries), draw.images, smallest=1 if self.norm == "Linf" else 3
            )
            tried = self._changed(change, draw, rows, high, wide)  # draws, even where nobody is left
            if len(rows) == 0:
                return
            tried = self._inside(tried, draw, rows)
            found = self._told(tried, draw, rows, highest)
            better = found > losses
            change = torch.where(per_sample(better, change), tried, change)
            losses = torch.where(better, found, losses)

    def _changed(self, change: Tensor, draw: _Draw, rows: Tensor, high: int, wide: int) -> Tensor:
        """Return the changes (k, c, h, w) with one window of each changed."""
        first = draw.place(high, wide)[rows]
        sign = draw.signs()[rows]
        if self.norm == "Linf":
            return torch.where(inside(first, high, wide, change), self.eps * sign, change)
        second = draw.place(high, wide)[rows]
        return moved_mass(change, self.eps, draw.bump(high, wide), sign, first, second)

    def _inside(self, change: Tensor, draw: _Draw, rows: Tensor) -> Tensor:
        images = of_rows(draw.images, rows)
        return project(images + change, images, self.eps, self.norm) - images

    def _told(self, change: Tensor, draw: _Draw, rows: Tensor, highest: Highest) -> Tensor:
        """Show a change to the model, tell what is met, and return the losses (k,)."""
        if len(rows) == 0:
            return change.new_zeros(0)
        point = (of_rows(draw.images, rows) + change).clamp(0, 1).view(-1, *draw.shape)
        seen = highest.loss.take(rows).looked(point)
        highest.offer(point, rows, seen.logits, seen.losses)
        return seen.losses.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        restarts = "" if self.restarts == 1 else f" x{self.restarts}"
        note = "" if self.loss == "margin" else f" {self.loss}"
        return f"Square-{self.queries}{restarts} {self.norm}{note}"


def share(p: float, progress: float) -> float:
    """Return the share of the image that a window covers, after a part of the queries.

    Example:
        >>> share(0.8, 0.0), share(0.8, 0.004), share(0.8, 0.9)
        (0.8, 0.4, 0.0015625)
    """
    return p / 2 ** sum(10_000 * progress > halved for halved in HALVED)


def window(covered: float, images: Tensor, smallest: int = 1) -> tuple[int, int]:
    """Return height and width of a window that covers this share of images (b, c, h, w), as square as they allow.

    Example:
        >>> window(0.25, torch.zeros(1, 1, 8, 8)), window(0.5, torch.zeros(1, 1, 1, 30))
        ((4, 4), (1, 15))
    """
    h, w = images.shape[2:]
    side = max(smallest, round(math.sqrt(covered * h * w)))
    if smallest > 1 and side % 2 == 0:
        side += 1  # the L2 pattern has a middle
    return min(side, h), min(side if side <= h else round(covered * w) or 1, w)


def inside(place: Tensor, high: int, wide: int, images: Tensor) -> Tensor:
    """Return bool (k, 1, h, w): which pixels lie in each sample's window, whose first row and column are ``place``."""
    row = torch.arange(images.shape[2], device=images.device) - place[:, :1]
    column = torch.arange(images.shape[3], device=images.device) - place[:, 1:]
    in_row, in_column = (row >= 0) & (row < high), (column >= 0) & (column < wide)
    return (in_row[:, :, None] & in_column[:, None, :])[:, None]


def moved_mass(
    change: Tensor, eps: float, bump: Tensor, sign: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Return the L2 try: what two windows hold, and what eps has left, all in the first; see the top of this file.

    Args:
        change: Changes (k, c, h, w) of length at most eps.
        eps: Radius, pixel units.
        bump: Pattern of length 1 (high, wide).
        sign: 1 or -1 for each sample and channel (k, c, 1, 1).
        first: First row and column of the window that is filled (k, 2).
        second: The same of the window that is emptied.

    Returns:
        Changes (k, c, h, w) of length at most eps, up to rounding.
    """
    high, wide = bump.shape
    tiny = torch.finfo(change.dtype).tiny
    one, two = (inside(place, high, wide, change) for place in (first, second))
    held = (change * (one | two)).square().sum((2, 3), keepdim=True)
    left = (eps**2 - length(change).square()).clamp_min(0) / change.shape[1]
    own = change * one
    pattern = torch.zeros_like(change).masked_scatter(one.expand_as(change), sign * bump)
    mixed = pattern + own / own.square().sum((2, 3), keepdim=True).sqrt().clamp_min(tiny)
    mixed = mixed / mixed.square().sum((2, 3), keepdim=True).sqrt().clamp_min(tiny)
    return change * ~(one | two) + mixed * (held + left).sqrt()


class _Draw:
    """What is random, always for the whole batch."""

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        self.shape = x.shape[1:]
        whole = x.view(len(x), 1, 1, -1) if x.dim() == 2 else x
        self.images = whole.reshape(len(x), -1, *whole.shape[-2:])
        self._like: dict[str, Any] = {"generator": generator, "device": x.device}

    def place(self, high: int, wide: int) -> Tensor:
        """Return first row and column of a window (b, 2)."""
        h, w = self.images.shape[2:]
        space = torch.tensor([h - high + 1, w - wide + 1], device=self.images.device)
        return (torch.rand((len(self.images), 2), **self._like) * space).long()

    def signs(self, h: int = 1, w: int = 1) -> Tensor:
        """Return 1 and -1 at random (b, c, h, w)."""
        shape = (*self.images.shape[:2], h, w)
        return torch.randint(2, shape, **self._like).to(self.images.dtype) * 2 - 1

    def stripes(self) -> Tensor:
        """Return the Linf start, of length 1: each column and channel up or down."""
        return self.signs(w=self.images.shape[3]).expand_as(self.images)

    def tiles(self) -> Tensor:
        """Return the L2 start, of length 1: a grid of patterns, five in its shorter side."""
        h, w = self.images.shape[2:]
        side = max(min(h, w) // 5, 1)
        change = torch.zeros_like(self.images)
        for row in range(0, h - side + 1, side):
            for column in range(0, w - side + 1, side):
                change[:, :, row : row + side, column : column + side] = self.signs() * self.bump(side, side)
        return change / length(change)

    def bump(self, high: int, wide: int) -> Tensor:
        """Return the L2 pattern, one for all samples: a hill beside a valley, or above it (high, wide)."""
        turned = bool(torch.rand((), **self._like) < 0.5) and high == wide
        pattern = bump(high, wide, self.images)
        return pattern.mT if turned else pattern


def bump(high: int, wide: int, like: Tensor) -> Tensor:
    """Return a pattern of length 1 (high, wide): a hill in the one half, a valley in the other."""
    if high == 1:
        return bump(wide, 1, like).mT if wide > 1 else like.new_ones(1, 1)
    pattern = torch.cat([hill(high // 2, wide, like), -hill(high - high // 2, wide, like)])
    return pattern / pattern.norm()


def hill(high: int, wide: int, like: Tensor) -> Tensor:
    r"""Return :math:`\sum_{j=d+1}^{n+1} 1/j^2` (high, wide), d the distance from the middle in rows or columns."""
    row = (torch.arange(high, device=like.device) - high // 2).abs()
    column = (torch.arange(wide, device=like.device) - wide // 2).abs()
    n = max(high, wide) // 2
    terms = 1 / torch.arange(1, n + 2, device=like.device, dtype=like.dtype) ** 2
    return terms.flip(0).cumsum(0).flip(0)[torch.maximum(row[:, None], column[None])]
