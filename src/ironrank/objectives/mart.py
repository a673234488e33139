r"""MART: adversarial training that minds misclassified images more.

.. math:: \mathrm{BCE}(p(x'), y) + \lambda \, \mathrm{KL}(p(x) \,\|\, p(x')) \, (1 - p_y(x)), \qquad
    \mathrm{BCE}(p, y) = -\log p_y - \log(1 - \max_{k \ne y} p_k)

where x' is found by raising the cross-entropy.

Source: Wang et al., "Improving adversarial robustness requires revisiting misclassified examples", 2020. The paper's
lambda is 5 as far as we know; 6 is in use too. The authors' code adds small constants inside the logarithms; here
:math:`\log(1 - p_k)` is a difference of two log-sum-exps, which needs none. Running statistics of batch norms come
from the attacked images alone, theirs from both. With label smoothing the first term of BCE is smoothed: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.objectives.base import Memory, Net, divergence, full, log_probabilities
from ironrank.objectives.robust import Robust, kept_statistics
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Mart(Robust):
    """Boosted cross-entropy at the attacked images, and a divergence weighted by the doubt on the clean ones.

    Example:
        >>> from ironrank.attacks import PGD
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> round(Mart(attack=PGD(eps=0))(lambda x: x, x, y).item(), 4)  # -log 0.5 - log 0.5
        1.3863
    """

    name = "mart"
    weight: float = setting(5.0, "lambda, weight of the divergence", ge=0, paper="5")

    def at_worst(
        self, model: Net, x: Tensor, y: Tensor, generator: torch.Generator | None, memory: Memory
    ) -> Callable[[Net], Tensor]:
        """Attack the batch; see `Robust.at_worst`."""
        worst = self.attack(model, x, y, generator=generator)

        def loss(net: Net) -> Tensor:
            attacked = net(worst)
            with kept_statistics(model):
                clean = log_probabilities(net(x))
            doubt = 1 - clean.gather(1, y[:, None])[:, 0].exp()
            spread = (divergence(clean, attacked) * doubt).mean()
            return self._cross_entropy(attacked, y) - lead(attacked, y).mean() + self.weight * spread

        return loss


def lead(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`\log(1 - \max_{k \ne y} p_k)` of each sample.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Numbers (b,), at most 0; near 0 where no wrong class is likely.
    """
    logits = full(logits)
    wrong = logits.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    return logits.scatter(1, wrong, -torch.inf).logsumexp(1) - logits.logsumexp(1)
