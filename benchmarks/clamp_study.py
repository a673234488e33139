"""What conditioning costs in clean accuracy, and what it takes to pay less: LeNet5, embedded Fashion-MNIST.

    python benchmarks/clamp_study.py --out runs/clamp-study --seeds 2 --jobs 2

Nominal compression 80, clean training, 9,000 training images, 30 epochs (2,130 steps) unless a row says otherwise; one
thing is changed at a time. Judged is the last epoch: clean accuracy on all 2,000 embedded test images,
PGD-20 on the first `--n`, white-box.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grid import Cell, judged_runs, mistakes, parser, run_all
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.data import FashionSmall
from ironrank.files import write_json, write_text
from ironrank.judge import accuracy, evaluate
from ironrank.methods import UV, CondLR, Dense, Method
from ironrank.models import LeNet5
from ironrank.optim import SGD, Steps
from ironrank.surgery import deploy
from ironrank.training import Run

# name: (method, learning rate, epochs)
VARIANTS: dict[str, tuple[Method, float, int]] = {
    "dense": (Dense(), 0.1, 30),
    "UV": (UV(), 0.1, 30),
    "base: tau 0.1, exact, mean, lr 0.1": (CondLR(), 0.1, 30),
    "lr 0.05": (CondLR(), 0.05, 30),
    "lr 0.2": (CondLR(), 0.2, 30),
    "lr 0.4": (CondLR(), 0.4, 30),
    "90 epochs": (CondLR(), 0.1, 90),
    "centre rms": (CondLR(centre="rms"), 0.1, 30),
    "scale norm": (CondLR(scale="norm"), 0.1, 30),
    "correction scalar": (CondLR(correction="scalar"), 0.1, 30),
    "correction none": (CondLR(correction="none"), 0.1, 30),
    "tau 0": (CondLR(tau=0.0, centre="rms"), 0.1, 30),
    "tau 0.5": (CondLR(tau=0.5), 0.1, 30),
    "tau 2": (CondLR(tau=2.0), 0.1, 30),
    "tau 10": (CondLR(tau=10.0), 0.1, 30),
    "tau 10 in conv1, conv2": (CondLR(taus={"conv*": 10.0}), 0.1, 30),
    "tau 10 in fc1": (CondLR(taus={"fc1": 10.0}), 0.1, 30),
    "tau 10 in fc2": (CondLR(taus={"fc2": 10.0}), 0.1, 30),
    "fc2 dense": (CondLR(last="dense"), 0.1, 30),
    "dense, lr 0.05": (Dense(), 0.05, 30),
    "dense, lr 0.2": (Dense(), 0.2, 30),
    "dense, lr 0.4": (Dense(), 0.4, 30),
    "dense, 90 epochs": (Dense(), 0.1, 90),
}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for index, (method, lr, epochs) in enumerate(VARIANTS.values()):
            yield f"v{index:02d}_s{seed}", Run(
                recipe="clamp-study", data=FashionSmall(validation=0.1), model=LeNet5(), method=method,
                optimizer=SGD(lr=lr, momentum=0.3), schedule=Steps(), epochs=epochs, seed=seed,
                validate=PGD(eps=0.03, steps=2), validate_images=100,
            )  # fmt: skip


def judge(folder: Path, run: Run, n: int) -> dict[str, Any]:
    model, images = load_model(folder, "last"), run.data.load("test")
    attacks = [PGD(eps=eps) for eps in (0.01, 0.03, 0.06)]
    found = evaluate(model, images.first(n), attacks, latency_runs=2)
    return {"n": n, "clean": accuracy(deploy(model).eval(), images), "max_cond": found["max_cond"],
            "pgd": {str(row["eps"]): row["accuracy"] for row in found["robust"]}}  # fmt: skip


def markdown(options: argparse.Namespace) -> str:
    lines = ["LeNet5, nominal 80, embedded Fashion-MNIST; clean on 2,000 test images, PGD-20 on the first "
             f"{options.n}; mean over seeds (their range).", "",
             "| what is changed | seeds | clean % | PGD 0.01 % | PGD 0.03 % | PGD 0.06 % | largest cond |",
             "| --- |" + " ---: |" * 6]  # fmt: skip
    for index, name in enumerate(VARIANTS):
        runs = judged_runs(options, f"v{index:02d}")
        if runs:
            cols = [
                [run["clean"] for run in runs],
                *([run["pgd"][e] for run in runs] for e in ("0.01", "0.03", "0.06")),
            ]
            cond = max((run["max_cond"] or float("inf")) for run in runs)
            lines.append(f"| {name} | {len(runs)} | " + " | ".join(map(_span, cols)) + f" | {cond:.4g} |")
    return "\n".join(lines) + "\n"


def _span(values: list[float]) -> str:
    middle = f"{100 * statistics.mean(values):.1f}"
    return middle if len(values) < 2 else f"{middle} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def main() -> None:
    options = parser(__doc__ or "", "runs/clamp-study").parse_args()
    run_all(options, cells(options), judge)
    if not options.worker:
        write_text(options.out / "table.md", markdown(options))
        variants = {name: dataclasses.asdict(method) for name, (method, _, _) in VARIANTS.items()}
        write_json(options.out / "variants.json", variants)
        print(options.out / "table.md")


if __name__ == "__main__":
    with mistakes():
        main()
