"""SVD: truncate a trained net, then fine-tune the two factors freely.

The weights of each layer are replaced by their best approximation of the chosen rank (Eckart, Young 1936), and training
goes on without constraint. This is the baseline that everybody can make; what it loses against a method is the price of
not training at that rank under that constraint from the start.

    symbol in the paper   name here   shape
    W ~ A B^T             U, V        (n, r), (m, r)

A run of this method starts from a dense one (`Run.start`). Singular values are shared evenly between the two factors.
When not to use it: at high compression, where the truncated net is far from the trained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ironrank.methods.lowrank import LowRank


@dataclass(frozen=True, kw_only=True)
class SVD(LowRank):
    """Truncate, then fine-tune.

    Example:
        >>> net = SVD(keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> net[0].rank
        4
    """

    name: ClassVar[str] = "svd"
    begins: ClassVar[str] = "trained"
    gentle: ClassVar[bool] = True

    def prepare(self, model: nn.Module) -> nn.Module:
        """Truncate the chosen layers.

        Args:
            model: The trained dense model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If it is factored already.
        """
        self.refuse_factored(model)
        return self.factorize(model, core=False)
