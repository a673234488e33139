r"""Spectral weakness map: which directions of the image carry a net's sensitivity, and where its layers amplify them.

    layers        of each: largest singular value, stable rank ||W||_F^2 / ||W||_2^2, condition number, spectrum
    compositions  of each layer a and the next one b: alignment ||B A|| / (||B|| ||A||) in (0, 1]. 1 where what a
                  amplifies most is what b amplifies most; A has the channels between them as rows, B as columns, and
                  the activation between is left out
    jacobian      J (classes, pixels) of the logits, image by image: norms; and the mean over images, whose right
                  singular vectors are the directions that move the logits of all images alike
    margins       gradients of f_y - max_j f_j, each of length 1, as rows of a matrix: the share of their energy in the
                  first k right singular vectors is k / pixels where no direction is shared, and 1 where k explain all
    universal     one perturbation for all images (`ironrank.attacks.Universal`): found on one half of them, tried on
                  the other, against noise of the same size; counted are images that are right without it, too

A compact net has few directions, and what is shared between images is what a universal perturbation uses; a condition
number near 1 keeps a layer from preferring some. Two nets, such as one before and after conditioning, are compared
layer by layer. The net is the deployed one, in evaluation mode; singular values of layers are those of its factors.

Source of the question: Barsbey et al., "On the interaction of compressibility and adversarial robustness", 2025
(abstract read). The measures are defined here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.attacks.threat import NORMS, check_radius, steepest
from ironrank.attacks.universal import Universal, right_under, universal
from ironrank.data import Data, Images, images_of
from ironrank.data.seeds import mix
from ironrank.errors import IronrankError
from ironrank.judge.accuracy import batches
from ironrank.judge.evaluate import describe_layer
from ironrank.judge.first_look import look_at
from ironrank.layers import Factored, frozen
from ironrank.linalg import singular_values
from ironrank.linalg.precision import no_tf32
from ironrank.linalg.projection import leading
from ironrank.surgery import deploy, weighted_layers

BATCH = 50
Arrays = dict[str, Tensor]


@no_tf32()
def weakness(
    model: nn.Module,
    images: Data,
    *,
    before: nn.Module | None = None,
    eps: float = 8 / 255,
    norm: str = "Linf",
    directions: int = 8,
    steps: int = 30,
    seed: int = 0,
) -> tuple[dict[str, Any], Arrays]:
    """Map the sensitivity of a net.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes); layers may be factored. It is left as it is.
        images: At least two images, or what `ironrank.data.images_of` makes images of; a hundred give a map, more a
            steadier one.
        before: A net of the same architecture to compare the layers with, such as the start of a conditioning.
        eps: Radius of the universal perturbation, pixel units.
        norm: "Linf" or "L2".
        directions: How many directions are returned, at most.
        steps: Steps of the universal perturbation.
        seed: Seed of the noise.

    Returns:
        Plain values: ``layers``, each with ``name``, ``form``, ``shape``, ``rank``, ``norm``, ``stable_rank``,
        ``cond``, ``singular_values``, and ``before`` (``norm``, ``stable_rank``, ``cond``) where there is such a
        layer; ``compositions``; ``jacobian`` with ``mean`` and ``largest`` norm over images, and ``of_mean``, the
        singular values of the mean; ``margins`` with ``energy``, the shares of the first k directions; ``universal``;
        ``n``. And the directions as arrays: ``jacobian`` and ``margins`` (k, c, h, w), of length 1; ``universal`` (c,
        h, w).

    Raises:
        IronrankError: If there are too few images, or the norm has another name.
    """
    images = images_of(images)
    if len(images) < 2 or norm not in NORMS or directions < 1 or not eps > 0:
        raise IronrankError(
            f"weakness on {len(images)} images, norm={norm!r}, eps={eps}, directions={directions}: at least two "
            f"images, a norm of {', '.join(NORMS)}, eps above 0 and one direction are needed"
        )
    check_radius(norm, eps)
    net = deploy(model).eval()
    look_at(net, images, "weakness")
    perturbed, perturbation = _universal(net, images, eps, norm, steps, seed)
    with evaluation_mode(net), frozen(net):
        jacobian, jacobian_directions = _jacobian(net, images, directions)
        margins, margin_directions = _margins(net, images, directions)
    found = {
        "layers": _layers(model, before),
        "compositions": list(_compositions(model)),
        "jacobian": jacobian,
        "margins": margins,
        "universal": perturbed,
        "n": len(images),
        "seed": seed,
    }
    return found, {"jacobian": jacobian_directions, "margins": margin_directions, "universal": perturbation}


def _layers(model: nn.Module, before: nn.Module | None) -> list[dict[str, Any]]:
    earlier = {} if before is None else {name: _spread(layer) for name, layer in weighted_layers(before)}
    rows = []
    for name, layer in weighted_layers(model):
        described = describe_layer(name, layer)
        kept = {key: described[key] for key in ("name", "form", "shape", "rank", "cond", "singular_values")}
        rows.append(kept | _spread(layer) | ({"before": earlier[name]} if name in earlier else {}))
    return rows


def _spread(layer: nn.Module) -> dict[str, float]:
    described = describe_layer("", layer)
    s = singular_values(_weight(layer).flatten(1))
    return {
        "norm": s[0].item(),
        "stable_rank": (s.square().sum() / s[0].square()).item(),
        "cond": described["cond"],
    }


def _weight(layer: Any) -> Tensor:
    """Return the weight (n, c, ...) of a dense or factored layer."""
    return (layer.dense() if isinstance(layer, Factored) else layer.weight).detach()


def _compositions(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the alignment of each layer and the next one whose inputs are its outputs, or pixels of them."""
    for (first, a), (second, b) in pairwise(weighted_layers(model)):
        A, weight = _weight(a).flatten(1).double(), _weight(b).double()
        pixels, rest = divmod(weight.shape[1], A.shape[0])
        if rest or (pixels > 1 and weight.dim() > 2):
            continue
        # inputs of a linear layer after flattening are (channels, pixels)
        B = weight.reshape(weight.shape[0], A.shape[0], -1).transpose(1, 2).flatten(0, 1)
        product = singular_values(_narrow(B) @ A)
        norms = singular_values(A)[0] * singular_values(B)[0]
        yield {
            "first": first, "second": second, "alignment": (product[0] / norms).item(), "norm": product[0].item(),
            "stable_rank": (product.square().sum() / product[0].square()).item(),
        }  # fmt: skip


def _narrow(B: Tensor) -> Tensor:
    """Return a matrix of as few rows as B has columns, with the same products' singular values."""
    return torch.linalg.qr(B, mode="r").R if B.shape[0] > B.shape[1] else B


def _jacobian(net: nn.Module, images: Images, directions: int) -> tuple[dict[str, Any], Tensor]:
    total: Any = 0
    norms: list[Tensor] = []
    for x, _ in batches(images, BATCH):
        x = x.contiguous().requires_grad_()
        logits = net(x)
        rows = [
            torch.autograd.grad(logits[:, j].sum(), x, retain_graph=True)[0].flatten(1)
            for j in range(logits.shape[1])
        ]
        J = torch.stack(rows, 1).double()  # (b, classes, pixels)
        total = total + J.sum(0)
        norms.append(singular_values(J)[:, 0])
    each = torch.cat(norms)
    mean = total / len(images)
    result = {
        "mean": each.mean().item(),
        "largest": each.max().item(),
        "of_mean": singular_values(mean).tolist(),
    }
    return result, _directions(mean, images, directions)


def _margins(net: nn.Module, images: Images, directions: int) -> tuple[dict[str, Any], Tensor]:
    found = []
    for x, y in batches(images, BATCH):
        x = x.contiguous().requires_grad_()
        (gradient,) = torch.autograd.grad(_margin(net(x), y).sum(), x)
        found.append(steepest(gradient, "L2").flatten(1).double())
    G = torch.cat(found)
    s = singular_values(G).square()
    energy = (s.cumsum(0) / s.sum().clamp_min(torch.finfo(s.dtype).tiny))[:directions]
    return {"energy": energy.tolist(), "pixels": G.shape[1]}, _directions(G, images, directions)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return ``f_y - max_j f_j`` over the other classes (b,)."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


def _directions(rows: Tensor, images: Images, number: int) -> Tensor:
    """Return the leading right singular vectors of rows (n, pixels) as images (k, c, h, w)."""
    shape = images.pixels(torch.tensor([0])).shape[1:]
    return leading(rows.mT, min(number, *rows.shape)).mT.reshape(-1, *shape).float().contiguous()


def _universal(
    net: nn.Module, images: Images, eps: float, norm: str, steps: int, seed: int
) -> tuple[dict[str, Any], Tensor]:
    """Make one perturbation on the first half of the images, and try it on the second."""
    half = len(images) // 2
    made, tried = images.first(half), images.take(torch.arange(half, len(images)))
    settings = Universal(norm=norm, eps=eps, steps=steps)
    found = universal(net, made, tried, settings, seed=mix(seed, "universal"))
    generator = torch.Generator().manual_seed(mix(seed, "weakness"))
    draw = torch.randn((1, *found.perturbation.shape), generator=generator).to(found.perturbation)
    x = tried.pixels(torch.arange(len(tried)))
    under_noise = found.right & right_under(net, x, tried.y, eps * steepest(draw, norm)).cpu()
    result = {
        "eps": eps, "norm": norm, "steps": steps, "made_on": half, "tried_on": len(tried),
        "clean": _share(found.right), "accuracy": _share(found.survivors), "noise": _share(under_noise),
    }  # fmt: skip
    return result, found.perturbation.detach()


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
