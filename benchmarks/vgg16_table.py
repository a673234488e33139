"""VGG16 on CIFAR-10: the rows of CondLR's and RobustDLRT's tables, the published figures beside ours, white-box.

    python benchmarks/vgg16_table.py --data DIR --out runs/vgg16-table [--rows c50_t0.1,c50_t0.5,dense] [--seeds 3]
        [--epochs 120] [--device cuda] [--jobs 1] [--set precision=bfloat16 ...]

trains what is not trained yet (a run that was stopped goes on), judges every net, and writes `table.json` and
`table.md` into the folder. `--epochs` is for the rows of CondLR's recipe (120 published); those of RobustDLRT's train
21 epochs unless `--adaptive-epochs` says otherwise. `--tiny` tries it out.

Judged is the deployed form of the best epoch by robust validation accuracy, attacked through its own gradients: clean
accuracy on the whole test set; FGSM in Linf and PGD in L2 on the first `--n` images. PGD makes 10 steps as the
published code does; then 50 steps from `--restarts` random starts on cross-entropy and on the margin, of which the
worst case of each image counts, on beyond the published eps until chance: a net whose accuracy stays up there hides its
gradients.

Two things in the published code may make a net look better than it is, and both are measured. It makes the images that
attack its best epoch on the net of the last one: PGD with 10 steps is made on our last epoch's net, too, and tried on
the judged one. And its PGD divides the gradient of the mean loss of 64 images by its norm plus 1e-10, so that an image
with a fainter gradient stays where it is: that attack is made as well, and the images of faint gradient are counted.

CondLR's published figures say of no row how many nets it is, and RobustDLRT's tables quote them. RobustDLRT's own
attacks (its table 2) work on normalized inputs and divide the gradient by its largest entry: FGSM of that kind and
Jitter are made as its code makes them. Its Mixup wants a picture that is not published: those figures are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from grid import Cell, fill_table, judged_runs, markdown_table, mean, mistakes, parser, positive, spread
from ironrank.artifact import load_model
from ironrank.attacks import FGSM, PGD
from ironrank.config import build_run
from ironrank.data import Images
from ironrank.judge import accuracy, withstood
from ironrank.judge.accuracy import batches
from ironrank.judge.evaluate import for_inference
from ironrank.judge.transfer import transferred
from ironrank.methods import SVDPrune
from ironrank.ranks.cost import count_params
from ironrank.recipes.stages import images_of
from ironrank.surgery import deploy
from ironrank.training import Run
from lenet5_mnist import label

FGSM_EPS = (0.002, 0.004, 0.006)
SCALED_EPS = (0.05, 0.1, 0.3)
JITTER_EPS = (0.035, 0.045)
L2_EPS = (0.1, 0.13, 0.16, 0.2, 0.23, 0.26, 0.3)
BEYOND = (0.5, 1.0, 2.0)
SCALED = {f"FGSM {eps:g}": ("scaled_fgsm", eps) for eps in SCALED_EPS}
SCALED |= {f"Jitter {eps:g}": ("jitter", eps) for eps in JITTER_EPS}
FAINT = (0.0, 1e-10, 1e-8, 1e-6)
GUARD = 1e-10
SOURCE = "arXiv 2505.08022, tables 2, 4 and 7, which quote CondLR's tables 1 and 5"

# Accuracy in percent: without attack and at FGSM_EPS; without attack and at L2_EPS.
PUBLISHED: dict[str, tuple[list[float], list[float]]] = {
    "dense": ([89.83, 78.61, 64.66, 53.71], [90.48, 63.01, 54.66, 47.87, 40.77, 36.75, 33.51, 29.93]),
    "cayley": ([89.62, 74.46, 58.16, 45.29], [89.62, 67.68, 59.38, 51.09, 40.87, 34.46, 29.21, 23.62]),
    "projected": ([89.70, 74.55, 58.32, 45.74], [89.70, 67.64, 59.25, 51.06, 40.86, 34.51, 29.19, 23.64]),
    "c50_t0.1": ([], [90.93, 67.03, 62.08, 59.15, 56.92, 55.96, 55.28, 54.58]),
    "c50_t0.5": ([89.97, 72.25, 60.19, 50.17], [89.97, 64.84, 60.25, 57.75, 56.03, 55.21, 54.75, 54.25]),
    "c80_t0.1": ([], [90.48, 61.00, 50.84, 42.19, 33.70, 29.44, 26.55, 23.97]),
    "c80_t0.5": ([89.33, 68.23, 48.54, 36.66], [89.33, 57.45, 46.35, 37.20, 28.30, 23.82, 20.65, 17.84]),
    "uv50": ([89.97, 67.71, 48.86, 38.49], [89.97, 55.74, 45.11, 36.86, 29.62, 26.28, 24.02, 21.84]),
    "uv80": ([88.10, 64.24, 42.66, 29.90], [88.10, 51.40, 39.70, 30.12, 20.97, 16.29, 13.15, 10.37]),
    "svd-prune50": ([89.92, 67.30, 47.77, 36.98], [89.92, 54.87, 43.85, 35.23, 27.95, 24.38, 22.06, 19.94]),
    "svd-prune80": ([87.99, 63.57, 42.06, 29.27], [87.99, 50.64, 39.06, 29.57, 20.16, 15.49, 12.22, 9.57]),
    "robust-dlrt-b0.05": ([], []),
    "dlrt": ([89.55, 74.71, 59.61, 47.56], [88.58, 59.34, 50.06, 41.50, 31.82, 25.67, 20.48, 15.04]),
    "robust-dlrt": ([89.35, 78.72, 66.02, 54.15], [88.80, 62.58, 53.47, 44.95, 34.75, 28.33, 22.64, 16.59]),
}
# Without attack, at SCALED_EPS, at JITTER_EPS; ten runs, nets trained beforehand on ImageNet, best beta.
PUBLISHED_SCALED: dict[str, list[float]] = {
    "dense": [89.82, 76.22, 63.78, 34.97, 78.60, 73.54],
    "dlrt": [89.23, 74.07, 59.55, 28.74, 72.51, 66.21],
    "robust-dlrt-b0.05": [89.49, 76.04, 62.08, 32.77, 75.53, 69.93],
}
LABELS = {"dense": "dense", "cayley": "Cayley SGD", "projected": "projected SGD", "dlrt": "DLRT",
          "robust-dlrt": "RobustDLRT, beta 0.15", "robust-dlrt-b0.05": "RobustDLRT, beta 0.05",
          "svd-prune50": "SVD prune 50", "svd-prune80": "SVD prune 80"}  # fmt: skip


def run_of(row: str, seed: int, options: argparse.Namespace) -> Run:
    """Return the run of a row; the recipes are those of the methods."""
    adaptive = {
        "dlrt": ("dlrt", 0.15),
        "robust-dlrt": ("robust-dlrt", 0.15),
        "robust-dlrt-b0.05": ("robust-dlrt", 0.05),
    }
    epochs = options.adaptive_epochs if row in adaptive else options.epochs
    given = [f"epochs={epochs}"] if epochs else []
    given += ["tiny=true"] if options.tiny else []
    given += [f"data.folder={options.data}", f"seed={seed}", f"device={options.device}", *options.set]
    if row in adaptive:
        mode, beta = adaptive[row]
        return build_run("robust-dlrt/vgg16-cifar10", [f"mode={mode}", f"beta={beta}", *given])
    if row in ("cayley", "projected"):
        return build_run("orthogonal/vgg16-cifar10", [f"mode={row}", *given])
    if row.startswith("c"):
        nominal, tau = row[1:].split("_t")
        return build_run("condlr/vgg16-cifar10", [f"nominal={nominal}", f"tau={tau}", *given])
    mode = "dense" if row == "dense" else "uv"
    nominal = [] if row == "dense" else [f"nominal={row[-2:]}"]
    run = build_run("condlr/vgg16-cifar10", [f"mode={mode}", *nominal, *given])
    return pruned(run) if row.startswith("svd-prune") else run


def pruned(run: Run) -> Run:
    """Return SVD training that ends at the deployed size of a two-factor net, cut at three quarters."""
    size = count_params(deploy(run.method.prepare(run.model.build(run.data.spec))))
    steps = int(0.75 * run.epochs * images_of(run) / run.batch_size)
    method = SVDPrune(steps=steps).within(run.model.build(run.data.spec), size)
    return dataclasses.replace(run, method=method)


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for row in options.rows.split(","):
            yield f"{row}_s{seed}", run_of(row, seed, options)


def judge(folder: Path, run: Run, n: int, restarts: int) -> dict[str, Any]:
    """Judge the deployed form of the best epoch."""
    net = for_inference(load_model(folder)).to(run.device)
    images = run.data.load("test").to(run.device)
    first = images.first(n)
    last = for_inference(load_model(folder, "last")).to(run.device)
    by_step = {eps: mean(withstood(net, first, FGSM(eps=eps), 0)) for eps in FGSM_EPS}
    short, crossed, guarded, long, standing = {}, {}, {}, {}, torch.arange(len(first))
    std = torch.tensor(run.data.spec.std, device=run.device)[:, None, None]
    for eps in (*L2_EPS, *BEYOND):
        quick = PGD(norm="L2", eps=eps, steps=10, step_size=eps / 8)
        short[eps] = mean(withstood(net, first, quick, 0))
        crossed[eps] = mean(transferred(last, net, first, quick, 0))
        guarded[eps] = mean(withstood(net, first, functools.partial(pgd_as_published, eps=eps, std=std), 0))
        for loss in ("ce", "margin"):
            attack = PGD(
                norm="L2", eps=eps, steps=50, step_size=eps / 20, restarts=restarts, loss=loss, stop=True
            )
            if len(standing):  # what fell at a smaller eps has fallen
                standing = standing[withstood(net, first.take(standing), attack, 0)]
        long[eps] = len(standing) / len(first)
    return {
        "clean": accuracy(net, images),
        "clean_first": accuracy(net, first),
        "n": n,
        "restarts": restarts,
        "params": sum(p.numel() for p in net.parameters()),
        "fgsm": _named(by_step),
        "pgd10": _named(short),
        "pgd10_of_last": _named(crossed),
        "pgd10_guarded": _named(guarded),
        **scaled(net, first, std),
        "worst": _named(long),
        "faint": _named(faint(net, first)),
    }


def scaled(net: nn.Module, images: Images, std: Tensor) -> dict[str, dict[str, float]]:
    """Return accuracy under RobustDLRT's FGSM and Jitter."""
    found: dict[str, dict[str, float]] = {}
    for kind, radii, steps in (("scaled_fgsm", SCALED_EPS, 1), ("jitter", JITTER_EPS, 5)):
        attacks = {
            eps: functools.partial(scaled_as_published, eps=eps, std=std, steps=steps) for eps in radii
        }
        found[kind] = _named(
            {eps: mean(withstood(net, images, attack, 0)) for eps, attack in attacks.items()}
        )
    return found


def scaled_as_published(
    net: nn.Module, x: Tensor, y: Tensor, *, eps: float, std: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Attack as RobustDLRT's code does: steps of eps along the gradient over its largest entry, on normalized inputs.

    One step on cross-entropy is its FGSM, several are Jitter: the mean squared error between the one-hot class and the
    softmax of 10 z / max |z| with noise of standard deviation 0.1; for an image that is misclassified it is divided by
    the largest change so far. After each step entries are held within eps and pixels rounded to 8 bits.

    Args:
        net: Maps pixels (b, c, h, w) to logits (b, classes).
        x: Pixels (b, c, h, w) in [0, 1].
        y: Classes (b,).
        eps: Radius in Linf, in units of ``std``.
        std: What the net divides each channel by, (c, 1, 1).
        steps: 1 for FGSM.
        generator: Source of the noise, on the CPU.

    Returns:
        Changed pixels (b, c, h, w).
    """
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_()
        logits = net(point)
        if steps == 1:
            losses = cross_entropy(logits, y, reduction="none")
        else:
            noise = 0.1 * torch.randn(logits.shape, generator=generator).to(x.device)
            soft = (10 * logits / logits.abs().amax(1, keepdim=True)).softmax(1) + noise
            losses = (soft - one_hot(y, logits.shape[1])).square().mean(1)
            moved = ((point - x) / std).abs().flatten(1).amax(1).detach()
            losses = losses / torch.where((logits.argmax(1) != y) & (moved > 0), moved, 1.0)
        gradient = torch.autograd.grad(losses.sum(), point)[0] * std
        largest = gradient.abs().flatten(1).amax(1)[:, None, None, None].clamp(min=torch.finfo(x.dtype).tiny)
        change = (point.detach() - x) / std + eps * gradient / largest
        point = ((x + change.clamp(-eps, eps) * std).clamp(0, 1) * 255).round() / 255
    return point


def pgd_as_published(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    std: Tensor,
    generator: torch.Generator,
    random_start: bool = True,
) -> Tensor:
    """Attack as the published code does: PGD in L2 with a constant below the gradient's norm.

    10 steps of 0.125 eps along the gradient with respect to normalized inputs; random start of a length uniform up to
    eps; the loss is the mean over a batch of 64.

    Args:
        net: Maps pixels (b, c, h, w) to logits (b, classes).
        x: Pixels (b, c, h, w) in [0, 1].
        y: Classes (b,).
        eps: Radius, pixel units.
        std: What the net divides each channel by, (c, 1, 1).
        generator: Source of the random start, on the CPU.
        random_start: Whether it starts beside the image.

    Returns:
        Changed pixels (b, c, h, w).
    """

    def within(delta: Tensor) -> Tensor:
        return (x + delta * (eps / (_norms(delta) + GUARD)).clamp(max=1)).clamp(0, 1)

    way = torch.randn(x.shape, generator=generator).to(x.device)
    length = torch.rand((len(x), 1, 1, 1), generator=generator).to(x.device)
    point = within(way / _norms(way) * length * eps) if random_start else x
    for _ in range(10):
        point = point.detach().requires_grad_()
        loss = cross_entropy(net(point), y, reduction="sum") / 64
        gradient = torch.autograd.grad(loss, point)[0] * std
        point = within(point.detach() + 0.125 * eps * gradient / (_norms(gradient) + GUARD) - x)
    return point


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None]


def faint(net: nn.Module, images: Images) -> dict[float, float]:
    """Return the share of images whose gradient of cross-entropy has at most some L2 norm, in float32.

    An attack that divides the gradient by its norm plus a small constant does not move such an image.
    """
    norms = []
    for x, y in batches(images):
        x.requires_grad_()
        loss = cross_entropy(net(x), y, reduction="sum")
        norms.append(torch.autograd.grad(loss, x)[0].flatten(1).double().norm(dim=1))
    return {most: mean(torch.cat(norms) <= most) for most in FAINT}


def _named(found: dict[float, float]) -> dict[str, float]:
    return {f"{eps:g}": value for eps, value in found.items()}


def table(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for row in options.rows.split(","):
        runs = judged_runs(options, row)
        if runs:
            rows.append(
                {
                    "row": row,
                    "label": LABELS.get(row) or label(row),
                    "runs": runs,
                    "published": PUBLISHED[row],
                    "published_scaled": PUBLISHED_SCALED.get(row, []),
                }
            )
    whole = {
        key: getattr(options, key)
        for key in ("epochs", "adaptive_epochs", "restarts", "device", "set", "tiny")
    }
    return whole | {"source": SOURCE, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    intro = f"In %, mean ± standard deviation over seeds; attacks on the first {_n(result)} test images, white-box, "
    intro += "deployed form, best epoch by robust validation accuracy. Rows in italics: as published "
    intro += f"({result['source']}). Ours and CondLR's code count eps in pixels, RobustDLRT's in normalized inputs or "
    intro += "by the largest entry of a gradient, so that its own rows need not be attacks of our strength."
    parts = [intro, "**FGSM, Linf**\n\n" + by_eps(result, "fgsm", FGSM_EPS, 0)]
    parts += ["**PGD, L2, 10 steps**\n\n" + by_eps(result, "pgd10", L2_EPS, 1)]
    title = "**PGD, L2, 10 steps, made on the net of the last epoch**\n\n"
    parts += [title + by_eps(result, "pgd10_of_last", L2_EPS, 1)]
    parts += [
        "**PGD, L2, 10 steps, as in the published code**\n\n" + by_eps(result, "pgd10_guarded", L2_EPS, 1)
    ]
    title = (
        "**RobustDLRT's FGSM (over the largest entry of the gradient) and Jitter, on normalized inputs**\n\n"
    )
    parts += [title + beside(result, SCALED, lambda row: row["published_scaled"])]
    title = (
        "**L2, worst case over eps up to that, PGD-50 on two losses from several starts; on to chance**\n\n"
    )
    parts += [title + by_eps(result, "worst", (*L2_EPS, *BEYOND), None)]
    faint = [[row["label"], *(spread([run["faint"][f"{t:g}"] for run in row["runs"]], digits=1) for t in FAINT)]
             for row in result["rows"]]  # fmt: skip
    title = "**Images whose gradient of cross-entropy has at most this L2 norm, no attack**\n\n"
    parts += [title + markdown_table(["net", *(f"{t:g}" for t in FAINT)], faint)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _n(result: dict[str, Any]) -> int:
    return next((row["runs"][0]["n"] for row in result["rows"]), 0)


def by_eps(result: dict[str, Any], kind: str, radii: tuple[float, ...], published: int | None) -> str:
    """Return a table of accuracies over eps."""
    columns = {f"{eps:g}": (kind, eps) for eps in radii}
    return beside(result, columns, lambda row: [] if published is None else row["published"][published])


def beside(
    result: dict[str, Any],
    columns: dict[str, tuple[str, float]],
    published: Callable[[dict[str, Any]], list[float]],
) -> str:
    """Return a table with a column for each attack and eps; published figures, where there are any, below ours."""
    rows = []
    for row in result["rows"]:
        runs = row["runs"]
        ours = [spread([run[kind][f"{eps:g}"] for run in runs], digits=1) for kind, eps in columns.values()]
        clean = spread([run["clean"] for run in runs], digits=1)
        rows.append([row["label"], len(runs), f"{runs[0]['params']:,}", clean, *ours])
        if theirs := published(row):
            rows.append([f"*{row['label']}*", "", "", *(f"*{value:.1f}*" for value in theirs)])
    return markdown_table(["net", "seeds", "parameters", "clean", *columns], rows)


def main() -> None:
    options = arguments()
    judged = functools.partial(judge, restarts=options.restarts)
    fill_table(options, list(cells(options)), judged, table, markdown)


def arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "runs/vgg16-table")
    made.add_argument("--data", required=True, help="folder with the CIFAR-10 files")
    made.add_argument("--rows", default=",".join(PUBLISHED), help=f"any of {', '.join(PUBLISHED)}")
    made.add_argument(
        "--epochs", type=positive, help="of the rows of CondLR's recipe; by default the recipe's"
    )
    made.add_argument(
        "--adaptive-epochs", type=positive, help="of DLRT and RobustDLRT; by default the recipe's"
    )
    made.add_argument(
        "--restarts", type=positive, default=5, help="random starts of the long PGD, for each loss"
    )
    made.add_argument("--device", default="cpu")
    made.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides of the recipes")
    made.add_argument("--tiny", action="store_true", help="a narrow net and small batches")
    options = made.parse_args()
    if unknown := set(options.rows.split(",")) - PUBLISHED.keys():
        made.error(f"rows {', '.join(sorted(unknown))}: any of {', '.join(PUBLISHED)}")
    return options


if __name__ == "__main__":
    with mistakes():
        main()
