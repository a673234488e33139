"""Gradients and momentum of the bases, made tangent to the manifold of rank-r matrices.

For ``W = U S V^T`` with orthonormal U (n, r) and V (m, r), and ``gU = dL/dU = G V S^T`` from a full gradient
G (n, m), the projection of ``-G`` on the tangent space moves U along

    (1)  -dU = -(I - U U^T) gU (S S^T)^{-1}

and V likewise with ``S^T`` in place of S. A Tucker-2 kernel has the unfoldings ``W_(1) = U S_(1) (V x I)^T`` and
``W_(2) = V S_(2) (U x I)^T``: there (1) holds for U with ``S_(1)`` (r1, r2 K), and for V with ``S_(2)`` (r2, r1 K).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironrank.linalg import horizontal, normal
from ironrank.linalg.precision import full_precision

CORRECTIONS = ("exact", "scalar", "none")
_MOMENTS = ("momentum_buffer", "exp_avg")  # what SGD and the Adam family call their first moment


@torch.no_grad()
def make_tangent(U: nn.Parameter, S: Tensor, optimizer: torch.optim.Optimizer, correction: str) -> None:
    """Replace the gradient of a basis by equation (1), and project the momentum, in place.

    The buffer of SGD with momentum mu becomes ``mu b + g`` in the coming step, so there one projection serves both:
    ``g - U U^T (g + mu b)`` instead of ``g - U U^T g`` and ``b - U U^T b``. The bits of the step are the same but for
    rounding.

    Args:
        U: The basis (n, r), with a gradient.
        S: The core as seen from this basis (r, q), one of `Factored.unfoldings`.
        optimizer: The optimizer, whose first moment of U is projected.
        correction: "exact", "scalar" or "none".
    """
    assert U.grad is not None
    gradient, moments = corrected(U.grad, S, correction), optimizer.state.get(U, {})
    buffer, mu = moments.get("momentum_buffer"), _plain_momentum(optimizer, U)
    if buffer is not None and mu is not None:
        U.grad = gradient.sub_(normal(U, gradient + mu * buffer)).to(U.dtype)
        return
    for name in _MOMENTS:  # (2): a tangent vector of the last point is not one of this point
        if moments.get(name) is not None:
            moments[name].copy_(horizontal(U, moments[name]))
    U.grad.copy_(horizontal(U, gradient))


def _plain_momentum(optimizer: torch.optim.Optimizer, U: nn.Parameter) -> float | None:
    """Return mu where the step is ``b <- mu b + g``, ``U <- U - lr b``, else None.

    Where gradients are clipped, g is still to be multiplied by a number, and must be a tangent by itself.
    """
    if not steps_straight(optimizer, U):
        return None
    group = next(group for group in optimizer.param_groups if any(p is U for p in group["params"]))
    special = group["nesterov"] or group["dampening"] or group["maximize"] or group.get("clip")
    return None if special else group["momentum"]


@full_precision
def corrected(G: Tensor, S: Tensor, correction: str = "exact") -> Tensor:
    """Return ``G (S S^T)^{-1}``, or its scalar stand-in.

    Args:
        G: Gradient of a basis (n, r).
        S: The core (r, q), q >= r.
        correction: "exact"; "scalar" for ``G r / tr(S S^T)``; "none" for G.

    Returns:
        The corrected gradient (n, r).
    """
    if correction == "none":
        return G
    if correction == "scalar":
        total = S.square().sum()  # at 0 no step of a basis changes the weight
        return G * torch.where(total > 0, S.shape[-2] / total, 0.0)
    L, info = torch.linalg.cholesky_ex(S @ S.mT)
    if bool(info):  # singular core: the limit of the flow does not exist, the pseudo-inverse stays finite
        return G @ torch.linalg.pinv(S @ S.mT, hermitian=True)
    return G @ torch.cholesky_inverse(L)


def steps_straight(optimizer: torch.optim.Optimizer, U: nn.Parameter) -> bool:
    """Return whether the optimizer moves U along its gradient and momentum only, so that tangents stay tangents."""
    if type(optimizer) is not torch.optim.SGD:
        return False
    return not any(
        group["weight_decay"] and any(p is U for p in group["params"]) for group in optimizer.param_groups
    )
