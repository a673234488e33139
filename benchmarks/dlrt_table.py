"""The table of DLRT: LeNet5 on MNIST from scratch, accuracy, ranks and sizes over the tolerance, beside the published.

    python benchmarks/dlrt_table.py --data DIR --out runs/dlrt-table --seeds 3 --epochs 20 --jobs 2

trains what is not trained yet (a run that was stopped goes on), judges every net, and writes `table.json` and
`table.md` into the folder. Each job uses one thread. Judged is the last epoch, in the deployed form, by its accuracy on
all 10,000 test images. `--methods dense,dlrt,robust-dlrt` and `--thetas 0.09,0.45` choose rows; `--tiny` tries it out,
`--set optimizer.lr=0.1 schedule=cosine` changes the recipe.

The published figures are those of `Lenet_experiment/cross_val_tab_paper.csv` in COMPiLELab/DLRT-Net at fda7874:
accuracy is the mean over five runs, each at the epoch of least validation loss; ranks and weights are those of one of
them, the one with the best test accuracy. Its count of weights leaves the input bases out: all eight rows equal
``5000 + sum r (n + 1)``. What such ranks take in a deployed net, ``5000 + sum r (n + m)``, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from grid import Cell, fill_table, judged_runs, markdown_table, mistakes, parser, positive, spread
from ironrank.artifact import load_model
from ironrank.config import build_run, shorthand
from ironrank.judge import accuracy
from ironrank.judge.evaluate import for_inference
from ironrank.recipes.dlrt import MODES, THETAS
from ironrank.surgery import factored_layers
from ironrank.training import Run

SOURCE = "COMPiLELab/DLRT-Net at fda7874, Lenet_experiment/cross_val_tab_paper.csv"
LOW_RANK = ((20, 25), (50, 500), (500, 800))  # n and m of the three layers
LAST = 5000  # weights of the last layer, which is dense


class Published(NamedTuple):
    """One row: test accuracy in percent, its standard deviation, ranks, and weights as counted there."""

    accuracy: float
    deviation: float
    ranks: tuple[int, ...]
    weights: int

    @property
    def deployed(self) -> int:
        """Weights of a deployed net of these ranks; a layer is dense where that is smaller."""
        if not self.ranks:
            return self.weights
        sizes = zip(self.ranks, LOW_RANK, strict=True)
        return LAST + sum(min(r * (n + m), n * m) for r, (n, m) in sizes)


PUBLISHED: dict[float | None, Published] = {
    None: Published(98.819, 0.064, (), 430_500),
    0.09: Published(98.161, 0.260, (10, 23, 62), 37_445),
    0.11: Published(98.212, 0.438, (10, 20, 48), 30_278),
    0.13: Published(97.872, 0.489, (9, 16, 37), 24_542),
    0.15: Published(98.139, 0.329, (9, 16, 28), 20_033),
    0.2: Published(98.115, 0.343, (8, 8, 15), 13_091),
    0.3: Published(97.451, 0.484, (4, 6, 8), 9_398),
    0.4: Published(95.967, 0.949, (2, 4, 4), 7_250),
    0.45: Published(94.068, 0.486, (2, 2, 3), 6_647),
}


def rows(options: argparse.Namespace) -> list[tuple[str, float | None]]:
    """Method and tolerance of each row; the dense net has none."""
    return [
        (method, theta)
        for method in options.methods.split(",")
        for theta in ([None] if method == "dense" else [float(text) for text in options.thetas.split(",")])
    ]


def named(method: str, theta: float | None) -> str:
    return method if theta is None else f"{method}_{theta:g}"


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    for seed in range(options.seeds):
        for method, theta in rows(options):
            given = [
                f"mode={method}",
                f"theta={theta or 0.15}",
                f"beta={options.beta}",
                f"tiny={options.tiny}",
            ]
            given += [f"epochs={options.epochs}", *options.set, *shorthand(options.data, seed)]
            yield f"{named(method, theta)}_s{seed}", build_run("dlrt/lenet5-mnist", given)


def judge(folder: Path, run: Run, n: int) -> dict[str, Any]:
    model = load_model(folder, "last")
    net = for_inference(model)
    return {
        "accuracy": accuracy(net, run.data.load("test")),
        "ranks": [layer.rank for _, layer in factored_layers(model)],
        "params": sum(p.numel() for p in net.parameters()),
        "weights": sum(p.numel() for p in net.parameters() if p.dim() > 1),
    }


def table(options: argparse.Namespace) -> dict[str, Any]:
    found = []
    for method, theta in rows(options):
        runs = judged_runs(options, named(method, theta))
        if runs:
            published = PUBLISHED.get(theta) if method in ("dense", "dlrt") else None
            beside = published and published._asdict() | {"deployed": published.deployed}
            found.append({"method": method, "theta": theta, "runs": runs, "published": beside})
    whole = {"epochs": options.epochs, "beta": options.beta, "tiny": options.tiny, "set": options.set}
    return whole | {"source": SOURCE, "rows": found}


def markdown(result: dict[str, Any]) -> str:
    intro = f"Ours: mean ± standard deviation over seeds, last of {result['epochs']} epochs; ranks of conv1, conv2, "
    intro += (
        "fc1 and weights (no biases) of the deployed net are means over seeds; last layer dense. Published: "
    )
    intro += f'{result["source"]}, five runs; ranks of the best one. "Counted" is the published count, which leaves '
    intro += 'the input bases out; "deployed" is what these ranks take.'
    columns = ["net", "theta", "seeds", "accuracy", "ranks", "weights", "parameters"]
    columns += ["published accuracy", "ranks", "weights deployed", "counted"]
    return f"{intro}\n\n" + markdown_table(columns, map(_cells, result["rows"]))


def _cells(row: dict[str, Any]) -> list[str]:
    runs, theta = row["runs"], row["theta"]
    ours = [row["method"], "-" if theta is None else f"{theta:g}", str(len(runs))]
    ours += [spread([run["accuracy"] for run in runs]), _ranks([run["ranks"] for run in runs])]
    ours += [f"{statistics.mean(run[key] for run in runs):,.0f}" for key in ("weights", "params")]
    theirs = row["published"]
    if theirs is None:
        return ours + ["-"] * 4
    return [
        *ours,
        f"{theirs['accuracy']:.2f} ± {theirs['deviation']:.2f}",
        _ranks([theirs["ranks"]]),
        f"{theirs['deployed']:,}",
        f"{theirs['weights']:,}",
    ]


def _ranks(all_ranks: list[list[int]]) -> str:
    means = [statistics.mean(column) for column in zip(*all_ranks, strict=True)]
    return ", ".join(f"{mean:.3g}" for mean in means) or "-"


def main() -> None:
    options = arguments()
    fill_table(options, cells(options), judge, table, markdown)


def arguments() -> argparse.Namespace:
    made = parser(__doc__ or "", "runs/dlrt-table")
    made.add_argument("--data", required=True, help="folder with the MNIST files")
    made.add_argument("--epochs", type=positive, default=20)
    made.add_argument("--methods", default=",".join(MODES[:2]), help=f"any of {', '.join(MODES)}")
    made.add_argument("--thetas", default=",".join(f"{theta:g}" for theta in THETAS))
    made.add_argument("--beta", type=float, default=0.05, help="of robust-dlrt")
    made.add_argument("--tiny", action="store_true", help="a narrow net and small batches")
    made.add_argument("--set", nargs="*", default=[], metavar="PATH=VALUE", help="overrides of the recipe")
    return made.parse_args()


if __name__ == "__main__":
    with mistakes():
        main()
