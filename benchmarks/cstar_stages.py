"""How CSTAR should share out its epochs among its stages: variants of a recipe, judged on held-out images.

    python benchmarks/cstar_stages.py --data DIR --out runs/cstar-stages [--recipe cstar/lenet5-mnist] [--ratio 8]
        [--variants base ft02 d3a6 d8a2 scratch9 cond02 svd02 shifted tucker] [--epochs 12] [--seeds 3] [--jobs 2]
        [--set path=value ...]

All variants have the same number of epochs in all. Judged is what `cstar_table.py` judges, and PGD-20 on all held-out
images, by which variants are to be chosen. Writes `table.json` and `table.md`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cstar_table
from grid import Cell, fill_table, judged_runs, markdown_table, mean, mistakes, parser, positive, spread
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.config import build_run, shorthand
from ironrank.data.split import split
from ironrank.judge import accuracy, withstood
from ironrank.judge.evaluate import for_inference
from ironrank.recipes.cstar import RAMP
from ironrank.recipes.stages import ramped, steps_of
from ironrank.training import Run


def faster(run: Run) -> Run:
    """Fine-tune at 0.4 of the learning rate instead of a tenth."""
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, lr=4 * run.optimizer.lr))


def longer(run: Run) -> Run:
    """A quarter of the epochs for the dense net, half for ADMM, a quarter for fine-tuning."""
    admm = run.start
    assert isinstance(admm, Run) and isinstance(admm.start, Run)
    dense = ramped(dataclasses.replace(admm.start, epochs=admm.epochs), _ramp(admm.start))
    return dataclasses.replace(run, start=dataclasses.replace(_admm(admm, 2 * admm.epochs), start=dense))


def shorter(run: Run) -> Run:
    """Two thirds of the epochs for the dense net, a sixth for ADMM, a sixth for fine-tuning."""
    admm = run.start
    assert isinstance(admm, Run) and isinstance(admm.start, Run)
    each = max(1, (admm.start.epochs + admm.epochs + run.epochs) // 6)
    saved = admm.epochs + run.epochs - 2 * each
    dense = ramped(dataclasses.replace(admm.start, epochs=admm.start.epochs + saved), _ramp(admm.start))
    return dataclasses.replace(run, epochs=each, start=dataclasses.replace(_admm(admm, each), start=dense))


def from_scratch(run: Run) -> Run:
    """ADMM from random weights in place of the dense stage; ranks are chosen anew for longer."""
    admm = run.start
    assert isinstance(admm, Run) and isinstance(admm.start, Run)
    alone = dataclasses.replace(_admm(admm, admm.start.epochs + admm.epochs, choose=40), start=None)
    return dataclasses.replace(run, start=ramped(alone, _ramp(admm.start)))


def shifted(run: Run) -> Run:
    """Choose the ranks on W + Y instead of W."""
    admm = run.start
    assert isinstance(admm, Run)
    method = dataclasses.replace(admm.method, choose_on="shifted")  # type: ignore[call-arg]
    return dataclasses.replace(run, start=dataclasses.replace(admm, method=method))


def tucker(run: Run) -> Run:
    """Truncate in the forms and layers of CSTAR: Tucker-2, the first layer dense."""
    return dataclasses.replace(run, method=dataclasses.replace(run.method, form="tucker2", first="dense"))  # type: ignore[call-arg]


def _ramp(dense: Run) -> float:
    return RAMP if getattr(dense.objective, "ramp", 0) else 0.0


def _admm(run: Run, epochs: int, **settings: int) -> Run:
    """Return the stage of CSTAR with other epochs, at their pace."""
    method = dataclasses.replace(run.method, every=type(run.method).every, **settings)  # type: ignore[attr-defined, call-arg]
    return dataclasses.replace(run, epochs=epochs, method=method.paced(steps_of(run, epochs)))


VARIANTS: dict[str, tuple[str, Callable[[Run], Run]]] = {
    "base": ("cstar", lambda run: run),
    "ft02": ("cstar", faster),
    "d3a6": ("cstar", longer),
    "d8a2": ("cstar", shorter),
    "scratch9": ("cstar", from_scratch),
    "cond02": ("cstar+cond", faster),
    "svd02": ("svd", faster),
    "shifted": ("cstar", shifted),
    "tucker": ("svd", tucker),
}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for name in options.variants:
            mode, change = VARIANTS[name]
            given = [f"mode={mode}", f"ratio={options.ratio:g}", f"epochs={options.epochs}", *options.set]
            yield (
                f"{name}_s{seed}",
                change(build_run(options.recipe, [*given, *shorthand(options.data, seed)])),
            )


def judge(folder: Path, run: Run, n: int, steps: int) -> dict[str, Any]:
    net = for_inference(load_model(folder))
    held_out = split(run.data.load("train"), run.data.validation)[1]
    eps = cstar_table.eps_of(run)
    hits = withstood(net, held_out, PGD(eps=eps, steps=20, step_size=eps / 10, stop=True), 0)
    found = {"val_n": len(held_out), "val_clean": accuracy(net, held_out), "val_robust": mean(hits)}
    return found | cstar_table.judge(folder, run, n, steps)


def table(options: argparse.Namespace) -> dict[str, Any]:
    rows = {name: runs for name in VARIANTS if (runs := judged_runs(options, name))}
    asked = {key: getattr(options, key) for key in ("recipe", "ratio", "epochs", "set")}
    return asked | {"rows": rows}


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [name, len(runs), *(spread([run[key] for run in runs], digits=1) for key in ("val_robust", "clean")),
         spread([run["robust"]["worst"] for run in runs], digits=1)]
        for name, runs in result["rows"].items()
    ]  # fmt: skip
    return markdown_table(["net", "seeds", "robust, validation", "clean, test", "robust, test"], rows)


def main() -> None:
    made = parser(__doc__ or "", "runs/cstar-stages")
    made.add_argument("--data", required=True, help="folder with the data set")
    made.add_argument("--recipe", default="cstar/lenet5-mnist")
    made.add_argument("--ratio", type=float, default=8)
    made.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    made.add_argument("--epochs", type=positive, default=12, help="of each variant, all its stages together")
    made.add_argument("--steps", type=positive, default=40, help="of the judging PGD")
    made.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides of the recipe")
    options = made.parse_args()
    judged = functools.partial(judge, steps=options.steps)
    fill_table(options, list(cells(options)), judged, table, markdown)


if __name__ == "__main__":
    with mistakes():
        main()
