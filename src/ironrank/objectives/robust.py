"""What objectives with an attack share: first search the pixels, then take the loss there, maybe at worse weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ironrank.attacks import PGD, Attack, stronger
from ironrank.attacks.base import check_batch, evaluation_mode
from ironrank.layers.frozen import frozen
from ironrank.objectives.awp import perturbed
from ironrank.objectives.base import Memory, Net, Objective
from ironrank.settings import setting


@dataclass(frozen=True, kw_only=True)
class Robust(Objective):
    """Base of the objectives with an attack; a subclass fills in `at_worst`.

    The attack sees the model in evaluation mode. The loss is taken in the mode the model is in; running statistics of
    batch norms are updated once, from the attacked images alone, whatever other passes the loss needs.
    """

    attack: Attack = setting(
        PGD(eps=8 / 255, steps=10, keep="last"),  # steps of 2/255; they grow with eps
        "adversary that changes the images before the loss",
        paper="CIFAR-10: PGD, eps 8/255, 7 steps of 2/255 (Madry) or 10 steps (TRADES, MART, RSLAD)",
    )
    awp: float = setting(
        0.0,
        "radius of the adversarial weight perturbation, relative to the norm of each weight; 0 is off",
        ge=0,
        paper="0.005",
    )

    ramp: int = setting(
        0,
        "steps over which eps grows to its full size; small nets may not begin to learn at a large one",
        ge=0,
    )

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and eps of the attack."""
        return self.attack.norm, self.attack.eps

    def facing(self, norm: str, eps: float) -> Robust:
        """Return the same objective, its attack in another ball; see `Objective.facing`."""
        return replace(self, attack=self.attack.inside(norm, eps))

    def threat_now(self, memory: Memory) -> tuple[str, float] | None:
        """Return norm and eps of the next step; see `Objective.threat_now`."""
        return self._now(memory).threat

    @property
    def attack_steps(self) -> int:
        """Those of the attack."""
        return self.attack.gradient_steps

    def describe(self) -> str:
        """Return the objective in a few words, without eps."""
        return f"{self.label()}, {self.attack.describe()}"

    def stronger(self) -> Robust:
        """Return the same objective with the next stronger attack; see `ironrank.attacks.stronger`."""
        return replace(self, attack=stronger(self.attack))

    def __call__(
        self,
        model: Net,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return the loss at the worst pixels and, with ``awp``, at worse weights; see `Objective`."""
        check_batch(x, y)
        memory = Memory() if memory is None else memory
        loss = self._now(memory).at_worst(model, x, y, generator, memory)
        if self.awp == 0:
            return loss(model)
        with kept_statistics(model):
            worse = perturbed(model, loss, self.awp)
        return loss(worse)

    def _now(self, memory: Memory) -> Self:
        """Return the objective at the eps of this step: the full one where no memory says how many went before."""
        before = memory.tensors.get("steps")
        if before is None or before >= self.ramp:
            return self
        return replace(self, attack=self.attack.scaled((int(before) + 1) / (self.ramp + 1)))

    def begin(self, load: Callable[[str], nn.Module]) -> Memory:
        """Begin to count steps, if eps grows; see `Objective.begin`."""
        memory = super().begin(load)
        if self.ramp:
            memory.tensors["steps"] = torch.tensor(0)
        return memory

    def advance(self, memory: Memory) -> None:
        """Count the step, if eps grows."""
        super().advance(memory)
        if "steps" in memory.tensors:
            memory.tensors["steps"] += 1

    def at_worst(
        self, model: Net, x: Tensor, y: Tensor, generator: torch.Generator | None, memory: Memory
    ) -> Callable[[Net], Tensor]:
        """Search the worst pixels, and return the loss there as a function of the weights.

        Args:
            model: The model.
            x: Pixels (b, ...).
            y: Classes (b,).
            generator: Source of randomness of the attack.
            memory: Of this objective.

        Returns:
            Maps the model, or the same model at other weights, to the loss.
        """
        raise NotImplementedError


@contextmanager
def kept_statistics(model: Any) -> Iterator[None]:
    """Leave the running statistics of batch norms as they are; they go on to normalize by the batch they see.

    Args:
        model: A module; any other callable is left alone.

    Yields:
        Nothing.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [m for m in norms if m.training and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


@contextmanager
def judging(model: Any) -> Iterator[None]:
    """Evaluate a model without gradients: evaluation mode, weights built once.

    That no parameter needs a gradient matters under autocast too: it would keep the cast weights without their
    history, and the loss that follows would have no gradient.

    Args:
        model: A module, or any other callable.

    Yields:
        Nothing.
    """
    with evaluation_mode(model), frozen(model), torch.no_grad():
        yield
