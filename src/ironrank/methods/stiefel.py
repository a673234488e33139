"""What the methods on the Stiefel manifold share: weights that stay orthonormal, moved by momentum in tangent spaces.

Each weight is ``c X`` or ``c X^T`` with a tall X (a, b), ``X^T X = I`` (see `ironrank.methods.fullrank`), and a fixed
scale c. One step, from the gradient G of the weight, laid out like X:

    (1)  M <- T(mu M - G), T the orthogonal projection on the tangent space at X: T(B) = B - X sym(X^T B)
    (2)  X <- a curve that starts at X along M, followed for lr / c, which ends on the manifold
    (3)  the optimizer moves all other parameters

The momentum M belongs to the method's state. The learning rate is the optimizer's, with its schedule; its momentum,
weight decay and adaptive scaling do not act on these weights: T cancels a decay, and an elementwise scaling would leave
the tangent space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg import condition_number, orthonormality_error, retract_polar, side_by_side, tangent
from ironrank.methods.attached import Attached
from ironrank.methods.base import Backward, State
from ironrank.methods.fullrank import FullRank, as_weight, tall
from ironrank.optim import clip_gradients
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Stiefel(FullRank):
    """Base of the methods that keep dense weights orthonormal; a sub-class says along which curve they move.

    Attributes:
        momentum: Share of the last step that is kept.
        gain: Learning rate of the orthonormal weights, in units of the optimizer's.
        scale: The one singular value of every weight.
    """

    momentum: float = setting(0.9, "share of the last step that is kept", ge=0, lt=1)
    gain: float = setting(1.0, "learning rate of orthonormal weights over the optimizer's", gt=0)
    scale: float = setting(1.0, "the one singular value of every weight", gt=0, paper="1")

    def init(self, model: nn.Module) -> State:
        """Bring every weight to the nearest point of the constraint set, and start the momentum at zero.

        Args:
            model: The model, changed in place.

        Returns:
            ``M.<layer>``: the momentum, a tall matrix.
        """
        self.constrain(model)
        return {f"M.{name}": torch.zeros_like(X).contiguous() for name, X in self._detached(model)}

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take one step; see the top of this file for the equations.

        Args:
            model: The model.
            optimizer: Any torch optimizer of its parameters.
            state: The momentum, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step.
        """
        loss = backward()
        self.advance(model, optimizer, state, t)  # (1), (2)
        optimizer.step()  # (3)
        return loss

    @torch.no_grad()
    def advance(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, t: int) -> None:
        """Move the orthonormal weights, and take their gradients away from the optimizer: equations (1) and (2).

        Args:
            model: The model, with gradients.
            optimizer: Gives the learning rates.
            state: The momentum, changed in place.
            t: Number of the step, from 0.
        """
        clip_gradients(optimizer)  # these weights are not there any more when the optimizer would do it
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}

        @torch.no_grad()
        def work(row: tuple[str, Any]) -> None:
            weight, M = row[1].weight, state[f"M.{row[0]}"]
            X = tall(weight) / self.scale
            M.copy_(tangent(X, self.momentum * M - tall(weight.grad)))  # (1)
            X = self.moved(X, M, self.gain * rates[id(weight)] / self.scale, t)  # (2)
            weight.copy_(as_weight(self.scale * X, weight))
            weight.grad = None

        side_by_side(work, [row for row in self.layers(model) if row[1].weight.grad is not None])

    def moved(self, X: Tensor, M: Tensor, length: float, t: int) -> Tensor:
        """Follow a curve on the manifold.

        Args:
            X: Where it starts (a, b), orthonormal columns.
            M: Its direction there (a, b), a tangent vector.
            length: How far to go, in units of M.
            t: Number of the step, from 0.

        Returns:
            Where it ends (a, b).
        """
        raise NotImplementedError

    @torch.no_grad()
    def constrain(self, model: nn.Module) -> None:
        """Bring every weight to the nearest point of the constraint set, in place; those that are in it stay."""
        for _, layer in self.layers(model):
            X = tall(layer.weight) / self.scale
            if not orthonormality_error(X).item() <= 32 * torch.finfo(X.dtype).eps:
                layer.weight.copy_(as_weight(self.scale * retract_polar(X), layer.weight))

    def finish(self, model: nn.Module, state: State) -> nn.Module:
        """Make sure that the constraint holds, also for averaged weights.

        Args:
            model: The trained model, changed in place.
            state: Not used.

        Returns:
            The same model.
        """
        self.constrain(model)
        return model

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return the worst of the orthonormal weights.

        Args:
            model: The model.
            state: Not used.

        Returns:
            ``max_cond``, the largest condition number, and ``orthonormality``, the largest error of ``X^T X = I``.
        """
        found = [X / self.scale for _, X in self._detached(model)]
        return {
            "max_cond": max(condition_number(X).item() for X in found),
            "orthonormality": max(orthonormality_error(X).item() for X in found),
        }

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Attached:
        """Run the method in a user's own loop, by hooks on the optimizer.

        Args:
            model: A model with dense layers; their weights are made orthonormal at once.
            optimizer: Any torch optimizer that holds these weights.

        Returns:
            The attachment; ``.remove()`` ends it. After ``optimizer.step()`` the weights it moves have no gradient.

        Raises:
            IronrankError: If there is no layer to take, or the optimizer does not hold its weight.
        """
        return AttachedStiefel(self, model, optimizer)

    def _detached(self, model: nn.Module) -> list[tuple[str, Tensor]]:
        return [(name, X.detach()) for name, X in self.weights(model)]


class AttachedStiefel(Attached):
    """A method on the Stiefel manifold, at work in a user's own loop.

    Attributes:
        steps: How many optimizer steps it has accompanied.
        state: The momentum.
    """

    state: State

    def _check(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._method.prepare(model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, layer in self._method.layers(model):
            if id(layer.weight) not in held:
                raise IronrankError(f"attach: the optimizer does not hold the weight of layer '{name}'")

    def _find_moved(self) -> list[Any]:
        return [layer.weight for _, layer in self._method.layers(self._model)]

    def _begin(self) -> None:
        self.state = self._method.init(self._model)

    def _ahead(self, optimizer: torch.optim.Optimizer) -> None:
        self._method.advance(self._model, optimizer, self.state, self.steps)

    def _behind(self) -> None:
        pass  # nothing is left to do: the optimizer did not see these weights
