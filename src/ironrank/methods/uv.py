"""UV: plain two-factor training, ``W = U V^T``, from the first step on, without constraint.

What the CondLR and RobustDLRT papers list as the vanilla or LoRA-type low-rank net: the factors are parameters like any
other, their product is never formed, and nothing keeps them orthonormal or well conditioned.

    symbol in the paper   name here   shape
    W = U V^T             U, V        (n, r), (m, r)

It starts from the truncated SVD of the weights that it is given, so that a fresh net starts near its own
initialisation;
the published baseline draws its factors at random instead. When not to use it: to keep the condition number small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ironrank.methods.lowrank import LowRank


@dataclass(frozen=True, kw_only=True)
class UV(LowRank):
    """Train two factors freely.

    Example:
        >>> net = UV(keep=0.5).prepare(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> net[0].rank
        4
    """

    name: ClassVar[str] = "uv"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give the chosen layers two factors.

        Args:
            model: The fresh dense model, changed in place.

        Returns:
            The same model.

        Raises:
            IronrankError: If it is factored already.
        """
        self.refuse_factored(model)
        return self.factorize(model, core=False)
