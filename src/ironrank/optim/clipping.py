"""Clipping: no step of an optimizer follows a gradient that is longer than a given length.

    symbol   meaning
    g        all gradients that the coming step follows, taken as one vector
    c        ``clip``, the greatest norm that g may have

    (1)  g <- g min(1, c / |g|)

One factor for all parameters keeps the direction of g, so that a step of plain SGD is at most ``lr c`` long.

Where it happens: right before each ``optimizer.step()``. By then gradients are averaged over processes, and the method
has done to them what it does: CondLR has made them tangent and divided by the core, which is what makes long steps
where a core is nearly singular; ADMM has added its pull; DLRT and RobustDLRT have dropped the gradients of factors that
do not move. So the norm is one of what moves, and nothing that follows makes the step longer but weight decay and
momentum, which belong to the optimizer. A tangent stays tangent, since all of it is multiplied by one number.

* DLRT steps twice, for K with L and for the core with all else; each of both is clipped by itself.
* The first gradient of a cycle of RobustDLRT is not clipped: only its directions count there.
* Methods on the Stiefel manifold move their weights themselves. They clip the gradient of the loss, of these and all
  other weights together, before they make it tangent; their own momentum comes after, as an optimizer's does.
* While scores are trained no optimizer steps, and nothing is clipped.

Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", 2013, for (1). Its place
among what methods do to gradients is ours.
"""

from __future__ import annotations

import torch


def clip_steps(optimizer: torch.optim.Optimizer, clip: float) -> None:
    """Let no step of an optimizer follow a gradient longer than ``clip``, from now on.

    In a loop of your own, call it after `Method.attach`, so that it comes after what the method does.

    Args:
        optimizer: Any torch optimizer.
        clip: c, above 0; each group remembers it.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> clip_steps(optimizer, 1.0)
        >>> weight.grad = torch.tensor([300.0, -400.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.3000,  0.4000])
    """
    for group in optimizer.param_groups:
        group["clip"] = clip
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: clip_gradients(optimizer))


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Shorten the gradients of an optimizer's parameters where they are too long: equation (1), in place.

    Args:
        optimizer: The optimizer; without `clip_steps` nothing happens.

    Raises:
        FloatingPointError: If a gradient is not finite: no factor makes such a step shorter.
    """
    clip = optimizer.param_groups[0].get("clip")
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not clip or not gradients:
        return
    # in float64: the square of a huge float32 would be infinite
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if not bool(torch.isfinite(norm)):
        raise FloatingPointError("the gradient is not finite")
    if norm > clip:
        for gradient in gradients:
            gradient.mul_(float(clip / norm))
