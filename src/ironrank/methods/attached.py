"""A method in somebody else's training loop: hooks before and after ``optimizer.step()``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.surgery import trained_cores

_PATIENCE = 20  # training forwards without one optimizer step before the warning
_AT_WORK: WeakKeyDictionary[torch.optim.Optimizer, list[Attached]] = WeakKeyDictionary()


@contextmanager
def _one_line() -> Iterator[None]:
    """Say what it means where a decomposition fails."""
    try:
        yield
    except torch.linalg.LinAlgError:
        raise IronrankError("attach: weights or gradients are not finite, or about to become so: "
                            "lower the learning rate") from None  # fmt: skip


class Attached:
    """A method at work in a user's own loop.

    Attributes:
        steps: How many optimizer steps it has accompanied.

    Args:
        method: The method: ``constrain(model)`` at the start, ``project(model, optimizer)`` before each step and
            ``retract(model, before, t)`` after it.
        model: A model whose layers hold factors with a core.
        optimizer: Any torch optimizer that holds these factors.

    Raises:
        IronrankError: If the model has no such layer, the optimizer does not hold its factors, or a method is attached
            to them already; before a step, if a gradient of what the method moves is not finite.
    """

    def __init__(self, method: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.steps, self._forwards, self._warned = 0, 0, False
        self._method, self._model = method, model
        self._skipped = False
        self._check(model, optimizer)
        self._moved = self._find_moved()  # parameters stay the same objects while a method is at work
        self._fellows, mine = _AT_WORK.setdefault(optimizer, []), set(map(id, self._moved))
        if any(id(p) in mine for fellow in self._fellows for p in fellow._moved):
            raise IronrankError("attach: a method is attached to these weights and this optimizer already: remove() it "
                                "first, or make a new optimizer")  # fmt: skip
        self._before: dict[int, Tensor] = {}
        self._begin()
        self._fellows.append(self)
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
        self._fellows[:] = [fellow for fellow in self._fellows if fellow is not self]
        if not self.steps:
            self._warn()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # What a method does: a sub-class for methods of another kind replaces these five.

    def _check(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        _check_cores(model, optimizer)

    def _find_moved(self) -> list[Any]:
        # of the factors the cores alone: each entry of U^T G V has part of all of G
        return [core for _, layer in trained_cores(self._model) if (core := layer.S) is not None]

    def _begin(self) -> None:
        self._method.constrain(self._model)

    def _ahead(self, optimizer: torch.optim.Optimizer) -> None:
        self._before = self._method.project(self._model, optimizer)

    def _behind(self) -> None:
        self._method.retract(self._model, self._before, self.steps)
        self._before = {}

    def _on_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        given = [
            value for value in (*args, kwargs.get("closure")) if value is not None and value is not optimizer
        ]
        if given:
            raise IronrankError(
                "attach works with optimizer.step() without a closure: compute the gradients before it"
            )
        # a fused optimizer under a GradScaler skips the step by itself where a gradient overflowed
        self._skipped = bool(getattr(optimizer, "found_inf", None))
        if self._skipped:
            return
        _unscale(optimizer)
        sums = [p.grad.sum(dtype=torch.float32) for p in self._moved if p.grad is not None]
        if sums and not torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all():
            raise IronrankError("attach: a gradient is not finite; the step is not taken and the weights are as they "
                                "were: lower the learning rate, or leave this batch out")  # fmt: skip
        with _one_line():
            self._ahead(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._skipped:
            return
        with _one_line():
            self._behind()
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


class AttachedADMM(Attached):
    """A method that pulls dense weights towards targets, at work in a user's own loop.

    Attributes:
        steps: How many optimizer steps it has accompanied.
        state: The targets and all else that the method keeps; for its ``watch``.

    Args:
        method: The method, such as CSTAR.
        model: A dense model.
        optimizer: Any torch optimizer that holds the weights that get targets.

    Raises:
        IronrankError: If it does not hold one of them.
    """

    state: dict[str, Tensor]
    _finished = False

    def resume(self, state: dict[str, Tensor], steps: int) -> AttachedADMM:
        """Go on where an earlier attachment to the same net stopped.

        Args:
            state: Its ``state``, such as from a safetensors file; net and optimizer are the caller's to restore.
            steps: Its ``steps``.

        Returns:
            This attachment.

        Raises:
            IronrankError: If it is the state of another net, or of another method.
        """
        here = {key: value.shape for key, value in self.state.items() if not key.startswith("V.")}
        given = {key: value.shape for key, value in state.items() if not key.startswith("V.")}
        if here != given:
            odd = sorted(set(here.items()) ^ set(given.items()))[0][0]
            raise IronrankError(
                f"attach: the state does not fit this net and method, at '{odd}': give the state of an attachment to it"
            )
        devices = {key: value.device for key, value in self.state.items()}
        weights = {key.partition(".")[2]: device for key, device in devices.items() if key.startswith("Z.")}
        self.state = {
            key: value.to(devices.get(key, weights.get(key[2:], value.device)))
            for key, value in state.items()
        }
        self.steps = steps
        return self

    def finish(self) -> nn.Module:
        """Detach, and give the model its final form.

        Returns:
            The model, within the budget; make a new optimizer to train it on.

        Raises:
            IronrankError: If it was finished before.
        """
        if self._finished:
            raise IronrankError(
                "attach: finish() was called before: train on what it returned, with a new optimizer"
            )
        self.remove()
        self._finished = True
        return self._method.finish(self._model, self.state)

    def _check(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        held = _held(optimizer)
        for name in self._method.names(model):
            if id(model.get_submodule(name).weight) not in held:
                raise IronrankError(f"attach: the optimizer does not hold the weight of layer '{name}'")

    def _find_moved(self) -> list[Any]:
        return [self._model.get_submodule(name).weight for name in self._method.names(self._model)]

    def _begin(self) -> None:
        self.state = self._method.init(self._model)

    def _ahead(self, optimizer: torch.optim.Optimizer) -> None:
        self._method.ahead(self._model, self.state)

    def _behind(self) -> None:
        self._method.behind(self._model, self.state, self.steps)


def _unscale(optimizer: Any) -> None:
    """Divide the gradients by the scale of a GradScaler, where the optimizer was about to do so in its own step.

    Momenta and pulls towards targets are not scaled: a method cannot add them to gradients that are.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for p in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        p.grad.div_(scale.to(p.grad.device))
    optimizer.grad_scale = None


def _held(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the ids of the parameters that an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_cores(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    layers = trained_cores(model)
    if not layers:
        raise IronrankError(
            "attach: no layer of the model holds U, S and V that are trained; call ironrank.factorize(model) first"
        )
    held = _held(optimizer)
    for name, layer in layers:
        if any(id(factor) not in held for factor in (layer.U, layer.S, layer.V)):
            raise IronrankError(f"attach: the optimizer does not hold the factors of layer '{name}'; "
                                "make it after ironrank.factorize(model)")  # fmt: skip
