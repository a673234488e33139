r"""TRADES: accuracy on clean images, and equal answers around them.

.. math:: \mathrm{CE}(z(x), y) + \beta \, \max_{x' \in B(x)} \mathrm{KL}(p(x) \,\|\, p(x'))

Source: Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019. The paper's 1/lambda
is beta. The gradient flows through both arguments of the divergence, as in the authors' code.

Deviations: the search starts uniformly in the ball, theirs from x plus normal noise of 0.001; running statistics of
batch norms come from the attacked images alone, theirs from both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks.passes import autocast_as
from ironrank.errors import IronrankError
from ironrank.objectives.base import Memory, Net, divergence, log_probabilities
from ironrank.objectives.robust import Robust, judging, kept_statistics
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Trades(Robust):
    """Clean cross-entropy plus beta times the divergence that an attack finds; the attack's own loss is not used.

    Example:
        >>> from ironrank.attacks import PGD
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> objective = Trades(attack=PGD(eps=0.1, steps=4), beta=6.0)
        >>> round(objective(lambda x: x, x, y).item(), 4)  # log 2 + 6 KL((0.5, 0.5) || (0.45, 0.55))
        0.7231
    """

    name = "trades"
    beta: float = setting(6.0, "weight of the divergence", ge=0, paper="6")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed, or the attack could not leave x.
        """
        super().__post_init__()
        if not self.attack.leaves_x_first:
            raise IronrankError(
                "trades.attack starts at x, where the divergence has no gradient: take a random start"
            )

    def at_worst(
        self, model: Net, x: Tensor, y: Tensor, generator: torch.Generator | None, memory: Memory
    ) -> Callable[[Net], Tensor]:
        """Drive up the divergence; see `Robust.at_worst`."""
        with judging(model), autocast_as(self.attack.precision, x.device):
            target = log_probabilities(model(x))
        worst = self.attack.maximise(
            model, x, lambda logits, _: divergence(target, logits), generator=generator
        )

        def loss(net: Net) -> Tensor:
            attacked = net(worst)
            with kept_statistics(model):
                clean = net(x)
            return (
                self._cross_entropy(clean, y)
                + self.beta * divergence(log_probabilities(clean), attacked).mean()
            )

        return loss
