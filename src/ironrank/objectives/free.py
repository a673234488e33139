r"""Free adversarial training: one backward pass moves the weights and the perturbation.

Each batch is replayed m times. A perturbation delta, one for each place of a batch, is carried from one replay to the
next and on to the next batch:

    (1)  loss at x' = box(x + delta), one backward pass: gradients of the weights and of delta
    (2)  the method moves the weights
    (3)  delta <- ball(delta + alpha eps d),  d the steepest direction of delta's gradient

Source: Shafahi et al., "Adversarial training for free!", 2019 (alpha = 1, delta starts at zero). There the epochs are
divided by m, so that training costs what clean training does; here an epoch shows each image once, with m steps on
each batch, so ``epochs`` is to be divided by m in the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironrank.attacks.base import check_batch
from ironrank.attacks.threat import NORMS, shorten, steepest
from ironrank.objectives.base import Memory, Net, Objective
from ironrank.settings import setting

MOST_REPLAYS = 64  # that an alarm leads to


@dataclass(frozen=True, kw_only=True)
class Free(Objective):
    """Cross-entropy at pixels that learn along with the weights; see the top of this file.

    Unlike an attack, the perturbation follows the gradient in training mode, since there is one pass for both. Without
    a memory every call is that of the first step: delta is zero.

    Example:
        >>> objective, memory = Free(eps=0.1), Memory()
        >>> x, y = torch.full((1, 2), 0.5), torch.tensor([0])
        >>> for _ in range(2):
        ...     loss = objective(lambda x: x, x, y, memory=memory)
        ...     loss.backward()
        ...     objective.advance(memory)
        >>> round(loss.item(), 4)  # after one step the logits are 0.4 and 0.6
        0.7981
    """

    name = "free"
    norm: str = setting("Linf", "norm that measures the change of one sample", choices=NORMS)
    eps: float = setting(8 / 255, "largest change in that norm, pixel units", ge=0)
    alpha: float = setting(1.0, "step of the perturbation, in units of eps", gt=0, paper="1")
    replays: int = setting(8, "m, steps on each batch", ge=1, paper="8 (CIFAR-10), 4 (ImageNet)")

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and eps."""
        return self.norm, self.eps

    def facing(self, norm: str, eps: float) -> Free:
        """Return the same objective, delta in another ball; see `Objective.facing`."""
        return replace(self, norm=norm, eps=eps)

    @property
    def attack_steps(self) -> int:
        """One: replays are steps of full length, each at other weights, and not a search at those of the moment."""
        return 1

    @property
    def keeps_tensors(self) -> bool:
        """Yes: the perturbation, one for each image of a batch."""
        return True

    def describe(self) -> str:
        """Return the objective in a few words, without eps."""
        return f"{self.label()}, {self.replays} replays"

    @property
    def steps_per_batch(self) -> int:
        """The number of replays."""
        return self.replays

    def stronger(self) -> Free:
        """Return the same objective with twice the replays, so that delta takes twice the steps on each batch.

        At more than 32, where training would take longer than by PGD-32, it stays as it is.
        """
        return self if self.replays > MOST_REPLAYS // 2 else replace(self, replays=2 * self.replays)

    def __call__(
        self,
        model: Net,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Return the loss at x + delta (1); nothing is drawn. See `Objective`."""
        check_batch(x, y)
        memory = Memory() if memory is None else memory
        delta = _held(memory, x)[: len(x)].clone().requires_grad_()
        memory.pending = delta
        return self._cross_entropy(model((x + delta).clamp(0, 1)), y)

    def advance(self, memory: Memory) -> None:
        """Move delta by the gradient of the latest backward pass (3)."""
        delta, memory.pending = memory.pending, None
        if delta is None or delta.grad is None or self.eps == 0:
            return
        with torch.no_grad():
            moved = delta + self.alpha * self.eps * steepest(delta.grad, self.norm)
            memory.tensors["delta"][: len(delta)] = shorten(moved, self.eps, self.norm)


def _held(memory: Memory, x: Tensor) -> Tensor:
    """Return delta (at least b, ...), made or lengthened by zeros where a batch is larger than any before."""
    held = memory.tensors.get("delta")
    if held is None:
        held = torch.zeros_like(x, memory_format=torch.contiguous_format)
    elif len(held) < len(x):
        held = torch.cat([held, held.new_zeros(len(x) - len(held), *x.shape[1:])])
    memory.tensors["delta"] = held
    return held
