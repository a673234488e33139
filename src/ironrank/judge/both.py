"""PGD on two losses, worst case of each image: what nets are judged by where there is no audit.

Cross-entropy alone stalls on nets with large logits, where its gradient vanishes in float32; the margin alone misses a
little on others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironrank.attacks import PGD
from ironrank.attacks.passes import Loss
from ironrank.settings import setting

LOSSES = ("ce", "margin")


@dataclass(frozen=True, kw_only=True)
class BothPGD(PGD):
    """PGD on cross-entropy and, on what withstands that, on the margin; any point that fools the net ends a search.

    Example:
        >>> sure = lambda x: 1e4 * torch.stack([0 * x[:, 0], x[:, 0] - x[:, 1] - 0.3], 1)  # no slope in cross-entropy
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> [sure(attack(sure, x, y)).argmax(1).item() for attack in (PGD(eps=0.2), BothPGD(eps=0.2))]
        [0, 1]
        >>> BothPGD(restarts=5).describe()
        'PGD-20 x5 Linf ce+margin'
    """

    name = "pgd-both"
    loss: str = setting("ce+margin", "what is driven up, one after the other", choices=("ce+margin",))
    stop: bool = setting(True, "whether a sample stops where it is first fooled")

    def perturb(self, loss: Loss, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what fools the net, else what the climb on the margin reaches; see `Attack.perturb`."""
        aim, point, rows = loss.aim, x.clone(), torch.arange(len(x), device=x.device)
        assert aim is not None, "it is about classes"
        for name in LOSSES:
            here = replace(loss, measure=replace(aim, loss=name)).take(rows)
            found = point[rows] = super().perturb(here, x[rows], generator)
            rows = rows[~aim.take(rows).fooled(here.looked(found).logits)]
            if len(rows) == 0:
                break
        return point
