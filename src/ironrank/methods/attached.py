"""A method in somebody else's training loop: hooks before and after ``optimizer.step()``."""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.surgery import factored_layers

_PATIENCE = 20  # training forwards without one optimizer step before the warning


class Tangential(Protocol):
    """A method that acts before and after the optimizer's step."""

    def constrain(self, model: nn.Module) -> None:
        """Bring the factors into the constraint set."""

    def project(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
        """Make the gradients tangent."""

    def retract(self, model: nn.Module, before: dict[int, Tensor], t: int) -> None:
        """Bring the factors back after the step."""


class Attached:
    """A method at work in a user's own loop.

    Attributes:
        steps: How many optimizer steps it has accompanied.

    Args:
        method: The method.
        model: A model whose layers hold factors with a core.
        optimizer: Any torch optimizer that holds these factors.

    Raises:
        IronrankError: If the model has no such layer or the optimizer does not hold its factors.
    """

    def __init__(self, method: Tangential, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        _check(model, optimizer)
        self.steps, self._forwards, self._warned = 0, 0, False
        self._method, self._model = method, model
        self._before: dict[int, Tensor] = {}
        method.constrain(model)
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._on_step),
            optimizer.register_step_post_hook(self._after_step),
            model.register_forward_pre_hook(self._on_forward),
        ]

    def remove(self) -> None:
        """Detach from the optimizer; warns if no step was ever taken."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if not self.steps:
            self._warn()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        given = [
            value for value in (*args, kwargs.get("closure")) if value is not None and value is not optimizer
        ]
        if given:
            raise IronrankError(
                "attach works with optimizer.step() without a closure: compute the gradients before it"
            )
        self._before = self._method.project(self._model, optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self._method.retract(self._model, self._before, self.steps)
        self._before = {}
        self.steps += 1

    def _on_forward(self, model: nn.Module, args: tuple) -> None:
        if self.steps == 0 and model.training and torch.is_grad_enabled():
            self._forwards += 1
            if self._forwards == _PATIENCE:
                self._warn()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "an attached method never fired: the optimizer that it is attached to took no step",
                stacklevel=3,
            )


def _check(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    layers = [(name, layer) for name, layer in factored_layers(model) if layer.S is not None]
    if not layers:
        raise IronrankError(
            "attach: no layer of the model holds U, S and V; call ironrank.factorize(model) first"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers:
        if any(id(factor) not in held for factor in (layer.U, layer.S, layer.V)):
            raise IronrankError(f"attach: the optimizer does not hold the factors of layer '{name}'; "
                                "make it after ironrank.factorize(model)")  # fmt: skip
