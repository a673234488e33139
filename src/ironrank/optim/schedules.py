r"""Learning-rate schedules as settings.

A schedule knows only the progress of training, :math:`p = t / T \in [0, 1)`, so the same settings fit a run
of any length: the learning rate of step t is the optimizer's ``lr`` times ``schedule.factor(t / T)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ironrank.errors import IronrankError
from ironrank.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Schedule(Settings):
    """The course of the learning rate over training, as settings."""

    def factor(self, progress: float) -> float:
        """Return what multiplies the learning rate.

        Args:
            progress: Share of training that is done, in [0, 1).

        Returns:
            The factor, in [0, 1].
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same learning rate throughout."""

    name = "constant"

    def factor(self, progress: float) -> float:
        """Return 1; see `Schedule.factor`."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    r"""Multiply by :math:`\gamma` at each milestone: :math:`\gamma^{|\{m \le p\}|}`.

    Example:
        >>> [round(Steps().factor(epoch / 120), 2) for epoch in (0, 69, 70, 100, 119)]
        [1.0, 1.0, 0.3, 0.09, 0.09]
    """

    name = "steps"
    milestones: tuple[float, ...] = setting(
        (70 / 120, 100 / 120),
        "when the rate falls, shares of training",
        paper="epochs 70 and 100 of 120 (CondLR)",
    )
    gamma: float = setting(0.3, "factor at each milestone", gt=0, le=1, paper="0.3 (CondLR)")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is out of bounds.
        """
        super().__post_init__()
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise IronrankError(
                f"steps.milestones={self.milestones}: allowed are shares of training between 0 and 1"
            )

    def factor(self, progress: float) -> float:
        """Return the power of gamma reached; see `Schedule.factor`."""
        return self.gamma ** sum(milestone <= progress for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Rise linearly from 0 to 1 over `warmup`, then fall to `final` along half a cosine.

    Source: Loshchilov and Hutter 2017.

    Example:
        >>> [round(Cosine(warmup=0.2).factor(p), 2) for p in (0, 0.1, 0.2, 0.6)]
        [0.0, 0.5, 1.0, 0.5]
    """

    name = "cosine"
    warmup: float = setting(0.0, "share of training that the linear rise takes", ge=0, lt=1)
    final: float = setting(0.0, "factor at the end of training", ge=0, le=1)

    def factor(self, progress: float) -> float:
        """Return the point on the curve; see `Schedule.factor`."""
        if progress < self.warmup:
            return progress / self.warmup
        return _cosine(1.0, self.final, (progress - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    r"""Rise from `initial` to 1 until `peak`, then fall to `final`; Smith and Topin 2018.

    Example:
        >>> [round(OneCycle(peak=0.5, initial=0, shape="linear").factor(p), 2) for p in (0, 0.25, 0.5, 0.75)]
        [0.0, 0.5, 1.0, 0.5]
    """

    name = "one-cycle"
    peak: float = setting(0.3, "share of training at which the rate is highest", gt=0, lt=1)
    initial: float = setting(0.04, "factor at the start of training", ge=0, le=1)
    final: float = setting(0.0, "factor at the end of training", ge=0, le=1)
    shape: str = setting("cosine", "form of rise and fall", choices=("cosine", "linear"))

    def factor(self, progress: float) -> float:
        """Return the point on the curve; see `Schedule.factor`."""
        between = _cosine if self.shape == "cosine" else _linear
        if progress < self.peak:
            return between(self.initial, 1.0, progress / self.peak)
        return between(1.0, self.final, (progress - self.peak) / (1 - self.peak))


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: float) -> float:
    return _linear(start, end, (1 - math.cos(math.pi * share)) / 2)
