r"""Adversarial weight perturbation: the gradient is taken at weights that are a little worse.

    (1)  v_l = gamma ||w_l|| g_l / ||g_l||,   g the gradient of the loss on the attacked batch
    (2)  the loss is taken at w + v, v a constant; its gradient moves w

Norms are Frobenius norms of one weight tensor l. Biases and the vectors of batch norms stay as they are, and so do
weights that are exactly zero: they have been pruned, and v would bring them back. In a factored layer U, S and V are
perturbed one by one, each relative to its own norm: ours, the paper knows dense weights only. Their product moves by
about twice the share of a dense weight, and in the K and L steps of DLRT, whose bases have double width, by about four
times; choose gamma so much smaller where factored and dense nets are to meet the same adversary.

Source: Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization", 2020. There a proxy model is
moved and moved back; here the perturbed weights are passed to the model as arguments, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ironrank.attacks.threat import steepest
from ironrank.errors import IronrankError
from ironrank.objectives.base import Net


def perturbed(model: Net, loss: Callable[[Net], Tensor], gamma: float) -> Net:
    """Return the model at the weights w + v; gradients of what it computes reach w.

    Args:
        model: A module.
        loss: Maps the model to the loss that v makes larger.
        gamma: Norm of v relative to that of w, tensor by tensor.

    Returns:
        Maps pixels to logits.

    Raises:
        IronrankError: If the model is no module, or no gradient reaches its weights.
    """
    if not isinstance(model, nn.Module):
        raise IronrankError("awp on a function: a torch module is needed, whose weights can be perturbed")
    weights = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    with torch.enable_grad():
        value = loss(model)
    if not weights or not value.requires_grad:
        raise IronrankError("awp on a model without weights that learn: set awp=0")
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    moved = {name: w + _step(w.detach(), g, gamma)
             for (name, w), g in zip(weights.items(), gradients, strict=True) if g is not None}  # fmt: skip
    return lambda x: functional_call(model, moved, (x,))


def _step(w: Tensor, g: Tensor, gamma: float) -> Tensor:
    """Return v of equation (1); zero where the gradient is."""
    # not by the norm alone: squares of the tiny gradients of a saturated loss would vanish
    direction = steepest((g * (w != 0))[None], "L2")[0]
    return gamma * w.norm() * direction
