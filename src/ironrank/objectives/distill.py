r"""Robust distillation: a compressed net learns the answers of a dense robust teacher T, not the labels.

    style    the attack raises             the loss
    rslad    KL(T(x) || S(x'))             (1 - a) KL(T(x) || S(x)) + a KL(T(x)  || S(x')),  a = 5/6
    adaad    KL(T(x') || S(x'))            (1 - a) KL(T(x) || S(x)) + a KL(T(x') || S(x')),  a = 1

S and T are probabilities of student and teacher, at temperature 1. In AdaAD the attack's gradient runs through the
teacher too.

Source: RSLAD: Zi et al., "Revisiting adversarial robustness distillation", 2021. AdaAD: Huang et al., "Boosting
accuracy and robustness of student models via adaptive adversarial distillation", 2023. We know both by their formulas,
not line by line; a = 1 of AdaAD, and the direction of its divergences, are as we understand them and not certain.

Divergences are sums over classes and means over the batch, as the formulas are. The published code of RSLAD averages
over classes too, which makes its loss and its gradients smaller by the number of classes: for the same relation to
weight decay take its learning rate divided, and its weight decay multiplied, by that number.

Ours: the attack starts uniformly in the ball, theirs from x plus normal noise of 0.001; running statistics of batch
norms come from the attacked images alone; with label smoothing the teacher's probabilities are mixed with the even
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ironrank.attacks.passes import autocast_as
from ironrank.errors import IronrankError
from ironrank.objectives.base import Memory, Net, divergence, log_probabilities
from ironrank.objectives.robust import Robust, judging, kept_statistics
from ironrank.settings import setting

SHARES = {"rslad": 5 / 6, "adaad": 1.0}


@dataclass(frozen=True, kw_only=True)
class Distill(Robust):
    """Divergence from a robust teacher's answers; see the top of this file. The attack's own loss is not used.

    Example:
        >>> teacher = torch.nn.Identity()
        >>> x, y = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
        >>> from ironrank.attacks import PGD
        >>> objective = Distill(attack=PGD(eps=0.1, steps=4), alpha=1)
        >>> value = objective(lambda x: x, x, y, memory=Memory(teacher=teacher))
        >>> round(value.item(), 4)  # KL((0.5, 0.5) || (0.45, 0.55))
        0.005
    """

    name = "distill"
    teacher: str = setting("", "run folder of the teacher, a net trained to be robust")
    style: str = setting("rslad", "where the teacher is asked for its answer", choices=tuple(SHARES))
    alpha: float | None = setting(
        None, "share of the loss at attacked images; none is 5/6 for rslad, 1 for adaad", ge=0, le=1
    )

    def begin(self, load: Callable[[str], nn.Module]) -> Memory:
        """Load the teacher; see `Objective.begin`.

        Args:
            load: Returns the trained model of a run folder.

        Returns:
            The memory, with the teacher.

        Raises:
            IronrankError: If no folder is named, or it holds no trained model.
        """
        if not self.teacher:
            raise IronrankError("distill.teacher is empty: name the run folder of a robustly trained net")
        memory = super().begin(load)
        memory.teacher = load(self.teacher).eval().requires_grad_(False)
        return memory

    def at_worst(
        self, model: Net, x: Tensor, y: Tensor, generator: torch.Generator | None, memory: Memory
    ) -> Callable[[Net], Tensor]:
        """Drive the student away from the teacher; see `Robust.at_worst`."""
        teacher = self._checked(memory.teacher)
        adaptive = self.style == "adaad"
        with judging(teacher), autocast_as(self.attack.precision, x.device):
            target = log_probabilities(teacher(x))

        def apart(logits: Tensor, point: Tensor) -> Tensor:
            return divergence(log_probabilities(teacher(point)) if adaptive else target, logits)

        worst = self.attack.maximise(model, x, apart, generator=generator)
        with judging(teacher):
            target_there = log_probabilities(teacher(worst)) if adaptive else target

        def loss(net: Net) -> Tensor:
            alpha = SHARES[self.style] if self.alpha is None else self.alpha
            there = alpha * divergence(self._smooth(target_there), net(worst)).mean()
            if alpha == 1:
                return there
            with kept_statistics(model):
                return there + (1 - alpha) * divergence(self._smooth(target), net(x)).mean()

        return loss

    def _checked(self, teacher: nn.Module | None) -> nn.Module:
        if teacher is None:
            raise IronrankError("distill without a teacher: pass memory=Memory(teacher=...), or train a run")
        return teacher

    def _smooth(self, target: Tensor) -> Tensor:
        s = self.label_smoothing
        if s == 0:
            return target
        even = torch.full_like(target, math.log(s / target.shape[1]))
        return torch.logaddexp(target + math.log(1 - s), even)
