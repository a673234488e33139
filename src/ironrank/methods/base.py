"""The contract of a method: what may happen to the weights before, during and after training.

    prepare(model) -> model                          before: some layers now hold factors
    groups(model)  -> parameter groups               which parameters decay
    init(model)    -> state                          the method's own tensors: duals, masks, scores; often none
    for t, (x, y):
        backward = () -> loss                        fills .grad with the gradient of objective + penalty
        step(model, optimizer, state, backward, t)   the paper's algorithm box
    finish(model, state) -> model                    after: the final form

A method receives the gradient as a function, so a step may ask for it once (SGD, CondLR, ADMM), three times (the K, L
and S steps of DLRT) or ask for it and not step the optimizer at all (a basis augmentation). ``backward`` clears old
gradients, owns autocast, the average over processes and the check that the loss is finite, and gives the same
gradient again when called twice at the same weights.

A method that changes the shape of a factor uses `Factored.set_factors`, which keeps the parameter objects, and carries
the optimizer's moments over itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg import condition_number, orthonormality_error
from ironrank.settings import Settings
from ironrank.surgery import factored_layers, layers_with_core

Backward = Callable[[], Tensor]
State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """Base of all methods: plain training. A method overrides what it does differently.

    Attributes:
        begins: What a comparison starts the method from: "random" weights, or a "trained" dense net.
        ends: What the method leaves behind: a net that is "ready", or one whose final form `finish` has just "cut" out
            of a dense one, which a comparison fine-tunes.
        gentle: Whether it only tunes what becomes of a trained net; a comparison then takes a tenth of the learning
            rate.
    """

    begins: ClassVar[str] = "random"
    ends: ClassVar[str] = "ready"
    gentle: ClassVar[bool] = False

    @property
    def finds_ranks(self) -> bool:
        """Whether ranks change during training: what a plan shows are then those at the start."""
        return False

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give layers the form that the method trains; at full rank the function stays the same.

        Args:
            model: The model; it may be changed in place.

        Returns:
            The model to train.
        """
        return model

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Split the parameters into optimizer groups: no weight decay on vectors and on bases.

        A basis is a factor U or V of a layer with a core: its scale means nothing, the core carries it.

        Args:
            model: The prepared model.

        Returns:
            Groups for a torch optimizer, all parameters that need a gradient in them once.
        """
        bases = {
            id(b) for _, layer in factored_layers(model) if layer.S is not None for b in (layer.U, layer.V)
        }
        chosen = [p for p in model.parameters() if p.requires_grad]
        free = [p for p in chosen if p.ndim < 2 or id(p) in bases]
        decayed = [p for p in chosen if p.ndim >= 2 and id(p) not in bases]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def init(self, model: nn.Module) -> State:
        """Make the method's state at the start of a training; not called when a training resumes.

        Args:
            model: The prepared model.

        Returns:
            Tensors by name.
        """
        return {}

    def penalty(self, model: nn.Module, state: State) -> Tensor | float:
        """Return what is added to the loss.

        Args:
            model: The prepared model.
            state: The method's state.

        Returns:
            A scalar.
        """
        return 0.0

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one training step.

        Args:
            model: The prepared model.
            optimizer: The optimizer of its parameters.
            state: The method's state, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step.
        """
        loss = backward()
        optimizer.step()
        return loss

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Give the trained model its final form.

        Also called on a copy after each epoch, to judge what would be saved: the state stays as it is.

        Args:
            model: The trained model.
            state: The method's state.

        Returns:
            The final model.
        """
        return model

    def within(self, model: nn.Module, params: int) -> Method | None:
        """Return these settings for a net of at most so many parameters, deployed.

        Args:
            model: The dense model; only its shapes matter, and it may be on the meta device.
            params: The largest number of parameters of the deployed net, all layers, biases and batch norm counted.

        Returns:
            The method, or None where it does not change the size of a net.

        Raises:
            IronrankError: If it cannot make the net that small.
        """
        return None

    def paced(self, steps: int, given: Collection[str] = ()) -> Self:
        """Return these settings for a training of so many steps.

        Args:
            steps: Steps that the method is given.
            given: Names of settings that stay, though they may be at their defaults.

        Returns:
            The method; what it counts in steps, and is neither given nor off its default, is a share of them.
        """
        free = {key: pace for key, pace in self.paces(steps).items() if key not in given}
        return replace(
            self,
            **{key: pace for key, pace in free.items() if getattr(self, key) == getattr(type(self), key)},
        )

    def paces(self, steps: int) -> dict[str, int]:
        """Return the settings that count steps, as shares of so many.

        Args:
            steps: Steps that the method is given.

        Returns:
            Values by name.
        """
        return {}

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return what is worth logging: here the widest layer and the worst basis.

        Args:
            model: The prepared model.
            state: The method's state.

        Returns:
            Numbers by name: ``max_cond``, the largest condition number of a factored layer's core (of Tucker-2, of its
            unfolding by outputs), and ``orthonormality``, the largest error of a basis.
        """
        cores = [layer for _, layer in layers_with_core(model)]
        if not cores:
            return {}
        bases = [orthonormality_error(basis.detach()) for layer in cores for basis in (layer.U, layer.V)]
        conds = [condition_number(layer.unfoldings()[0].detach()) for layer in cores]
        return {"max_cond": float(max(conds)), "orthonormality": float(max(bases))}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Run the method in a user's own loop, by hooks on the optimizer.

        Args:
            model: A prepared model.
            optimizer: The optimizer of its parameters.

        Raises:
            IronrankError: Where the method needs more than one gradient a step, or no hook at all.
        """
        if type(self).step is Method.step:
            raise IronrankError(
                f"method '{self.label()}' has nothing to attach: a plain loop already runs it"
            )
        raise IronrankError(
            f"method '{self.label()}' cannot be attached: call its step(model, optimizer, state, backward, t) in "
            "your loop in place of optimizer.step(), with state = init(model)"
        )
