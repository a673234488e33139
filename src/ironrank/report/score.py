"""Accuracy under one attack: the number, the ball it was searched in, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

from ironrank.judge.interval import wilson
from ironrank.report import text

SINGLE_STEP = ("fgsm", "n-fgsm", "nfgsm", "rs-fgsm")

Threat = tuple[str, float]
"""A ball that attacks search: norm and eps in pixel units."""


@dataclass(frozen=True)
class Score:
    """Accuracy under one attack on n images, or the mean of several nets' accuracies."""

    attack: str
    norm: str
    eps: float | None
    steps: int | None
    restarts: int | None
    accuracy: float
    n: int | None
    limits: tuple[float, float] | None = None  # an audit's own, where they are given
    sd: float | None = None  # standard deviation over seeds, where the accuracy is a mean

    @property
    def key(self) -> tuple:
        """What makes two scores comparable: the column of the table."""
        return (self.name.lower(), self.norm, rounded(self.eps), self.steps, self.restarts)

    @property
    def threat(self) -> Threat | None:
        """Norm and eps, or None where eps is not known."""
        return None if self.eps is None else (self.norm, rounded(self.eps) or 0.0)

    @property
    def single_step(self) -> bool:
        """Whether the attack follows the gradient once."""
        return self.steps == 1 or self.name.lower().startswith(SINGLE_STEP)

    @property
    def name(self) -> str:
        """The attack's name without what other fields say: ``PGD`` of ``PGD-20 x5 Linf``."""
        name = self.attack
        for known in (self.norm, f"-{self.steps}", f"x{self.restarts}"):
            name = name.replace(known, "") if known else name
        name = " ".join(name.split()) or self.attack
        return name.upper() if name.islower() else name

    @property
    def label(self) -> str:
        """The attack in words, such as ``PGD, 20 steps, 5 restarts``."""
        parts = [self.name]
        if self.steps and not self.single_step:
            parts.append(f"{self.steps} step{'s' * (self.steps > 1)}")
        if self.restarts and self.restarts > 1:
            parts.append(f"{self.restarts} restarts")
        return ", ".join(parts)

    @property
    def ball(self) -> str:
        """The ball in words, such as ``L∞, ε = 8/255``."""
        return ", ".join(filter(None, [text.norm(self.norm), f"ε = {text.epsilon(self.eps)}"]))

    @property
    def interval(self) -> tuple[float, float] | None:
        """One standard deviation to either side of a mean; else the 95 % interval, None where n is not known."""
        if self.sd is not None:
            return max(0.0, self.accuracy - self.sd), min(1.0, self.accuracy + self.sd)
        if self.limits is not None:
            return self.limits
        return wilson(self.accuracy, self.n) if self.n else None


def rounded(eps: float | None) -> float | None:
    """Return eps to five digits, so that 8/255 and 0.031373 name one ball."""
    return None if eps is None else round(eps, 5)
