"""What methods share that add a term for each dense weight to the loss, and change nothing else.

    loss + weight * sum over layers of term(X),   X (a, b) the layer's weight as a tall matrix

See `ironrank.methods.fullrank` for X. Terms about a largest eigenvalue follow it by power iteration: the method's state
holds one unit vector for each layer, exact at the start and moved along by ``rounds`` rounds before each gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.linalg import condition_number, dominant, power_step, side_by_side
from ironrank.methods.base import Backward, State
from ironrank.methods.fullrank import FullRank
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Penalised(FullRank):
    """Base of the methods that only add a penalty on dense weights.

    Attributes:
        weight: Weight of the penalty.
        rounds: Rounds of power iteration in each step, where the penalty needs them.
    """

    weight: float = setting(0.01, "weight of the penalty", ge=0)
    rounds: int = setting(1, "rounds of power iteration a step, where the penalty needs them", ge=1)

    @property
    def shift(self) -> float | None:
        """Of which ``X^T X - shift I`` the dominant eigenvector is followed; None for terms without one."""
        return None

    def term(self, X: Tensor, v: Tensor | None) -> Tensor:
        """Return the penalty of one layer before its weight.

        Args:
            X: Tall matrix (a, b) of the layer's weight.
            v: The dominant eigenvector (b,), if `shift` asks for one.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    @torch.no_grad()
    def init(self, model: nn.Module) -> State:
        """Find the eigenvectors to follow.

        Args:
            model: The model.

        Returns:
            ``v.<layer>``: unit vectors (b,); nothing for terms without one.
        """
        if (shift := self.shift) is None:
            return {}
        return {f"v.{name}": dominant(X, shift).to(X.dtype) for name, X in self.weights(model)}

    def penalty(self, model: nn.Module, state: State) -> Tensor:
        """Return the sum of the terms, times the weight.

        Args:
            model: The model.
            state: The eigenvectors.

        Returns:
            A scalar.
        """
        terms = [self.term(X, state.get(f"v.{name}")) for name, X in self.weights(model)]
        return self.weight * torch.stack(terms).sum()

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: State, backward: Backward, t: int
    ) -> Tensor:
        """Take a plain step on the loss with its penalty.

        Args:
            model: The model.
            optimizer: The optimizer of its parameters.
            state: The eigenvectors, changed in place.
            backward: Fills the gradients and returns the loss.
            t: Number of the step, from 0.

        Returns:
            The loss before the step, penalty included.
        """
        self.follow(model, state)
        return super().step(model, optimizer, state, backward, t)

    def follow(self, model: nn.Module, state: State) -> None:
        """Move the eigenvectors of the state along to the present weights, in place.

        Args:
            model: The model.
            state: The eigenvectors.
        """
        if (shift := self.shift) is None:
            return

        @torch.no_grad()
        def work(row: tuple[str, Tensor]) -> None:
            v = state[f"v.{row[0]}"]
            v.copy_(power_step(row[1].detach(), v, shift, self.rounds))

        side_by_side(work, self.weights(model))

    def watch(self, model: nn.Module, state: State) -> dict[str, float]:
        """Return what the penalty shall lower.

        Args:
            model: The model.
            state: Not used.

        Returns:
            ``max_cond``, the largest condition number of a layer that the method takes.
        """
        return {"max_cond": max(condition_number(X.detach()).item() for _, X in self.weights(model))}

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Refuse: in a user's own loop a penalty is added to the loss.

        Args:
            model: Not used.
            optimizer: Not used.

        Raises:
            IronrankError: Always; it says what to write in the loop.
        """
        raise IronrankError(
            f"method '{self.label()}' is a penalty: with state = method.init(model), in each step call "
            "method.follow(model, state) and add method.penalty(model, state) to your loss"
        )
