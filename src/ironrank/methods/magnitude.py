"""Magnitude: filters of least norm are removed from a trained net, which is then trained on.

The baseline of all structured pruning. Whether it is robust pruning is up to the objective: fine-tuned against attacks
it is what papers on robust compression call filter pruning with adversarial training.

    symbol         name here   shape
    F_i            `norms`     filter i: its rows in all weights that make it, see `ironrank.surgery.filters`

In each group of coupled filters those of largest Euclidean norm stay, the same share of every group, the largest one
within the budget. Batch norm takes no part in the norm: it rescales what the rows make, and is cut along.

Source: Li, Kadav, Durdanovic, Samet, Graf, "Pruning filters for efficient ConvNets", 2017, who take the sum of absolute
values and choose shares layer by layer, by hand. Coupled groups and one share within a budget are ours.

When not to use it: at high compression, where what is removed was not small; see admm-filters and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ironrank.methods.filters import FilterPruning, norms


@dataclass(frozen=True, kw_only=True)
class Magnitude(FilterPruning):
    """Remove the filters of least norm, then fine-tune.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> Magnitude(budget="params=2x").prepare(net)
        Sequential(
          (0): Linear(in_features=8, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """

    name: ClassVar[str] = "magnitude"
    begins: ClassVar[str] = "trained"
    gentle: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> nn.Module:
        """Remove filters.

        Args:
            model: The trained dense model, changed in place.

        Returns:
            The same model, smaller.
        """
        plan = self.plan(model)
        return self.cut(model, plan, {group.name: norms(model, group) for group in plan.groups})
