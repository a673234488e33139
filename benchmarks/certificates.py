"""Certificates against attacks: no certified sample may be broken at its radius; and how close the bounds are.

    python benchmarks/certificates.py [--data DIR] [--n 200] [--epochs 3] [--steps 200] [--seed 0] [--out PATH]

Nets with convolutions, stride, overlapping pooling, residual branches and batch norm are trained on MNIST
(``--data``) or, without a folder, on the images inside the package. "bounded" nets have every layer scaled to a norm
of at most 1 by its own bound while they are trained, which makes the certificates worth something; "free" nets are as
usual. Each net is certified on n test images, and each image attacked within its own radius:

    PGD        on the margin in L2, from 5 random starts, 3 times from the image; outside the box as well
    FMN        the nearest fooling point; its distance over the radius says how much a certificate leaves
    APGD, Square, LowRankPGD, Noise    at the radius of the least certified image of each tenth

The second table compares bounds on random convolutions with the norm of the operator written out as a matrix.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grid import mistakes
from ironrank.attacks import APGD, FMN, LowRankPGD, Noise, Square
from ironrank.certificates import Convolution, certify
from ironrank.certificates.walk import Walk
from ironrank.data import MNIST, FashionSmall, Images
from ironrank.files import write_json
from ironrank.models.blocks import BasicBlock, PreActBlock
from ironrank.surgery import factorize


def strided() -> list[nn.Module]:
    return [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)]  # fmt: skip


def pooled() -> list[nn.Module]:
    return [nn.Conv2d(1, 8, 5), nn.MaxPool2d(3, 2), nn.LeakyReLU(0.1), nn.Conv2d(8, 16, 3, padding=1), nn.AvgPool2d(2),
            nn.GELU(), nn.Flatten(), nn.Linear(400, 10)]  # fmt: skip


def residual() -> list[nn.Module]:
    return [nn.Conv2d(1, 8, 4, 4), BasicBlock(8, 8, 1, 0.0), PreActBlock(8, 16, 2, 0.0), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 10)]  # fmt: skip


def low_rank() -> list[nn.Module]:
    net = factorize(nn.Sequential(*strided()), keep=0.3, exclude=["7"], core=False)
    return list(net)


NETS: dict[str, tuple[Callable[[], list[nn.Module]], bool]] = {
    "strided, bounded": (strided, True),
    "strided, free": (strided, False),
    "pooled, bounded": (pooled, True),
    "pooled, free": (pooled, False),
    "residual with batch norm, free": (residual, False),
    "low-rank, free": (low_rank, False),
}

OTHERS: dict[type, Callable[[int], dict[str, Any]]] = {
    APGD: lambda steps: {"steps": steps},
    Square: lambda steps: {"queries": 5 * steps},
    LowRankPGD: lambda steps: {"steps": steps},
    Noise: lambda steps: {"draws": 5 * steps},
}
OPERATORS = ((8, 8, 1, "zeros"), (8, 8, 2, "zeros"), (16, 4, 1, "zeros"), (12, 4, 1, "circular"),
             (12, 4, 1, "reflect"), (12, 4, 2, "replicate"), (28, 1, 1, "zeros"))  # fmt: skip


def trained(
    make: Callable[[], list[nn.Module]], bounded: bool, images: Images, epochs: int, seed: int
) -> nn.Module:
    """Train by Adam on the cross-entropy; bounded nets on 20 times their logits."""
    torch.manual_seed(seed)
    net = nn.Sequential(*make())
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=0.0 if bounded else 1e-4)
    for step in range(epochs * len(images) // 100):
        if bounded and step % 20 == 0:
            bound(net, images)
        x, y = draw(images, 100)
        optimizer.zero_grad()
        F.cross_entropy((20 if bounded else 1) * net(x), y).backward()
        optimizer.step()
    if bounded:
        bound(net, images)
    return net.eval()


def draw(images: Images, n: int) -> tuple[Tensor, Tensor]:
    chosen = torch.randint(0, len(images), (n,))
    return images.pixels(chosen), images.y[chosen]


@torch.no_grad()
def bound(net: nn.Sequential, images: Images) -> None:
    """Scale every layer by its bound, to a norm of 1."""
    net.eval()
    walk = Walk(net)
    walk(images.pixels(torch.tensor([0])).double())
    bounds = {row["name"]: row["bound"] for row in walk.rows()}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.div_(bounds[name])
    net.train()


def climbed(
    net: nn.Module, x: Tensor, y: Tensor, eps: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Return which samples PGD in L2 breaks, each within a radius of its own (b,)."""
    each, broken = eps.view(-1, 1, 1, 1), torch.zeros(len(x), dtype=torch.bool)
    for restart in range(8):
        start = torch.randn(x.shape, generator=generator) if restart < 5 else 1e-3 * torch.ones_like(x)
        delta = each * F.normalize(start.flatten(1)).view_as(x) * (1.0 if restart < 5 else 0.01)
        for step in range(steps):
            point = (x + delta).requires_grad_()
            logits = net(point)
            margin = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) - logits.gather(
                1, y.unsqueeze(1)
            ).squeeze(1)
            broken |= (margin >= 0) & ((point - x).double().flatten(1).norm(dim=1) <= eps)
            (gradient,) = torch.autograd.grad(margin.sum(), point)
            length = each * (0.5 if restart % 2 else 5 / steps) * (1 - step / steps)
            delta = delta + length * F.normalize(gradient.flatten(1), eps=1e-30).view_as(x)
            delta = delta * (each / delta.flatten(1).norm(dim=1).view_as(each)).clamp(max=1) * (1 - 2e-7)
    return broken


def attacked(net: nn.Module, images: Images, radius: Tensor, steps: int, seed: int) -> dict[str, Any]:
    """Attack the certified images at their radii; count what breaks."""
    chosen = (radius > 0).nonzero().squeeze(1)
    x, y, eps, generator = (
        images.pixels(chosen),
        images.y[chosen],
        radius[chosen],
        torch.Generator().manual_seed(seed),
    )
    broken = {"PGD": int(climbed(net, x, y, eps.float(), steps, generator).sum())}
    near = FMN(norm="L2", steps=steps).distances(net, x, y, generator=generator)
    broken["FMN"] = int((near.double() < eps).sum())
    for kind, options in OTHERS.items():
        found = 0
        for part in eps.argsort().tensor_split(min(10, len(eps))):
            attack = kind(norm="L2", eps=eps[part].min().item() * (1 - 1e-6), **options(steps))
            found += int((net(attack(net, x[part], y[part], generator=generator)).argmax(1) != y[part]).sum())
        broken[kind.__name__] = found
    ratio = (near.double() / eps)[near.isfinite()]
    return {
        "attacked": len(chosen),
        "broken": broken,
        "fmn_over_radius": ratio.median().item() if len(ratio) else None,
    }


def nets(train: Images, test: Images, epochs: int, steps: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for name, (make, bounded) in NETS.items():
        net = trained(make, bounded, train, epochs, seed)
        found = certify(net, test, (0.1, 0.3, 0.5, 36 / 255))
        row = {key: found[key] for key in ("verdict", "clean", "radii", "certified", "median_radius", "n")}
        row |= {
            "name": name,
            "lipschitz": found["lipschitz"]["global"],
            "rounding": found["rounding"]["logits"],
        }
        rows.append(
            row | attacked(net, test, torch.tensor(found["radius"], dtype=torch.float64), steps, seed)
        )
        print(f"{name}: {rows[-1]}", file=sys.stderr)
    return rows


def convolutions(seed: int) -> list[dict[str, Any]]:
    """Bounds on random 3 x 3 convolutions over the norm of the operator as a matrix, by LAPACK."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for side, channels, stride, mode in OPERATORS:
        kernel = torch.randn(2 * channels, channels, 3, 3, generator=generator, dtype=torch.float64)
        op = Convolution(kernel, (side, side), (stride,) * 2, ((1, 1), (1, 1)), (1, 1), mode)
        units = torch.eye(channels * side**2, dtype=torch.float64).reshape(-1, channels, side, side)
        norm = torch.linalg.svdvals(op.apply(units).flatten(1))[0].item()
        rows.append({"side": side, "channels": channels, "stride": stride, "padding": mode, "norm": norm,
                     "excess": op.norm() / norm - 1, "excess_frequencies": op.norm(work=0) / norm - 1})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with MNIST; by default the images inside the package")
    parser.add_argument("--n", type=int, default=200, help="test images")
    parser.add_argument("--train", type=int, default=0, help="training images; 0 for all")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="steps of each attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    options = parser.parse_args()
    data = MNIST(folder=options.data) if options.data else FashionSmall()
    train, test = data.load("train"), data.load("test").first(options.n)
    train = train.first(options.train) if options.train else train
    result = {
        "command": "python benchmarks/certificates.py " + " ".join(sys.argv[1:]),
        "data": data.name,
        "convolutions": convolutions(options.seed),
        "nets": nets(train, test, options.epochs, options.steps, options.seed),
    }
    for row in result["convolutions"]:
        print("{side} x {side}, {channels} channels, stride {stride}, {padding}: {norm:.4f}, +{excess:.4%}, "
              "frequencies alone +{excess_frequencies:.2%}".format(**row))  # fmt: skip
    for row in result["nets"]:
        print(f"{row['name']}: clean {row['clean']:.1%}, certified {row['certified']} at {row['radii']}, median radius "
              f"{row['median_radius']:.3g}, {row['attacked']} attacked, broken {row['broken']}, "
              f"FMN / radius {row['fmn_over_radius']}")  # fmt: skip
    if options.out:
        write_json(options.out, result)
    if any(any(row["broken"].values()) for row in result["nets"]):
        sys.exit("a certified sample was broken: the certificate is unsound")


if __name__ == "__main__":
    with mistakes():
        main()
