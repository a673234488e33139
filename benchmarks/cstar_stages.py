"""How CSTAR should share out its epochs among its stages, at 8x: variants of the recipe, judged on held-out images.

    python benchmarks/cstar_stages.py --data DIR --out runs/cstar-stages [--seeds 3] [--jobs 2]

All variants have 12 epochs in all and the settings of docs/results/cstar-mnist.md. Judged is what `cstar_table.py`
judges, and PGD-20 on all held-out images, by which variants are to be chosen. Writes `table.json` and `table.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cstar_table
from grid import Cell, fill_table, judged_runs, markdown_table, mean, mistakes, parser, spread
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.config import build_run, shorthand
from ironrank.data.split import split
from ironrank.judge import accuracy, withstood
from ironrank.judge.evaluate import for_inference
from ironrank.recipes.cstar import RAMP
from ironrank.recipes.stages import ramped, steps_of
from ironrank.training import Run

EPOCHS = 12
SETTINGS = ["objective.attack.steps=3", "objective.attack.step_size=0.15", "validate_images=500",
            "precision=bfloat16"]  # fmt: skip


def faster(run: Run) -> Run:
    """Fine-tune at 0.4 of the learning rate instead of a tenth."""
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, lr=0.02))


def longer(run: Run) -> Run:
    """3 epochs of the dense net, 6 of ADMM, 3 of fine-tuning."""
    admm = run.start
    assert isinstance(admm, Run) and isinstance(admm.start, Run)
    dense = ramped(dataclasses.replace(admm.start, epochs=3), RAMP)
    return dataclasses.replace(run, start=dataclasses.replace(_admm(admm, 6), start=dense))


def from_scratch(run: Run) -> Run:
    """9 epochs of ADMM from random weights, 3 of fine-tuning; ranks are chosen anew for longer."""
    assert isinstance(run.start, Run)
    return dataclasses.replace(
        run, start=ramped(dataclasses.replace(_admm(run.start, 9, choose=40), start=None), RAMP)
    )


def _admm(run: Run, epochs: int, **settings: int) -> Run:
    """Return the stage of CSTAR with other epochs, at their pace."""
    method = dataclasses.replace(run.method, every=type(run.method).every, **settings)  # type: ignore[attr-defined, call-arg]
    return dataclasses.replace(run, epochs=epochs, method=method.paced(steps_of(run, epochs)))


VARIANTS: dict[str, tuple[str, Callable[[Run], Run]]] = {
    "base": ("cstar", lambda run: run),
    "ft02": ("cstar", faster),
    "d3a6": ("cstar", longer),
    "scratch9": ("cstar", from_scratch),
    "cond02": ("cstar+cond", faster),
    "svd02": ("svd", faster),
}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for name, (mode, change) in VARIANTS.items():
            given = [f"mode={mode}", "ratio=8", f"epochs={EPOCHS}", *SETTINGS, *shorthand(options.data, seed)]
            yield f"{name}_s{seed}", change(build_run("cstar/lenet5-mnist", given))


def judge(folder: Path, run: Run, n: int, steps: int) -> dict[str, Any]:
    net = for_inference(load_model(folder))
    held_out = split(run.data.load("train"), run.data.validation)[1]
    hits = withstood(net, held_out, PGD(eps=0.3, steps=20, step_size=0.03, stop=True), 0)
    found = {"val_n": len(held_out), "val_clean": accuracy(net, held_out), "val_robust": mean(hits)}
    return found | cstar_table.judge(folder, run, n, steps)


def table(options: argparse.Namespace) -> dict[str, Any]:
    return {name: runs for name in VARIANTS if (runs := judged_runs(options, name))}


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [name, len(runs), *(spread([run[key] for run in runs], digits=1) for key in ("val_robust", "clean")),
         spread([run["robust"]["worst"] for run in runs], digits=1)]
        for name, runs in result.items()
    ]  # fmt: skip
    return markdown_table(["net", "seeds", "robust, validation", "clean, test", "robust, test"], rows)


def main() -> None:
    made = parser(__doc__ or "", "runs/cstar-stages")
    made.add_argument("--data", required=True, help="folder with MNIST")
    made.add_argument("--steps", type=int, default=40, help="of the judging PGD")
    options = made.parse_args()
    judged = functools.partial(judge, steps=options.steps)
    fill_table(options, list(cells(options)), judged, table, markdown)


if __name__ == "__main__":
    with mistakes():
        main()
