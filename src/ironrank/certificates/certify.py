r"""Certificates: the radius around each image within which no change in L2 changes the class of the net as executed.

    f             logits of the exact net;  f^ those that float32 computes
    L_j           Lipschitz constant of f_y - f_j in the image
    E + s rho     bound on ||f^ - f|| within rho of the image

For every float32 image within rho of x, by the triangle inequality,

    f^_y - f^_j >= (f_y - f_j)(x) - L_j rho - sqrt(2) (E + s rho)

so that the class y holds within the radius

    min_j ((f_y - f_j)(x) - sqrt(2) E) / (L_j + sqrt(2) s)

Without knowing more, ``L_j = sqrt(2) L``. Where the net ends in a linear layer of rows w_j on a body of constant
L_body, ``L_j = ||w_y - w_j|| L_body`` holds as well; the smaller is taken. Images may be any float32 numbers: the box
[0, 1] is not used.

The net that is certified is the deployed one, in float32 (see `ironrank.certificates.walk`); a factored layer as
trained computes the same up to rounding.

Sources: Tsuzuku, Sato, Sugiyama, "Lipschitz-margin training", 2018 (radius); Leino, Wang, Fredrikson,
"Globally-robust neural networks", 2021 (pairs of classes). The account of rounding is ours; that certificates fail
without one: Murray, arXiv 2603.13334, 2026 (abstract read).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ironrank import __version__
from ironrank.certificates.convolution import Convolution
from ironrank.certificates.trace import Watch
from ironrank.certificates.values import Value
from ironrank.certificates.walk import Walk
from ironrank.data import Data, Images, images_of
from ironrank.errors import IronrankError
from ironrank.judge.accuracy import batches
from ironrank.judge.first_look import look_at
from ironrank.judge.interval import wilson
from ironrank.linalg.precision import no_tf32
from ironrank.surgery import deploy

RADII = (36 / 255, 72 / 255, 108 / 255)  # of the literature on certificates for images of 32 x 32
VACUOUS = 1 / 255  # a certificate of less than one grey level in one pixel says nothing
BATCH = 100
_DOUBLE = 1 + 1e-6  # the walk itself rounds in float64, 2e-9 of what float32 does


@no_tf32()
def certify(model: nn.Module, images: Data, radii: Sequence[float] = RADII) -> dict[str, Any]:
    """Certify a net on images: for each a radius in L2 within which its class cannot change.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes); layers may be factored. It is left as it is.
        images: The images, or what `ironrank.data.images_of` makes images of.
        radii: Radii in pixel units at which the certified accuracy is stated.

    Returns:
        Plain values: ``schema``; ``verdict``, "certified" or "vacuous"; ``reason``; ``clean`` and ``certified`` (for
        each of ``radii``) as fractions of ``n`` images, ``interval`` of each, 95 %; ``lipschitz`` with ``global``,
        ``body`` (up to the last linear layer; None if there is none) and ``layers``; ``radius`` of each image, 0
        where the net is wrong; ``median_radius`` of those that it gets right; ``rounding``; ``versions``.

    Raises:
        IronrankError: If a layer has no bound, or the net does not compute what its layers say.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4])), net[1].bias.data.zero_()
        >>> images = Images(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8), torch.tensor([1]))
        >>> round(certify(net, images)["radius"][0], 2)  # from (1, 1, 1, 1) to the plane through the origin
        2.0
    """
    images = images_of(images)
    _check(radii)
    net = deploy(model).eval().to(images.device)
    walk = Walk(net)
    probes = _probes(images)
    try:
        _walked(net, walk, probes)
    except (AttributeError, RuntimeError, TypeError) as reason:
        look_at(net, images, "certify")
        raise IronrankError(f"certify: {' '.join(str(reason).split())[:200]}") from None
    look_at(net, images, "certify")
    with torch.no_grad(), Watch():
        net(probes.clone())
    found = [_batch(net, walk, x, y) for x, y in batches(images, BATCH)]
    radius, right, error = (torch.cat(column) for column in zip(*found, strict=True))
    reached = [(radius > r).double().mean().item() for r in radii]
    vacuous = radius.max().item() < VACUOUS or not any(reached)
    n = len(images)
    return {
        "schema": 1,
        "verdict": "vacuous" if vacuous else "certified",
        "reason": _reason(radius, radii, reached),
        "clean": right.double().mean().item(),
        "radii": list(radii),
        "certified": reached,
        "interval": [list(wilson(share, n)) for share in reached],
        "n": n,
        "median_radius": radius[right].median().item() if bool(right.any()) else 0.0,
        "radius": radius.tolist(),
        "lipschitz": {"global": walk.lipschitz, "body": walk.body, "layers": walk.rows()},
        "rounding": {
            "arithmetic": "float32, any order of summation; not TF32, half precision or Winograd",
            "logits": error.max().item(),
            "logits_median": error.median().item(),
        },
        "smoothing": None,
        "versions": versions(),
    }


def _check(radii: Sequence[float]) -> None:
    if not radii or not all(math.isfinite(r) and r > 0 for r in radii):
        raise IronrankError(
            f"radii={tuple(radii)}: numbers above 0 in pixel units are needed, such as 36/255"
        )


@torch.no_grad()
def _batch(net: nn.Module, walk: Walk, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return radius, whether the class is right, and the bound on the rounding of the logits, for each image (b,)."""
    executed, logits = _walked(net, walk, x)
    radius = certified_radius(logits, y)
    return radius.cpu(), (executed.argmax(1) == y).cpu(), (logits.error * _DOUBLE).cpu()


@torch.no_grad()
def _walked(net: nn.Module, walk: Walk, x: Tensor) -> tuple[Tensor, Value]:
    """Return the logits (b, classes) as executed and as walked, which have to agree, in the batch and alone."""
    x = x.contiguous()
    together, alone = net(x.clone()).double(), net(x[:1].clone()).double()  # clones: it may work in place
    logits = walk(x.double())
    for executed in (together, alone):
        n = len(executed)
        agrees = executed.shape[1:] == logits.x.shape[1:] and bool(
            ((executed - logits.x[:n]).norm(dim=1) <= logits.error[:n] * _DOUBLE).all()
        )
        if not agrees:
            raise IronrankError(
                "no bound: the net computes other logits than its layers in float32 do; it is random, or of lower "
                "precision (TF32, half), or holds code that cannot be traced"
            )
    return together, logits


def _probes(images: Images) -> Tensor:
    """Return images that are not of the data, where units are on that may be off at all of those."""
    x = images.pixels(torch.arange(min(8, len(images))))
    draw = torch.Generator().manual_seed(0)
    near, any_ = torch.randn(x.shape, generator=draw), torch.rand(x.shape, generator=draw)
    return torch.cat([(x + 0.1 * near.to(x)).clamp(0, 1), any_.to(x)])


def certified_radius(logits: Value, y: Tensor) -> Tensor:
    """Return the radius within which each image keeps its class; see the top of this file.

    Args:
        logits: The end of a walk.
        y: Classes (b,).

    Returns:
        (b,), float64; 0 where the class is wrong, or not certain at the image itself.
    """
    constants = pair_constants(logits)[y]
    margin = (
        logits.x.gather(1, y.unsqueeze(1)) - logits.x - math.sqrt(2) * _DOUBLE * logits.error.unsqueeze(1)
    )
    radius = margin / (constants + math.sqrt(2) * _DOUBLE * logits.slope)
    radius = radius.scatter(1, y.unsqueeze(1), torch.inf)  # against itself
    radius = torch.minimum(radius.amin(1), torch.as_tensor(logits.room).to(radius))
    return (radius * (1 - 1e-9)).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)


def pair_constants(logits: Value) -> Tensor:
    """Return the Lipschitz constant of ``f_i - f_j`` for every pair of classes (classes, classes)."""
    classes = logits.x.shape[1]
    constants = logits.x.new_full((classes, classes), math.sqrt(2) * logits.lipschitz)
    if logits.source is not None and isinstance(logits.source[0], Convolution):
        rows, body = logits.source[0].kernel, logits.source[1]
        pairs = torch.stack([(row - rows).norm(dim=1) for row in rows])
        constants = torch.minimum(constants, pairs * (body * (1 + 1e-9)))
    return constants


def _reason(radius: Tensor, radii: Sequence[float], reached: Sequence[float]) -> str:
    largest = radius.max().item()
    if largest < VACUOUS:
        return f"the largest certified radius is {largest:.2g}, less than one grey level of one pixel"
    if not any(reached):
        return f"no image is certified at {min(radii):.3g}; the largest certified radius is {largest:.2g}"
    return f"{reached[0]:.1%} of {len(radius)} images hold against every L2 change of up to {radii[0]:.3g}"


def versions() -> dict[str, str]:
    """Return the versions that a result came from."""
    return {"ironrank": __version__, "torch": torch.__version__, "python": platform.python_version()}
