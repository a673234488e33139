"""How the published PGD stalls on a net that is sure of itself: the same net with larger logits.

    python benchmarks/stalled_pgd.py runs/vgg16-table/c50_t0.1_s0 runs/vgg16-table/dense_s0 --out runs/stalled-pgd
        [--n 200] [--eps 0.1 0.2 0.3] [--times 1 3 10 30] [--published DIR]

takes nets that `vgg16_table.py` trained and multiplies their logits. That changes no decision, so no robustness either;
but the gradient of cross-entropy fades where one class takes all the probability. Attacked is by `pgd_as_published`,
which divides gradients by their norm plus 1e-10, and by our PGD of as many steps, which divides them by their norm.
`table.json` and `table.md` hold accuracy under both, and the median margin of the logits, of the true class over the
largest other.

``--published DIR`` takes a checkout of the published code (github.com/COMPiLELab/CondLR at bf658e0, AGPL-3.0, imported
from there at run time; pandas and tqdm, which its training loop wants, need not be there) and does nothing else than to
run its attack beside `pgd_as_published` on the first 64 images, both without a random start, and to print what they
leave, how far apart their images are, and how far the published attack moved them (L2).
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from grid import markdown_table, mean, mistakes, write_table
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.attacks.losses import margin
from ironrank.data import Images
from ironrank.judge import withstood
from ironrank.judge.accuracy import batches
from ironrank.judge.evaluate import for_inference
from ironrank.training.run import read_run
from published_condlr import open_checkout, stand_in
from vgg16_table import pgd_as_published


class Louder(nn.Module):
    """A net with its logits times a constant."""

    def __init__(self, net: nn.Module, times: float) -> None:
        super().__init__()
        self.net, self.times = net, times

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (b, c, h, w) to logits (b, classes)."""
        return self.times * self.net(x)


def measure(folder: Path, n: int, radii: list[float], factors: list[float]) -> dict[str, Any]:
    """Attack the deployed form of the best epoch of a run, its logits as they are and larger."""
    run = read_run(folder)
    net = for_inference(load_model(folder))
    images = run.data.load("test").first(n)
    std = torch.tensor(run.data.spec.std)[:, None, None]
    rows = []
    for times in factors:
        louder = Louder(net, times)
        published, ours = {}, {}
        for eps in radii:
            stalling = functools.partial(pgd_as_published, eps=eps, std=std)
            published[f"{eps:g}"] = mean(withstood(louder, images, stalling, 0))
            plain = PGD(norm="L2", eps=eps, steps=10, step_size=eps / 8)
            ours[f"{eps:g}"] = mean(withstood(louder, images, plain, 0))
        rows.append(
            {"times": times, "margin": median_margin(louder, images), "published": published, "ours": ours}
        )
    return {"net": folder.name, "rows": rows}


@torch.no_grad()
def median_margin(net: nn.Module, images: Images) -> float:
    """Return the median, over the images, of the true class's logit less the largest other."""
    return -statistics.median([lead for x, y in batches(images) for lead in margin(net(x), y).tolist()])


def published_attack(checkout: Path) -> Callable[..., Tensor]:
    """Import the published PGD in L2; its module asks for pandas and tqdm, which only its training loop calls."""
    open_checkout(checkout)
    missing = [package for package in ("pandas", "tqdm") if stand_in(package, "tqdm")]
    attack = importlib.import_module("CondLR_utils.trainer_USV").pgd_l2_attack
    for package in missing:  # torch asks whether pandas is there
        del sys.modules[package]
    return attack


def beside_published(
    folder: Path, checkout: Path, radii: list[float], factors: list[float]
) -> list[list[str]]:
    """Return a line for each factor and radius: accuracy under the published attack and its rewriting, distances."""
    attack = published_attack(checkout)
    run = read_run(folder)
    net = for_inference(load_model(folder))
    x, y = next(iter(batches(run.data.load("test").first(64))))
    centre, std = (torch.tensor(values)[:, None, None] for values in (run.data.spec.mean, run.data.spec.std))
    lines = []
    for times in factors:
        louder = Louder(net, times)
        within = nn.Sequential(_Denormalize(centre, std), louder)
        for eps in radii:
            theirs = attack(within, cross_entropy, ((x - centre) / std).contiguous(), y, eps=eps, alpha=0.125 * eps,
                            dataset="cifar10", random_start=False) * std + centre  # fmt: skip
            ours = pgd_as_published(
                louder, x, y, eps=eps, std=std, generator=torch.Generator(), random_start=False
            )
            apart, moved = ((theirs - other).flatten(1).norm(dim=1) for other in (ours, x))
            left = [f"{100 * (louder(found).argmax(1) == y).float().mean():.1f}" for found in (theirs, ours)]
            lengths = [f"{length:.2g}" for length in (apart.median(), apart.max(), moved.median())]
            lines.append([folder.name, f"x {times:g}", f"{eps:g}", *left, *lengths])
    return lines


class _Denormalize(nn.Module):
    """From normalized inputs to pixels; its gradient is contiguous, as the published attack wants it."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, z: Tensor) -> Tensor:
        return z.flatten(1).unflatten(1, z.shape[1:]) * self.std + self.mean


def markdown(result: dict[str, Any], radii: list[float]) -> str:
    names = [f"{eps:g}" for eps in radii]
    columns = ["net", "logits", "margin", *(f"published {e}" for e in names), *(f"ours {e}" for e in names)]
    rows = []
    for net in result["nets"]:
        for row in net["rows"]:
            figures = [f"{100 * row[kind][e]:.1f}" for kind in ("published", "ours") for e in names]
            rows.append([net["net"], f"x {row['times']:g}", f"{row['margin']:.1f}", *figures])
    return f"Accuracy in %, first {result['n']} test images, PGD in L2, 10 steps.\n\n" + markdown_table(
        columns, rows
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs of vgg16_table.py")
    made.add_argument("--out", type=Path, default=Path("runs/stalled-pgd"))
    made.add_argument("--n", type=int, default=200, help="test images")
    made.add_argument("--eps", nargs="+", type=float, default=[0.1, 0.2, 0.3])
    made.add_argument("--times", nargs="+", type=float, default=[1, 3, 10, 30], help="factors of the logits")
    made.add_argument("--published", type=Path, metavar="DIR", help="compare with the published attack")
    options = made.parse_args()
    if options.published:
        found = [
            beside_published(folder, options.published, options.eps, options.times)
            for folder in options.folders
        ]
        columns = ["net", "logits", "eps", "published", "ours", "apart: median", "largest", "moved: median"]
        print(markdown_table(columns, [line for lines in found for line in lines]))
        return
    nets = [measure(folder, options.n, options.eps, options.times) for folder in options.folders]
    result = {"n": options.n, "nets": nets}
    write_table(options.out, result, markdown(result, options.eps))


if __name__ == "__main__":
    with mistakes():
        main()
