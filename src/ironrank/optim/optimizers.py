"""Optimizers as settings: which torch optimizer, with which numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """A first-order optimizer as settings."""

    lr: float = setting(0.1, "learning rate before the schedule", gt=0)
    weight_decay: float = setting(0.0, "decay of groups that name none of their own", ge=0)

    def build(self, groups: list[dict[str, Any]], last: Iterable[Tensor] = ()) -> torch.optim.Optimizer:
        """Build the optimizer over parameter groups; a value that a group names itself wins.

        Args:
            groups: Dicts with ``params`` and, if it differs, ``lr`` or ``weight_decay``.
            last: Parameters of the last layer, for optimizers that treat it as another kind; most do not.

        Returns:
            The optimizer; each group also remembers its ``initial_lr``, for `set_lr`.
        """
        optimizer = self._build(self._divided(groups, {id(p) for p in last}))
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def _divided(self, groups: list[dict[str, Any]], last: set[int]) -> list[dict[str, Any]]:
        """Return the groups, divided further where parameters are treated apart; ``last`` holds ids."""
        return groups

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


@contextmanager
def slowed(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Let an optimizer take a step at a share of its learning rates, which are as before afterwards.

    Args:
        optimizer: Any.
        factor: The share.

    Yields:
        Nothing.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["lr"]
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
