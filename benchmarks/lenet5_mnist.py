"""The table of LeNet5 on MNIST: dense, SVD, UV and CondLR at nominal compression 50 and 80, several seeds.

    python benchmarks/lenet5_mnist.py --data DIR --out runs/lenet5-mnist --seeds 3 --epochs 20 --jobs 2

trains what is not trained yet (a run that was stopped goes on), judges every net, and writes `table.json`
and `table.md`
into the folder. Each job uses one thread. Judged is the last epoch, as trained; clean accuracy on all 10,000
test images, attacks on the first `--n` of them, white-box, on the gradients of the net that is judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

from grid import Cell, fill_table, judged_runs, markdown_table, mean, mistakes, parser, positive, spread
from ironrank.artifact import load_model
from ironrank.attacks import FGSM, PGD
from ironrank.files import read_lines
from ironrank.judge import accuracy, withstood
from ironrank.judge.evaluate import describe_layer, for_inference
from ironrank.recipes.condlr import lenet5_mnist
from ironrank.surgery import weighted_layers
from ironrank.training import Run

SMALL = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)  # the published range
LARGE = (0.1, 0.2, 0.3)  # on to chance
ROWS = [
    "dense",
    "svd50",
    "uv50",
    "c50_t0.0",
    "c50_t0.1",
    "c50_t0.5",
    "svd80",
    "uv80",
    "c80_t0.0",
    "c80_t0.1",
    "c80_t0.5",
]
LABELS = {"dense": "dense", "svd": "SVD, fine-tuned", "uv": "UV"}


def run_of(row: str, seed: int, epochs: int, data: str) -> Run:
    if row.startswith("c"):
        nominal, tau = row[1:].split("_t")
        run = lenet5_mnist("condlr", int(nominal), float(tau), epochs, seed)
    else:
        mode = row.rstrip("0123456789")
        run = lenet5_mnist(mode, int(row[len(mode) :] or 80), epochs=epochs, seed=seed)
    start = run.start
    if isinstance(start, Run):
        start = dataclasses.replace(start, data=dataclasses.replace(start.data, folder=data))
    return dataclasses.replace(run, data=dataclasses.replace(run.data, folder=data), start=start)


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for row in ROWS:
            yield f"{row}_s{seed}", run_of(row, seed, options.epochs, options.data)


def judge(folder: Path, run: Run, n: int) -> dict:
    model, images = load_model(folder, "last"), run.data.load("test")
    net, first = for_inference(model), images.first(n)
    result: dict = {"clean": accuracy(net, images), "n": n, "fgsm": {}, "pgd": {}, "worst": {}}
    for eps in SMALL:
        by_step = withstood(net, first, FGSM(eps=eps), 0)
        by_pgd = withstood(net, first, PGD(eps=eps), 0)
        result["fgsm"][str(eps)], result["pgd"][str(eps)] = mean(by_step), mean(by_pgd)
    margin = withstood(net, first, PGD(eps=SMALL[-1], loss="margin"), 1)
    result["worst"][str(SMALL[-1])] = mean(by_step & by_pgd & margin)
    for eps in LARGE:
        result["pgd"][str(eps)] = mean(withstood(net, first.first(min(n, 500)), PGD(eps=eps), 0))
    layers = [describe_layer(name, layer) for name, layer in weighted_layers(model)]
    lines = read_lines(folder / "metrics.jsonl")
    result["layers"] = [{k: v for k, v in layer.items() if k != "singular_values"} for layer in layers]
    result["cond"] = max(layer["cond"] for layer in layers)
    result["logged_cond"] = max((line["max_cond"] for line in lines if "max_cond" in line), default=None)
    result["logged_orthonormality"] = max(
        (line["orthonormality"] for line in lines if "orthonormality" in line), default=None
    )
    result["logged_steps"] = sum("max_cond" in line for line in lines)
    result["params"] = sum(p.numel() for p in net.parameters())
    result["stored"] = sum(p.numel() for p in model.parameters())
    return result


def table(options: argparse.Namespace) -> dict:
    rows = []
    for row in ROWS:
        if runs := judged_runs(options, row):
            rows.append({"row": row, "label": label(row), "seeds": len(runs), "runs": runs})
    return {"epochs": options.epochs, "n": options.n, "rows": rows}


def label(row: str) -> str:
    if row.startswith("c"):
        nominal, tau = row[1:].split("_t")
        return f"CondLR {nominal}, tau {float(tau):g}"
    mode = row.rstrip("0123456789")
    return f"{LABELS[mode]} {row[len(mode) :]}".strip()


def markdown(result: dict) -> str:
    intro = f"Mean ± standard deviation over seeds; {result['epochs']} epochs; clean accuracy in % on 10,000 "
    intro += f"test images, attacks in % on the first {result['n']} (500 at eps 0.1 and above)."
    small, large = [str(e) for e in SMALL], [str(e) for e in LARGE]
    parts = [intro, attacked(result, "FGSM", "fgsm", small), attacked(result, "PGD-20", "pgd", small)]
    parts += [attacked(result, "PGD-20, on to chance", "pgd", large), conditioning(result)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def attacked(result: dict, title: str, kind: str, radii: list[str]) -> str:
    last = ["worst of 3 at 0.06"] if (kind, radii[-1]) == ("pgd", "0.06") else []
    columns, rows = ["net", "seeds", "clean", *(f"eps {e}" for e in radii), *last], []
    for row in result["rows"]:
        runs = row["runs"]
        values = [row["label"], str(row["seeds"]), spread([r["clean"] for r in runs])]
        values += [spread([r[kind][e] for r in runs], digits=1) for e in radii]
        rows.append(values + [spread([r["worst"]["0.06"] for r in runs], digits=1) for _ in last])
    return f"**{title}**\n\n" + markdown_table(columns, rows)


def conditioning(result: dict) -> str:
    columns = ["net", "deployed parameters", "stored parameters", "largest cond at the end"]
    columns += ["largest cond logged", "worst orthonormality error logged"]
    title, rows = "Size and conditioning (largest over layers, logged steps and seeds)", []
    for row in result["rows"]:
        runs = row["runs"]
        cond = max(math.inf if r["cond"] is None else r["cond"] for r in runs)
        logged = [r["logged_cond"] for r in runs if r["logged_cond"] is not None]
        error = [r["logged_orthonormality"] for r in runs if r["logged_orthonormality"] is not None]
        values = [row["label"], f"{runs[0]['params']:,}", f"{runs[0]['stored']:,}", f"{cond:.6g}"]
        rows.append([*values, f"{max(logged):.7g}" if logged else "-", f"{max(error):.1e}" if error else "-"])
    return f"**{title}**\n\n" + markdown_table(columns, rows)


def main() -> None:
    options = arguments()
    fill_table(options, cells(options), judge, table, markdown)


def arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "runs/lenet5-mnist")
    made.add_argument("--data", required=True, help="folder with the MNIST files")
    made.add_argument("--epochs", type=positive, default=20)
    return made.parse_args()


if __name__ == "__main__":
    with mistakes():
        main()
