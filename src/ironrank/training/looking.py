"""What the guard against catastrophic overfitting looks at: one step against many, on held-out images."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ironrank.attacks import FGSM, PGD
from ironrank.data import Images
from ironrank.judge.accuracy import robust_accuracy
from ironrank.training.guards import STEPS


class Look(NamedTuple):
    """Accuracy on held-out images under one step and under many.

    Attributes:
        single: Under FGSM.
        multi: Under PGD with 10 steps.
    """

    single: float
    multi: float

    @property
    def gap(self) -> float:
        """By how much the single step is too kind."""
        return self.single - self.multi


def look(model: nn.Module, images: Images, threat: tuple[str, float], seed: int) -> Look:
    """Compare a single-step attack with a multi-step one.

    Args:
        model: The model as it is trained, not an average of it, which would notice late.
        images: Held-out images.
        threat: Norm and eps of the training.
        seed: Seed of the random start.

    Returns:
        Both accuracies.
    """
    norm, eps = threat
    single = robust_accuracy(model, images, FGSM(norm=norm, eps=eps), seed)
    return Look(single, robust_accuracy(model, images, PGD(norm=norm, eps=eps, steps=STEPS), seed))
