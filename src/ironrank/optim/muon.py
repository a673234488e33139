r"""Muon: momentum whose singular values are all set to one before it moves a weight matrix.

Weights that are matrices, kernels (n, c, *k) as (n, c K), move along the orthogonal factor of their momentum, so that
every direction of a gradient counts alike. Biases, batch norm and the last layer have no such matrix sense; they are
moved by AdamW or SGD, within the same optimizer.

    symbol     name here         shape
    G, B       grad, buffer      (n, c K)
    O          msign(B)          (n, c K), see `ironrank.linalg.sign`

    (1)  B <- mu B + G,  and with Nesterov's form  B' = G + mu B  in place of B below
    (2)  W <- (1 - lr d) W - lr f msign(B'),   d the weight decay
         f = sqrt(max(1, n / (c K))) for adjust "original", 0.2 sqrt(max(n, c K)) for "match_rms_adamw"

On factors. A low-rank weight ``U S V^T`` with orthonormal bases is the same for ``U Q1, Q1^T S Q2, V Q2``, for all
orthogonal Q1 and Q2. The gradients of the factors turn along, and so does msign, as ``msign(Q1^T B Q2) = Q1^T msign(B)
Q2``: W after a step of Muon does not depend on the choice. With Adam's elementwise scaling it does. For two free
factors ``U V^T`` the choice is a wider one, ``U A, V A^{-T}`` for every invertible A, and there Muon depends on it too.

With CondLR the momentum of a basis is tangent, ``U^T B = 0``, and so is O. If B has full column rank, O has orthonormal
columns and ``(U - l O)^T (U - l O) = (1 + l^2) I``: every retraction divides by one number, and a whole step of CondLR
does not depend on the choice either. That needs n >= 2 r, polar="exact", and a layer other than the last, whose
gradient under softmax lacks one rank; else it holds to the order of l^2.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; "match_rms_adamw": Liu et al.,
"Muon is scalable for LLM training", 2025; both known to us by formula. `torch.optim.Muon` (torch 2.9 and later) is the
same for matrices alone, in bfloat16; this one is in float32, covers kernels and all other parameters, and runs on older
torch. The remarks on factors are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.linalg import newton_schulz, orthogonal_factor, side_by_side
from ironrank.optim.optimizers import Optimizer
from ironrank.settings import setting

POLARS = ("newton-schulz", "exact")
ADJUSTS = ("original", "match_rms_adamw")
OTHERS = ("adamw", "sgd")
_EPS = 1e-8  # of AdamW


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum with its singular values set to one, for matrices; AdamW or SGD for all else.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> weight.grad = torch.diag(torch.tensor([5.0, 0.01]))
        >>> Muon(lr=0.5, polar="exact").build([{"params": [weight]}]).step()
        >>> weight.data
        tensor([[-0.5000,  0.0000],
                [ 0.0000, -0.5000]])
    """

    name = "muon"
    lr: float = setting(0.02, "learning rate of matrices before the schedule", gt=0)
    momentum: float = setting(0.95, "share of the last momentum that is kept", ge=0, lt=1)
    nesterov: bool = setting(True, "take the gradient ahead of the step")
    polar: str = setting("newton-schulz", "how singular values are set to one", choices=POLARS)
    steps: int = setting(5, "steps of Newton-Schulz", ge=1)
    adjust: str = setting("original", "how the learning rate follows the shape", choices=ADJUSTS)
    others: str = setting("adamw", "what moves vectors and the last layer", choices=OTHERS)
    other_lr: float = setting(0.001, "their learning rate before the schedule", gt=0)
    other_momentum: float = setting(0.9, "their momentum, the first beta of AdamW", ge=0, lt=1)
    beta2: float = setting(0.999, "decay of their mean of squared gradients, AdamW only", ge=0, lt=1)

    def _divided(self, groups: list[dict[str, Any]], last: set[int]) -> list[dict[str, Any]]:
        divided = []
        for group in groups:
            matrices = [p for p in group["params"] if p.ndim >= 2 and id(p) not in last]
            kept = {id(p) for p in matrices}
            rest = [p for p in group["params"] if id(p) not in kept]
            divided.append(group | {"params": matrices, "matrices": True})
            divided.append({"lr": self.other_lr} | group | {"params": rest, "matrices": False})
        return [group for group in divided if group["params"]]

    def _build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return MuonSteps(groups, self)


class MuonSteps(torch.optim.Optimizer):
    """The torch optimizer that `Muon` builds; each group says whether its parameters move as matrices.

    Args:
        groups: Parameter groups with ``matrices``, and ``lr`` and ``weight_decay`` where these differ.
        settings: The numbers.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: Muon) -> None:
        super().__init__(groups, {"lr": settings.lr, "weight_decay": settings.weight_decay})
        self.settings = settings

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:
            closure: Computes gradients and returns the loss; by default the gradients are there already.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._move_matrices(parameters, group)
                continue
            for p in parameters:
                (self._adamw if self.settings.others == "adamw" else self._sgd)(p, group)
        return loss

    def _move_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        @torch.no_grad()
        def work(p: Tensor) -> None:
            self._muon(p, group)

        for p in parameters:
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        side_by_side(work, sorted(parameters, key=lambda p: -p.numel()))

    def _muon(self, p: Tensor, group: dict[str, Any]) -> None:
        """Take one step: equations (1) and (2)."""
        assert p.grad is not None
        how, buffer = self.settings, self.state[p]["momentum_buffer"]
        buffer.mul_(how.momentum).add_(p.grad)  # (1)
        B = (p.grad + how.momentum * buffer if how.nesterov else buffer).flatten(1)
        O = orthogonal_factor(B) if how.polar == "exact" else newton_schulz(B, how.steps)  # noqa: E741
        p.mul_(1 - group["lr"] * group["weight_decay"])  # (2)
        p.sub_(O.reshape(p.shape), alpha=group["lr"] * adjustment(B.shape[0], B.shape[1], how.adjust))

    def _sgd(self, p: Tensor, group: dict[str, Any]) -> None:
        gradient = p.grad + group["weight_decay"] * p
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(self.settings.other_momentum).add_(gradient)
        p.sub_(buffer, alpha=group["lr"])

    def _adamw(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        beta1, beta2 = self.settings.other_momentum, self.settings.beta2
        state = self.state[p]
        mean = state.setdefault("exp_avg", torch.zeros_like(p))
        square = state.setdefault("exp_avg_sq", torch.zeros_like(p))
        state["step"] = step = state.get("step", 0) + 1
        mean.lerp_(p.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        root = (square / (1 - beta2**step)).sqrt_().add_(_EPS)
        p.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))


def adjustment(n: int, m: int, rule: str) -> float:
    """Return what the learning rate of a matrix (n, m) is multiplied by, the factor f of equation (2)."""
    return math.sqrt(max(1.0, n / m)) if rule == "original" else 0.2 * math.sqrt(max(n, m))
