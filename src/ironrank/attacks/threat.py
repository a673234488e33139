r"""Threat models: which changes an attacker may make, as three functions on batches of pixels.

An attacker may move within :math:`\{x' : \|x' - x\|_p \le \epsilon\} \cap [0, 1]^d`, the norm taken over one
sample.

    norm   p          projection on the ball         steepest direction of length 1
    Linf   infinity   clamp each pixel               sign of the gradient
    L2     2          shrink to length eps           gradient / its length
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ironrank.errors import IronrankError

NORMS = ("Linf", "L2")


def check_radius(norm: str, eps: float, what: str = "eps") -> None:
    """Refuse a radius that is not meant in pixel units.

    Args:
        norm: "Linf" or "L2".
        eps: Radius.
        what: What it is called, for the error message.

    Raises:
        IronrankError: If the ball in Linf holds all images there are, and more.
    """
    if norm == "Linf" and eps > 1:
        meant = f"; {eps:g} of 255 steps is {eps:g}/255" if eps <= 255 else ""
        raise IronrankError(f"{what}={eps:g} in Linf: pixels lie in [0, 1], so at most 1 is allowed{meant}")


def project(point: Tensor, x: Tensor, eps: float, norm: str) -> Tensor:
    """Bring a point back into the ball around ``x`` and into the box [0, 1].

    For Linf this is the nearest point of the intersection. For L2 it is the projection on the ball, then on
    the box: allowed, since clamping moves no pixel away from ``x``, but not always the nearest.

    Args:
        point: Changed pixels (b, ...).
        x: Centre of the ball, pixels (b, ...) in [0, 1].
        eps: Radius, pixel units.
        norm: ``Linf`` or ``L2``.

    Returns:
        Allowed pixels (b, ...).

    Example:
        >>> project(torch.tensor([[0.9, -3.0]]), torch.tensor([[0.5, 0.05]]), 0.1, "Linf")
        tensor([[0.6000, 0.0000]])
    """
    return (x + shorten(point - x, eps, norm)).clamp(0, 1)


def shorten(delta: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """Bring a change into the ball around zero, wherever the box is.

    Args:
        delta: Changes (b, ...).
        eps: Radius, pixel units, above 0; or one for each sample (b, 1, ...).
        norm: ``Linf`` or ``L2``.

    Returns:
        The nearest changes of length at most eps.

    Example:
        >>> shorten(torch.tensor([[3.0, -4.0]]), 1.0, "L2")
        tensor([[ 0.6000, -0.8000]])
    """
    if norm == "Linf":
        return delta.clamp(-eps, eps)  # type: ignore[arg-type]
    size = length(delta)
    return delta * (eps / torch.maximum(size, torch.as_tensor(eps, dtype=size.dtype, device=size.device)))


def random_start(x: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    r"""Draw a point uniformly from the ball around ``x``, then clamp it to the box.

    For L2 the direction is that of a normal vector, the length :math:`\epsilon u^{1/d}`, :math:`u` uniform.

    Args:
        x: Centre, pixels (b, ...) in [0, 1].
        eps: Radius, pixel units.
        norm: ``Linf`` or ``L2``.
        generator: Source of randomness, on the device of ``x``.

    Returns:
        Allowed pixels (b, ...).
    """
    like: dict[str, Any] = {"generator": generator, "device": x.device, "dtype": x.dtype}
    if norm == "Linf":
        delta = torch.rand(x.shape, **like) * (2 * eps) - eps
    else:
        radius = torch.rand((len(x), *[1] * (x.dim() - 1)), **like) ** (1 / x[0].numel())
        delta = steepest(torch.randn(x.shape, **like), norm) * (eps * radius)
    return (x + delta).clamp(0, 1)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """Return the direction of length 1 in which a linear function with this gradient grows most.

    Args:
        gradient: Gradients (b, ...), of any scale: tiny ones of a saturated loss count in full, and a number that
            is none counts as zero.
        norm: ``Linf`` or ``L2``.

    Returns:
        Directions (b, ...); zero where the gradient of a sample is zero.
    """
    gradient = torch.nan_to_num(gradient)
    if norm == "Linf":
        return gradient.sign()
    tiny = torch.finfo(gradient.dtype).tiny
    largest = gradient.abs().flatten(1).amax(1).clamp_min(tiny)
    gradient = gradient / per_sample(largest, gradient)  # squares of tiny numbers would vanish
    return gradient / length(gradient).clamp_min(tiny)


def length(delta: Tensor, norm: str = "L2") -> Tensor:
    """Return the length of each change.

    Args:
        delta: Changes (b, ...).
        norm: ``Linf`` or ``L2``.

    Returns:
        Lengths (b, 1, ...), pixel units.
    """
    order = torch.inf if norm == "Linf" else 2
    return per_sample(torch.linalg.vector_norm(delta.flatten(1), order, dim=1), delta)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return one value for each sample (b,) shaped (b, 1, ...), to go with pixels ``like`` (b, ...)."""
    return values.view(-1, *[1] * (like.dim() - 1))
