"""AutoAttack through the audit, by the package alone, and our own attacks without it, on trained nets.

    python benchmarks/autoattack.py --weights DIR --data DIR [--nets NAME,...] [--n 500] [--out runs/autoattack]

For each net of `NETS`, on the first n test images:

1. the audit at level standard, which runs AutoAttack on every image that is right, and ours on what is left;
2. `pyautoattack` by itself (``run_standard_evaluation``) on the same batches with the same seed: image by image, the
   same must survive;
3. the audit without AutoAttack: by how much does our own worst case differ from AutoAttack's?

A net that is done is not done again; within one, the audits go on where they stopped. ``table.md`` and ``table.json``
hold what is there. `DIR` of the weights holds ``NAME.safetensors`` with the names of `NETS`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyautoattack
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grid import markdown_table, mistakes, write_table
from ironrank.data import CIFAR10, MNIST, Dataset, Images
from ironrank.files import read_json, read_tensors, write_json
from ironrank.judge.audit import audit
from ironrank.judge.ensemble import LEVELS
from ironrank.judge.samples import blocks_of

SEED = 0


class Normalized(nn.Module):
    """A net on pixels in [0, 1] that takes them less a mean, over a deviation."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, classes) of pixels (b, c, h, w)."""
        return self.net((x - self.mean) / self.std)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, without batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if stride > 1 else nn.Sequential()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (b, c, h, w) of features."""
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class Residual(nn.Module):
    """The small residual nets that verifiers are compared on."""

    def __init__(self, width: int, stages: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 2, 1)
        self.stages = [f"layer{i + 1}" for i in range(stages)]
        for i, name in enumerate(self.stages):
            first = Block(width if i == 0 else 2 * width, 2 * width, 2)
            self.add_module(name, nn.Sequential(first, Block(2 * width, 2 * width, 1)))
        self.linear1 = nn.Linear(2 * width * (16 // 2**stages) ** 2, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, 10) of normalized pixels (b, 3, 32, 32)."""
        x = self.conv1(x).relu()
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def convolutional(channels: int, side: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * side**2, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def cifar(net: nn.Module, kind: str) -> nn.Module:
    if kind == "N1":
        return Normalized(net, (0.485, 0.456, 0.406), (0.225,) * 3)
    return Normalized(net, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


class Net(NamedTuple):
    """A trained net, the set that it is for, and the radius it is judged at."""

    make: Callable[[], nn.Module]
    data: type[Dataset]
    eps: tuple[int, int] | float

    @property
    def radius(self) -> float:
        """The radius in pixel units."""
        return self.eps if isinstance(self.eps, float) else self.eps[0] / self.eps[1]

    @property
    def words(self) -> str:
        """The radius as people write it."""
        return str(self.eps) if isinstance(self.eps, float) else f"{self.eps[0]}/{self.eps[1]}"


NETS = {
    "mnist_cnn16-32_pgd_linf0.3": Net(lambda: convolutional(1, 7), MNIST, 0.3),
    "mnist_cnn16-32_fgsm-rs_linf0.3": Net(lambda: convolutional(1, 7), MNIST, 0.3),
    "mnist_cnn16-32_provable_linf0.1": Net(lambda: convolutional(1, 7), MNIST, 0.1),
    "cifar10_cnn16-32_adv_linf2-255": Net(lambda: cifar(convolutional(3, 8), "N1"), CIFAR10, (2, 255)),
    "cifar10_cnn16-32_adv4": Net(lambda: cifar(convolutional(3, 8), "N1"), CIFAR10, (8, 255)),
    "cifar10_resnet2b_adv_linf2-255": Net(lambda: cifar(Residual(8, 1), "N2"), CIFAR10, (2, 255)),
    "cifar10_resnet4b_adv_linf2-255": Net(lambda: cifar(Residual(16, 2), "N2"), CIFAR10, (2, 255)),
}


def loaded(name: str, weights: Path) -> nn.Module:
    tensors, _ = read_tensors(weights / f"{name}.safetensors")
    net = NETS[name].make()
    (net.net if isinstance(net, Normalized) else net).load_state_dict(tensors)
    return net.eval()


def by_itself(net: nn.Module, images: Images, eps: float, blocks: list[slice]) -> Tensor:
    """Return what survives the package when nobody helps it, batch by batch, bool (n,)."""
    survived = []
    for block in blocks:
        part = images.take(torch.arange(len(images))[block])
        x = part.pixels(torch.arange(len(part)))
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            attack = pyautoattack.AutoAttack(net, norm="Linf", eps=eps, seed=SEED, version="standard")
            points, _ = attack.run_standard_evaluation(x, part.y, batch_size=len(x))
        with torch.no_grad():
            survived.append(net(points).argmax(1) == part.y)
    return torch.cat(survived)


def judged(name: str, options: argparse.Namespace) -> dict[str, Any]:
    net, what = loaded(name, options.weights), NETS[name]
    images = what.data(folder=str(options.data)).load("test").first(options.n)
    level, folder = LEVELS["standard"], options.out / name
    blocks = blocks_of(len(images), level.probe, level.block)
    whole = audit(net, images, eps=what.radius, level=level, seed=SEED, out=folder / "whole", n=0)
    found, _ = read_tensors(folder / "whole" / "audit.safetensors")
    ours = found["clean"] & ~found["autoattack.broken"]
    start = time.perf_counter()
    theirs = by_itself(net, images, what.radius, blocks)
    seconds = time.perf_counter() - start
    without = audit(net, images, eps=what.radius, level=replace(level, autoattack=False), seed=SEED,
                    out=folder / "without", n=0)  # fmt: skip
    own, _ = read_tensors(folder / "without" / "audit.safetensors")
    aa = next(row for row in whole["attacks"] if row["name"] == "autoattack")
    return {
        "net": name, "eps": what.words, "n": len(images), "batches": [block.stop - block.start for block in blocks],
        "clean": whole["clean"], "autoattack": ours.double().mean().item(),
        "package": theirs.double().mean().item(), "differ": int((ours != theirs).sum()),
        "own": own["standing"].double().mean().item(), "both": found["standing"].double().mean().item(),
        "only_autoattack": int((own["standing"] & ~ours).sum()),
        "only_own": int((ours & ~own["standing"]).sum()),
        "verdicts": [whole["verdict"]["text"], without["verdict"]["text"]],
        "seconds": {"autoattack": aa["seconds"], "package": seconds,
                    "own": sum(row["seconds"] for row in without["attacks"])},
        "versions": whole["versions"], "hardware": whole["hardware"],
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    columns = [
        "net",
        "eps",
        "images",
        "clean",
        "AutoAttack in the audit",
        "package by itself",
        "images that differ",
    ]
    columns += ["our attacks alone", "all together", "only AutoAttack breaks", "only ours break", "proven"]
    found = []
    for row in rows:
        shares = [f"{100 * row[key]:.1f} %" for key in ("autoattack", "package")]
        proven = "yes" if all(not text.startswith("not proven") for text in row["verdicts"]) else "no"
        found.append([row["net"], row["eps"], row["n"], f"{100 * row['clean']:.1f} %", *shares, row["differ"],
                 f"{100 * row['own']:.1f} %", f"{100 * row['both']:.1f} %", row["only_autoattack"], row["only_own"],
                 proven])  # fmt: skip
    return markdown_table(columns, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder with the nets' safetensors")
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST and CIFAR-10")
    parser.add_argument("--nets", default=",".join(NETS), help="names, separated by commas")
    parser.add_argument("--n", type=int, default=500, help="test images")
    parser.add_argument("--out", type=Path, default=Path("runs/autoattack"))
    options = parser.parse_args()
    for name in options.nets.split(","):
        path = options.out / f"{name}.json"
        if not path.is_file():
            write_json(path, judged(name, options))
        print(read_json(path), flush=True)
    paths = [options.out / f"{name}.json" for name in NETS]
    rows = [read_json(path) for path in paths if path.is_file()]
    write_table(options.out, {"rows": rows}, markdown(rows))


if __name__ == "__main__":
    with mistakes():
        main()
