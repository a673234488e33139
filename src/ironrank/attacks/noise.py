"""Random noise: no search at all, only draws. What noise breaks, any search that works has to break too.

Half of the draws are uniform in the ball, half are as large as it allows: its corners for Linf, its sphere for L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.attacks.base import Attack
from ironrank.attacks.passes import Loss
from ironrank.attacks.search import Highest, of_rows
from ironrank.attacks.threat import steepest
from ironrank.settings import setting

DRAWN = 50  # draws made at a time
TOGETHER = 512  # images in one pass, where there are few samples


@dataclass(frozen=True, kw_only=True)
class Noise(Attack):
    """Each sample keeps the first of many draws that fools the model, else the one of highest loss, ``x`` among them.

    All samples of a batch meet the same draws, so what one sample meets depends neither on the others nor on its place.

    Example:
        >>> attack = Noise(eps=0.25, draws=50)
        >>> attack(lambda x: x, torch.tensor([[0.6, 0.4]]), torch.tensor([0])).argmax(1)
        tensor([1])
        >>> attack.describe()
        'noise x50 Linf'
    """

    name = "noise"
    draws: int = setting(1000, "number of draws", ge=1, paper="10000")

    @property
    def gradient_steps(self) -> int:
        """None: no gradient is used."""
        return 0

    @property
    def leaves_x_first(self) -> bool:
        """Always."""
        return True

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the worst draw of each sample; see `Attack.perturb`."""
        highest = Highest(x, loss, stop=True)
        highest.look(x, highest.rows)
        for first in range(0, self.draws, DRAWN):
            noise = self._drawn(x, generator)[: self.draws - first]
            while len(noise) and len(rows := highest.rows):
                count = max(1, TOGETHER // len(rows)) if loss.aim else 1
                self._try(noise[:count], x, rows, highest)
                noise = noise[count:]
        return highest.point

    def _drawn(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return changes (DRAWN, ...); every second one as large as the ball allows."""
        like: dict[str, Any] = {"generator": generator, "device": x.device, "dtype": x.dtype}
        flat = torch.randn((DRAWN, x[0].numel()), **like)
        if self.norm == "L2":
            size = torch.rand((DRAWN, 1), **like) ** (1 / flat.shape[1])
            size[1::2] = 1
            change = self.eps * size * steepest(flat, "L2")
        else:
            change = self.eps * (2 * torch.rand(flat.shape, **like) - 1)
            change[1::2] = self.eps * flat[1::2].sign()
        return change.view(DRAWN, *x.shape[1:])

    def _try(self, noise: Tensor, x: Tensor, rows: Tensor, highest: Highest) -> None:
        """Show each sample at ``rows`` to these changes (j, ...), and tell which is the worst."""
        points = (of_rows(x, rows) + noise[:, None]).clamp(0, 1)  # (j, k, ...)
        loss = highest.loss.take(rows.repeat(len(noise)))
        seen = loss.looked(points.flatten(0, 1))
        order = seen.losses.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if loss.aim is not None:
            order = order.where(~loss.aim.fooled(seen.logits), torch.inf)
        sample = torch.arange(len(rows), device=x.device)
        worst = order.view(len(noise), -1).argmax(0)
        at = worst * len(rows) + sample
        highest.offer(points[worst, sample], rows, seen.logits[at], seen.losses[at])

    def describe(self) -> str:
        """Return the attack in a few words for a table, without eps."""
        return f"noise x{self.draws} {self.norm}{self._loss_note()}"
