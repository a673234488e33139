"""The contract of an objective: one number from a model and a batch, the adversary hidden inside.

Settings are frozen. What an objective carries from step to step (the perturbation of "free", the teacher of a
distillation) is its `Memory`, which the training loop holds:

    memory = objective.begin(load)                                once, also on resume
    for each batch, ``steps_per_batch`` times:
        loss = objective(model, x, y, generator=g, memory=memory)     as often as the method asks for a gradient
        objective.advance(memory)                                     once, after the step

Between two `advance` the memory stands still as far as the loss sees it, so the gradient is the same however often it
is asked for. Its tensors are in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ironrank.errors import IronrankError
from ironrank.settings import Settings, setting

Net = Callable[[Tensor], Tensor]


@dataclass
class Memory:
    """What an objective carries from step to step.

    Attributes:
        tensors: In the checkpoint, so that a resumed training goes on to the bit.
        teacher: A trained model in evaluation mode, whose parameters need no gradient.
        pending: What the latest call left for `Objective.advance`; never in the checkpoint.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    teacher: nn.Module | None = None
    pending: Any = None


@dataclass(frozen=True, kw_only=True)
class Objective(Settings):
    """What training makes small, as settings."""

    label_smoothing: float = setting(0.0, "share of the target spread evenly over all classes", ge=0, lt=1)

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and eps that it trains against; None where there is no adversary."""
        return None

    def threat_now(self, memory: Memory) -> tuple[str, float] | None:
        """Return norm and eps of the next step, which differ from `threat` while eps grows.

        Args:
            memory: Of this objective.

        Returns:
            As `threat`.
        """
        return self.threat

    def facing(self, norm: str, eps: float) -> Objective:
        """Return the same objective against another ball; itself where there is no adversary.

        Args:
            norm: Norm of the ball.
            eps: Its radius, pixel units.

        Returns:
            The objective.
        """
        return self

    @property
    def attack_steps(self) -> int:
        """Gradient steps of the adversary on each batch; 0 where there is none."""
        return 0

    @property
    def keeps_tensors(self) -> bool:
        """Whether the memory holds tensors that belong to the images of one process."""
        return False

    def describe(self) -> str:
        """Return the objective in a few words, without eps."""
        return self.label()

    @property
    def steps_per_batch(self) -> int:
        """How many steps are taken on each batch before the next one."""
        return 1

    def stronger(self) -> Objective:
        """Return the same objective with the next stronger adversary; itself where there is none."""
        return self

    def begin(self, load: Callable[[str], nn.Module]) -> Memory:
        """Make what is carried from step to step, at the start of a training and when it resumes.

        Args:
            load: Returns the trained model of a run folder, on the device of the training.

        Returns:
            The memory; the caller puts back tensors of a checkpoint.
        """
        return Memory()

    def __call__(
        self,
        model: Net,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return the loss of a batch, to call ``backward`` on; in float32 or better also under autocast.

        Args:
            model: Maps pixels (b, ...) to logits (b, classes); used in the mode it is in.
            x: Pixels (b, ...) in [0, 1].
            y: True classes (b,), int64.
            generator: Source of randomness of the adversary, if there is one; by default torch's global one.
            memory: From `begin`; needed by objectives with a teacher, and to carry anything over to the next call.

        Returns:
            The loss, a scalar, averaged over the batch.
        """
        raise NotImplementedError

    def advance(self, memory: Memory) -> None:
        """Carry over what the step has taught; called once after each step.

        Args:
            memory: Changed in place.
        """

    def _cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(full(logits), y, label_smoothing=self.label_smoothing)


def full(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithms of the class probabilities (b, classes), in float32 or better."""
    return F.log_softmax(full(logits), 1)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    r"""Return the Kullback-Leibler divergence of each sample, :math:`\sum_k p_k (\log p_k - \log q_k)`.

    Args:
        target: Logarithms of the probabilities p (b, classes).
        logits: Scores (b, classes) whose probabilities are q.

    Returns:
        Divergences (b,), at least 0 but for rounding.

    Example:
        >>> round(divergence(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, 1.0]])).item(), 4)
        0.1201

    Raises:
        IronrankError: If the two know different numbers of classes.
    """
    if target.shape != logits.shape:
        raise IronrankError(f"answers over {target.shape[-1]} and {logits.shape[-1]} classes: they cannot be compared; "
                            "take nets of the same data")  # fmt: skip
    return F.kl_div(log_probabilities(logits), target, reduction="none", log_target=True).sum(1)
