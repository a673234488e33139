"""Size against robustness: CSTAR and what it has to beat, at several compressions, from one recipe.

    python benchmarks/cstar_table.py --data DIR --out runs/cstar-mnist
        [--recipe cstar/lenet5-mnist] [--ratios 4 8 16 32] [--modes dense cstar cstar+cond condlr svd narrow]
        [--epochs 20] [--seeds 3] [--jobs 2] [--set path=value ...]

All modes of the recipe, or those asked for, each with the same number of epochs; stages that cells have in common (the
dense net, the ADMM stage that is fine-tuned with and without conditioning) are trained once. Judged is the deployed
form of the best epoch by robust validation accuracy: clean accuracy on the whole test set; attacks white-box on the
first `--n` images: PGD with 5 restarts on cross-entropy and, on what withstands that, on the margin, at the recipe's
eps, where any point on the way that fools the net counts; and a curve of PGD-20 over eps on the first 200, on to
chance. Writes `table.json`, `table.md` and `size.svg`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grid import Cell, fill_table, judged_runs, markdown_table, mean, mistakes, parser, positive, spread
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.config import build_run, shorthand
from ironrank.errors import IronrankError
from ironrank.judge import accuracy, withstood
from ironrank.judge.evaluate import for_inference
from ironrank.models import count
from ironrank.training import Run

MODES = ("dense", "cstar", "cstar+cond", "condlr", "svd", "narrow")
LABELS = {
    "dense": "dense",
    "cstar": "CSTAR",
    "cstar+cond": "CSTAR, conditioned",
    "condlr": "CondLR",
    "svd": "SVD, fine-tuned",
    "narrow": "narrow dense",
}
CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of the recipe's eps


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        make = functools.partial(_run, options, seed)
        if "dense" in options.modes:
            yield f"dense_s{seed}", make("dense", options.ratios[0])
        for ratio in options.ratios:
            for mode in _small(options):
                try:
                    yield f"{mode}_{ratio:g}x_s{seed}", make(mode, ratio)
                except IronrankError as error:  # a net that no rank or width makes small enough
                    print(f"{mode} at {ratio:g}x is left out: {error}", flush=True)


def _small(options: argparse.Namespace) -> list[str]:
    return [mode for mode in options.modes if mode != "dense"]


def _run(options: argparse.Namespace, seed: int, mode: str, ratio: float) -> Run:
    given = [f"mode={mode}", f"ratio={ratio:g}", *([f"epochs={options.epochs}"] if options.epochs else [])]
    return build_run(options.recipe, [*given, *options.set, *shorthand(options.data, seed)])


def judge(folder: Path, run: Run, n: int, steps: int) -> dict[str, Any]:
    """Judge the deployed form of the best epoch."""
    net, images = for_inference(load_model(folder)), run.data.load("test")
    first, eps = images.first(n), eps_of(run)
    attack = PGD(eps=eps, steps=steps, step_size=2.5 * eps / steps, restarts=5, stop=True)
    standing = withstood(net, first, attack, 0)
    robust = {"ce": mean(standing)}
    if standing.any():
        left = first.take(standing.nonzero().flatten())
        standing[standing.clone()] = withstood(net, left, dataclasses.replace(attack, loss="margin"), 0)
    curve = {}
    for factor in CURVE:
        hits = withstood(net, images.first(200), PGD(eps=factor * eps, stop=True), 0) if factor else None
        curve[f"{factor * eps:.4g}"] = accuracy(net, images.first(200)) if hits is None else mean(hits)
    return {
        "clean": accuracy(net, images),
        "robust": robust | {"worst": mean(standing)},
        "attack": f"PGD-{steps} x5, Linf {eps:.4g}, worst of cross-entropy and margin",
        "n": n,
        "steps": steps,
        "curve": curve,
        "params": sum(p.numel() for p in net.parameters()),
    }


def eps_of(run: Run) -> float:
    threat = run.objective.threat
    assert threat is not None
    return threat[1]


def table(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    names: list[tuple[str, float | None]] = [("dense", None)]
    names += [(mode, ratio) for ratio in sorted(options.ratios) for mode in _small(options)]
    for mode, ratio in names:
        stem = mode if ratio is None else f"{mode}_{ratio:g}x"
        if runs := judged_runs(options, stem):
            rows.append({"mode": mode, "ratio": ratio, "runs": runs})
    dense = _run(options, 0, "dense", options.ratios[0])
    return {
        "recipe": options.recipe,
        "epochs": options.epochs,
        "set": options.set,
        "dense_params": count(dense.model, dense.data.spec),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    runs = [run for row in result["rows"] for run in row["runs"]]
    if not runs:
        return "Nothing is judged yet.\n"
    intro = f"Mean ± standard deviation over seeds; clean accuracy in % on the whole test set, {runs[0]['attack']}, "
    intro += f"in % on the first {runs[0]['n']} test images."
    columns = ["asked", "net", "seeds", "parameters", "smaller", "clean", "robust", "dense - this, robust"]
    dense = next((row for row in result["rows"] if row["mode"] == "dense"), None)
    return f"{intro}\n\n" + markdown_table(
        columns, (_cells(row, dense, result["dense_params"]) for row in result["rows"])
    )


def _cells(row: dict[str, Any], dense: dict[str, Any] | None, dense_params: int) -> list[str]:
    runs, params = row["runs"], row["runs"][0]["params"]
    robust, smaller, gap = [run["robust"]["worst"] for run in runs], f"{dense_params / params:.2f}x", "-"
    if dense:
        gap = f"{100 * (statistics.mean(r['robust']['worst'] for r in dense['runs']) - statistics.mean(robust)):+.1f}"
    asked = "-" if row["ratio"] is None else f"{row['ratio']:g}x"
    cells = [asked, LABELS[row["mode"]], str(len(runs)), f"{params:,}", smaller]
    return [*cells, spread([run["clean"] for run in runs]), spread(robust), gap]


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw robust accuracy against parameters, logarithmic; one line for each mode, dense as a dashed level."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for mode, marker in zip(MODES[1:], "osD^v", strict=True):
        rows = [row for row in result["rows"] if row["mode"] == mode]
        if rows:
            x = [row["runs"][0]["params"] for row in rows]
            y = [[100 * run["robust"]["worst"] for run in row["runs"]] for row in rows]
            spread = [statistics.stdev(v) if len(v) > 1 else 0 for v in y]
            axes.errorbar(
                x, [statistics.mean(v) for v in y], spread, marker=marker, capsize=3, label=LABELS[mode]
            )
    for row in result["rows"]:
        if row["mode"] == "dense":
            level = 100 * statistics.mean(run["robust"]["worst"] for run in row["runs"])
            axes.axhline(level, color="black", linestyle="--", label=f"dense, {row['runs'][0]['params']:,}")
    axes.set(xscale="log", xlabel="parameters, deployed", ylabel="robust accuracy, %", title=result["recipe"])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    options = arguments()
    judged = functools.partial(judge, steps=options.steps)
    result = fill_table(options, cells(options), judged, table, markdown)
    if result and result["rows"]:
        draw(result, options.out / "size.svg")


def arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "runs/cstar-mnist")
    made.add_argument("--data", required=True, help="folder with the data set")
    made.add_argument("--recipe", default="cstar/lenet5-mnist")
    made.add_argument("--ratios", nargs="+", type=float, default=[4, 8, 16, 32])
    made.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    made.add_argument(
        "--epochs", type=positive, help="of each cell, all its stages together; by default the recipe's"
    )
    made.add_argument("--steps", type=positive, default=40, help="of the judging PGD")
    made.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides of the recipe")
    return made.parse_args()


if __name__ == "__main__":
    with mistakes():
        main()
