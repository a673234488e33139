r"""Optimizers and learning-rate schedules as settings.

A schedule knows only the progress of training, :math:`p = t / T \in [0, 1)`, so the same settings fit a run
of any length: the learning rate of step t is the optimizer's ``lr`` times ``schedule.factor(t / T)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ironrank.errors import IronrankError
from ironrank.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """A first-order optimizer as settings."""

    lr: float = setting(0.1, "learning rate before the schedule", gt=0)
    weight_decay: float = setting(0.0, "decay of groups that name none of their own", ge=0)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimizer over parameter groups; a value that a group names itself wins.

        Args:
            groups: Dicts with ``params`` and, if it differs, ``lr`` or ``weight_decay``.

        Returns:
            The optimizer; each group also remembers its ``initial_lr``, for `set_lr`.
        """
        optimizer = self._build(groups)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def _build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> SGD(lr=0.5).build([{"params": [weight]}]).param_groups[0]["initial_lr"]
        0.5
    """

    name = "sgd"
    momentum: float = setting(0.9, "share of the last step that is kept", ge=0, lt=1)
    nesterov: bool = setting(False, "take the gradient ahead of the step, in Sutskever's form")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is out of bounds, or Nesterov's form is asked for without momentum.
        """
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise IronrankError(
                "sgd.nesterov=True with momentum=0: a momentum above 0 is needed, such as 0.9"
            )

    def _build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay; Loshchilov and Hutter 2019."""

    name = "adamw"
    lr: float = setting(0.001, "learning rate before the schedule", gt=0)
    beta1: float = setting(0.9, "decay of the mean of gradients", ge=0, lt=1)
    beta2: float = setting(0.999, "decay of the mean of squared gradients", ge=0, lt=1)
    eps: float = setting(1e-8, "added to the root of the squared mean", ge=0)

    def _build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(
            groups, lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay
        )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to ``factor`` times the one it was built with.

    Args:
        optimizer: Built by `Optimizer.build`.
        factor: From `Schedule.factor`.
    """
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


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


OPTIMIZERS: dict[str, type[Optimizer]] = {o.name: o for o in (SGD, AdamW)}
SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Constant, Steps, Cosine, OneCycle)}
