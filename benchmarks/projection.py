"""Projection of all convolutions of ResNet-18 after the first: ours against a textbook SVD and against tensorly.

    python benchmarks/projection.py [--ratios 4 16] [--rounds 5] [--out PATH]

Weights as the net is drawn (flat spectra, the hardest for an iteration). "Warm" is what a projection in every step of a
training comes to: the weights change ten times by 1 % of their norm, each projection starts from the last, and the
tenth is timed; HOOI by a decomposition for each basis ("warm"), or by a step of block power iteration ("power"). For
each variant: time of all layers in one round, its ratio to the textbook, and the error over all layers, relative to
that of the textbook variant.

    matrix     rank r of the matrix (n, c K) with r (n + c K) = n c K / ratio
    Tucker-2   ranks (f n, f c), the same f for all layers, with as many parameters; 1 x 1 kernels as matrices

`tensorly` is needed for its row (``pip install tensorly``); without it that row is left out, and the table says so.
``--step`` adds the time of one step of adversarial training of the dense net (batch 128, PGD-10), to set them against.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grid import mistakes
from ironrank.attacks import PGD
from ironrank.bench import compare
from ironrank.bench.allocator import relaunch_if_needed
from ironrank.bench.machine import machine
from ironrank.data.base import DataSpec
from ironrank.files import write_json, write_text
from ironrank.linalg import UV, Tucker2, hooi, hosvd, low_rank, side_by_side
from ironrank.models import ResNet18
from ironrank.objectives import Madry

try:
    import tensorly
    from tensorly.decomposition import partial_tucker
except ImportError:
    tensorly = None

Projection = UV | Tucker2
CHANGE, CHANGES = 0.01, 10
SPEC = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def kernels(net: torch.nn.Module) -> list[Tensor]:
    """Return the kernels after the first convolution, the dearest first."""
    found = [m.weight.detach().clone() for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    return sorted(found[1:], key=lambda weight: -weight.numel())


def matrix_rank(weight: Tensor, ratio: float) -> int:
    """Return the rank at which two factors have a given share of the parameters."""
    n, m = weight.flatten(1).shape
    return max(1, int(n * m / ratio / (n + m)))


def tucker_ranks(weight: Tensor, ratio: float) -> tuple[int, int]:
    """Return the ranks (f n, f c) at which Tucker-2 has a given share of the parameters."""
    n, c = weight.shape[:2]
    size = math.prod(weight.shape[2:])
    # f^2 n c K + f (n^2 + c^2) = n c K / ratio
    a, b, d = n * c * size, n * n + c * c, n * c * size / ratio
    f = (math.sqrt(b * b + 4 * a * d) - b) / (2 * a)
    return max(1, int(f * n)), max(1, int(f * c))


def by_svd(weight: Tensor, ratio: float) -> UV:
    """Textbook: the whole SVD, truncated."""
    P, s, Qt = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    r = matrix_rank(weight, ratio)
    return UV(P[:, :r] * s[:r], Qt[:r].mT)


def by_gram(weight: Tensor, ratio: float, start: Projection | None = None) -> UV:
    assert start is None or isinstance(start, UV)
    return low_rank(weight.flatten(1), matrix_rank(weight, ratio), start)


def by_tensorly(weight: Tensor, ratio: float) -> Projection:
    if weight.shape[2:].numel() == 1:
        return by_svd(weight, ratio)
    (core, factors), _ = partial_tucker(
        weight, rank=list(tucker_ranks(weight, ratio)), modes=[0, 1], n_iter_max=100, tol=1e-4, init="svd"
    )
    return Tucker2(factors[0], core, factors[1])


def by_hosvd(weight: Tensor, ratio: float) -> Projection:
    if weight.shape[2:].numel() == 1:
        return by_gram(weight, ratio)
    return hosvd(weight, tucker_ranks(weight, ratio))


def by_hooi(weight: Tensor, ratio: float, start: Projection | None = None) -> Projection:
    if weight.shape[2:].numel() == 1:
        return by_gram(weight, ratio, start)
    assert start is None or isinstance(start, Tucker2)
    return hooi(weight, tucker_ranks(weight, ratio), start, sweeps=1 if start else 2)


def by_power(weight: Tensor, ratio: float, start: Projection) -> Projection:
    if weight.shape[2:].numel() == 1:
        return by_gram(weight, ratio, start)
    assert isinstance(start, Tucker2)
    return hooi(weight, tucker_ranks(weight, ratio), start, sweeps=1, power=True)


def error(weights: list[Tensor], found: list[Projection]) -> float:
    """Return the norm of all that the projections drop."""
    dropped = (w - p.dense().reshape(w.shape) for w, p in zip(weights, found, strict=True))
    return math.sqrt(sum(d.double().square().sum().item() for d in dropped))


def variants(course: list[list[Tensor]], ratio: float) -> dict[str, Callable[[], Any]]:
    """Return what is timed, on the weights at the end of a course; the first of each family is the textbook."""
    weights = course[-1]

    def pooled(function: Callable, first: Callable | None = None) -> Callable[[], list[Projection]]:
        starts = None
        for at in course[:-1] if first else ():
            starts = [
                first(w, ratio) if starts is None else function(w, ratio, starts[k]) for k, w in enumerate(at)
            ]
        tasks = list(zip(weights, starts, strict=True)) if starts else [(w,) for w in weights]
        return lambda: side_by_side(lambda task: function(task[0], ratio, *task[1:]), tasks)

    made: dict[str, Callable[[], Any]] = {
        "matrix: torch.linalg.svd": lambda: [by_svd(w, ratio) for w in weights],
        "matrix: ours": pooled(by_gram),
        "matrix: ours, warm": pooled(by_gram, by_gram),
    }
    if tensorly is not None:
        tensorly.set_backend("pytorch")
        made["Tucker-2: tensorly partial_tucker"] = lambda: [by_tensorly(w, ratio) for w in weights]
    made["Tucker-2: ours, HOSVD"] = pooled(by_hosvd)
    made["Tucker-2: ours, HOOI"] = pooled(by_hooi)
    made["Tucker-2: ours, HOOI, warm"] = pooled(by_hooi, by_hooi)
    made["Tucker-2: ours, HOOI, power"] = pooled(by_power, by_hooi)
    return made


def measure(ratio: float, rounds: int) -> list[dict[str, Any]]:
    """Time and judge all variants at one compression."""
    torch.manual_seed(0)
    course = [kernels(ResNet18().build(SPEC))]
    for _ in range(CHANGES):
        course.append(
            [w + CHANGE * w.norm() / math.sqrt(w.numel()) * torch.randn_like(w) for w in course[-1]]
        )
    weights, timed = course[-1], variants(course, ratio)
    times, rows = compare(timed, rounds, warmup=1), []
    norm = math.sqrt(sum(w.double().square().sum().item() for w in weights))
    for name, run in timed.items():
        base = next(other for other in timed if other.split(":")[0] == name.split(":")[0])
        row = {"ratio": ratio, "variant": name, "base": base, "error": error(weights, run()) / norm}
        rows.append(row | times.spread(name).ms() | {"time / base": times.ratio(name, base)._asdict()})
    return rows


def training_step(rounds: int) -> dict[str, float]:
    """Time a step of adversarial training of the dense net, in milliseconds."""
    torch.manual_seed(0)
    net = ResNet18().build(SPEC).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    x, y = torch.rand(128, 3, 32, 32).to(memory_format=torch.channels_last), torch.randint(0, 10, (128,))
    objective = Madry(attack=PGD(steps=10, keep="last"))

    def step() -> None:
        optimizer.zero_grad()
        objective(net, x, y).backward()
        optimizer.step()

    return compare({"step": step}, rounds, warmup=1).spread("step").ms()


def markdown(result: dict[str, Any]) -> str:
    lines = []
    if result["step"]:
        lines += [
            f"A step of adversarial training (batch 128, PGD-10): {result['step']['median']:.0f} ms.",
            "",
        ]
    share = " | share of that step" if result["step"] else ""
    lines += [f"| compression | variant | ms | time / base [quartiles] | error | error / base - 1{share} |",
              "| ---: | --- |" + " ---: |" * (5 if share else 4)]  # fmt: skip
    by_name = {(row["ratio"], row["variant"]): row for row in result["rows"]}
    for row in result["rows"]:
        base, time = by_name[row["ratio"], row["base"]], row["time / base"]
        cells = [f"{row['ratio']:g}x", row["variant"], f"{row['median']:.0f}",
                 f"{time['median']:.4f} [{time['q1']:.4f}, {time['q3']:.4f}]", f"{row['error']:.6f}",
                 f"{row['error'] / base['error'] - 1:+.1e}"]  # fmt: skip
        if share:
            cells.append(f"{100 * row['median'] / result['step']['median']:.2f} %")
        lines.append("| " + " | ".join(cells) + " |")
    if tensorly is None:
        lines += ["", "tensorly is not installed: its row is missing."]
    return "\n".join(lines) + "\n"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ratios", nargs="+", type=float, default=[4, 16])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--step", action="store_true", help="also time a step of adversarial training")
    made.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = made.parse_args()
    print(relaunch_if_needed(options.threads), file=sys.stderr)
    torch.set_num_threads(options.threads)
    step = training_step(3) if options.step else None
    rows = [row for ratio in options.ratios for row in measure(ratio, options.rounds)]
    result = {"rows": rows, "step": step, "machine": machine(options.threads)}
    print(markdown(result))
    if options.out:
        write_json(options.out.with_name(options.out.name + ".json"), result)
        write_text(options.out.with_name(options.out.name + ".md"), markdown(result))


if __name__ == "__main__":
    with mistakes():
        main()
