r"""Randomized smoothing: a certificate in L2 for any net, with a confidence instead of a proof.

The smoothed net g gives an image the class that the net gives most often under Gaussian noise. If that class has a
probability of at least p > 1/2, g gives it to every image within

    sigma Phi^{-1}(p)

For each image: ``n0`` draws choose a class, ``n`` others count it, and p is the lower Clopper-Pearson limit of the
count at confidence ``1 - alpha``. Where it is not above a half, g abstains. So each radius is too large with a
probability of at most alpha, over the draws; the net that is certified is g, which costs many passes for each image,
and not the net itself.

Noise is added to pixels without cutting to [0, 1], since cut noise is no longer Gaussian. All draws come from the
seed and the image's number, so that no image depends on the batch it was in. Noise and net are computed in float32,
which the theorem does not know of.

Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.certificates.binomial import lower_limit
from ironrank.certificates.certify import RADII, versions
from ironrank.data import Data, images_of
from ironrank.data.seeds import mix
from ironrank.errors import IronrankError
from ironrank.judge.first_look import look_at
from ironrank.judge.interval import wilson
from ironrank.layers import frozen
from ironrank.linalg.precision import no_tf32

BATCH = 256  # noisy images at a time; what is drawn depends on it
ABSTAINS = -1


@no_tf32()
@torch.no_grad()
def smooth(
    model: nn.Module,
    images: Data,
    sigma: float,
    radii: Sequence[float] = RADII,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
) -> dict[str, Any]:
    """Certify the smoothed form of a net on images.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes); it should have been trained under such noise. It is left
            as it is.
        images: The images, or what `ironrank.data.images_of` makes images of.
        sigma: Standard deviation of the noise, in pixel units.
        radii: Radii in pixel units at which the certified accuracy is stated.
        n0: Draws that choose the class.
        n: Draws that count it.
        alpha: Probability that the radius of an image is too large, at most.
        seed: Seed of the noise.

    Returns:
        Plain values: ``sigma``, ``n0``, ``n``, ``alpha``, ``seed``; ``radii``; ``certified``, the fraction of images
        whose smoothed class is right and holds beyond each radius, and its ``interval``; ``clean``, the fraction
        whose smoothed class is right; ``abstained``, the fraction without a class; ``radius`` of each image, 0 where
        it is wrong or abstains; ``largest``, the largest radius that n draws can certify; ``versions``.

    Raises:
        IronrankError: If a setting is out of bounds.
    """
    images = images_of(images)
    _check(sigma, n0, n, alpha)
    look_at(model, images, "smooth")
    found = []
    with evaluation_mode(model), frozen(model):
        for i in range(len(images)):
            generator = torch.Generator(images.device).manual_seed(mix(seed, "smooth", i))
            x = images.pixels(torch.tensor([i]))
            found.append(_one(model, x, sigma, n0, n, alpha, generator))
    classes = torch.tensor([label for label, _ in found])
    right = classes == images.y.cpu()
    radius = torch.tensor([r for _, r in found], dtype=torch.float64) * right
    certified = [(radius > r).double().mean().item() for r in radii]
    return {
        "sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "seed": seed, "radii": list(radii),
        "certified": certified, "interval": [list(wilson(share, len(images))) for share in certified],
        "clean": right.double().mean().item(), "abstained": (classes == ABSTAINS).double().mean().item(),
        "radius": radius.tolist(), "largest": _radius(n, n, sigma, alpha), "images": len(images),
        "versions": versions(),
    }  # fmt: skip


def _check(sigma: float, n0: int, n: int, alpha: float) -> None:
    if not (0 < sigma < math.inf and min(n0, n) >= 1 and 0 < alpha < 1):
        raise IronrankError(
            f"sigma={sigma}, n0={n0}, n={n}, alpha={alpha}: allowed is a finite sigma above 0, one draw or "
            "more, and alpha between 0 and 1"
        )


def _one(
    model: nn.Module,
    x: Tensor,
    sigma: float,
    n0: int,
    n: int,
    alpha: float,
    generator: torch.Generator,
) -> tuple[int, float]:
    """Return class and radius of one image; ``ABSTAINS`` and 0 where there is none."""
    label = int(_counts(model, x, sigma, n0, generator).argmax())
    hits = int(_counts(model, x, sigma, n, generator)[label])
    radius = _radius(hits, n, sigma, alpha)
    return (label, radius) if radius > 0 else (ABSTAINS, 0.0)


def _counts(model: nn.Module, x: Tensor, sigma: float, draws: int, generator: torch.Generator) -> Tensor:
    """Return how often each class is the largest logit, for one image (1, c, h, w) under noise; NaN counts for none."""
    total: Any = 0
    for start in range(0, draws, BATCH):
        size = (min(BATCH, draws - start), *x.shape[1:])
        noise = torch.randn(size, generator=generator, device=x.device)
        logits = model(x + sigma * noise)
        best, classes = logits.max(1)
        total = total + classes[best.isfinite()].bincount(minlength=logits.shape[1])
    return total


def _radius(hits: int, n: int, sigma: float, alpha: float) -> float:
    limit = lower_limit(hits, n, alpha)
    if limit <= 0.5:
        return 0.0
    return sigma * torch.special.ndtri(torch.tensor(limit, dtype=torch.float64)).item() * (1 - 1e-9)
