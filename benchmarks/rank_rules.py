"""Which rule for ranks leaves most of a trained net that is cut at once: the same budget, shared out in several ways.

    python benchmarks/rank_rules.py runs/cstar-resnet20/stages/DENSE [--ratio 8]
        [--admm runs/cstar-resnet20/stages/ADMM] [--n 1000] [--out runs/rank-rules]

takes the run folder of a dense net and truncates it in Tucker-2 form, the first layer dense, nothing trained after it:
by ranks of the global rule (squared norms; as shares of each layer's; weighed by the sensitivity of the robust loss, by
the inputs' second moments, by both), by one share of all layers, by one share of their energy, and with ``--admm`` by
the ranks that a stage of CSTAR from the same net ended with. Statistics of batch norm are taken anew on 2,048 training
images, after truncation and for the dense net alike; moments and sensitivity are of 1,024 others. Accuracy and
cross-entropy on the first `--n` held-out images, and on the first half of them under PGD-5, one start, at the eps of
the run's objective. Writes `table.json` and `table.md`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from grid import markdown_table, mistakes, positive, write_table
from ironrank import factorize
from ironrank.artifact import load_model
from ironrank.attacks import PGD
from ironrank.data import Images
from ironrank.data.split import split
from ironrank.errors import IronrankError
from ironrank.methods import CSTAR, targets
from ironrank.objectives import Madry
from ironrank.ranks import second_moments, sensitivity
from ironrank.training.checkpoint import load_checkpoint
from ironrank.training.held import CHECKPOINT
from ironrank.training.run import Run, read_run

BATCH = 128


def cut(
    dense: nn.Module, run: Run, train: Images, budget: str, admm: Path | None
) -> Iterator[tuple[str, nn.Module]]:
    """Truncate a net by each rule; the first is the net itself."""
    yield "dense", dense
    names = CSTAR(last="low-rank").names(dense)
    kinds = (nn.Linear, nn.Conv2d)
    others = [name for name, layer in dense.named_modules() if isinstance(layer, kinds) and name not in names]
    sample = [_batch(train, k) for k in range(16, 24)]
    attack = PGD(eps=_eps(run), steps=5, keep="last")
    moments = second_moments(dense, names, sample)
    factors = sensitivity(dense, names, Madry(attack=attack), sample)
    weights = targets.weights_of(dense, names)
    shares = {name: 1 / float(W.double().square().sum()) for name, W in weights.items()}
    rules: dict[str, dict[str, Any]] = {
        "squared norms": {}, "shares of norms": {"factors": shares}, "sensitivity": {"factors": factors},
        "inputs": {"moments": moments}, "inputs and sensitivity": {"moments": moments, "factors": factors},
        "uniform": {"rule": "uniform"}, "energy": {"rule": "energy"},
    }  # fmt: skip
    for label, options in rules.items():
        yield label, factorize(copy.deepcopy(dense), budget=budget, form="tucker2", exclude=others, **options)
    if admm is not None:
        state = load_checkpoint(admm / CHECKPOINT).state
        net = copy.deepcopy(dense)
        with torch.no_grad():
            for name in names:
                weight: Any = net.get_submodule(name).weight
                weight.copy_(targets.closest(weight, *targets.decoded(state[f"rank.{name}"])))
        yield "of the stage of CSTAR", net


def judge(net: nn.Module, train: Images, held: Images, eps: float) -> dict[str, float]:
    """Return accuracy and cross-entropy on held-out images, and under attack on half of them."""
    net = copy.deepcopy(net)
    for norm in (layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    net.train()
    with torch.no_grad():
        for k in range(16):
            net(_batch(train, k)[0])
    net.eval()
    half = held.first(len(held) // 2)
    x, y = half.pixels(torch.arange(len(half))), half.y
    attacked = PGD(eps=eps, steps=5, keep="last")(net, x, y, generator=torch.Generator().manual_seed(0))
    found = {}
    for key, (pixels, labels) in {
        "clean": (held.pixels(torch.arange(len(held))), held.y),
        "robust": (attacked, y),
    }.items():
        with torch.no_grad():
            logits = net(pixels)
        found[key] = (logits.argmax(1) == labels).double().mean().item()
        found[f"{key} loss"] = cross_entropy(logits, labels).item()
    return found


def _batch(images: Images, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(k * BATCH, (k + 1) * BATCH)
    return images.pixels(rows), images.y[rows]


def _eps(run: Run) -> float:
    threat = run.objective.threat
    if threat is None or threat[0] != "Linf":
        raise IronrankError(
            "rank_rules: the net is to be trained against an attack in Linf; give another run folder"
        )
    return threat[1]


def markdown(result: dict[str, Any]) -> str:
    columns = ["net", "clean, %", "loss", f"PGD-5, Linf {result['eps']:.4g}, %", "loss"]
    rows = [
        [label, f"{100 * row['clean']:.1f}", f"{row['clean loss']:.3f}", f"{100 * row['robust']:.1f}",
         f"{row['robust loss']:.3f}"]
        for label, row in result["rows"].items()
    ]  # fmt: skip
    return f"Cut {result['ratio']:g}x, nothing trained after it.\n\n" + markdown_table(columns, rows)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="run folder of a dense net")
    made.add_argument("--ratio", type=float, default=8)
    made.add_argument(
        "--admm", type=Path, help="run folder of CSTAR's stage from the same net, at the same ratio"
    )
    made.add_argument("--n", type=positive, default=1000, help="held-out images")
    made.add_argument("--out", type=Path, default=Path("runs/rank-rules"))
    options = made.parse_args()
    run, dense = read_run(options.folder), load_model(options.folder)
    train, held = split(run.data.load("train"), run.data.validation)
    held, eps = held.first(options.n), _eps(run)
    rows = {}
    for label, net in cut(dense, run, train, f"params={options.ratio:g}x", options.admm):
        rows[label] = judge(net, train, held, eps)
        print(label, rows[label], flush=True)
    result = {"ratio": options.ratio, "eps": eps, "n": len(held), "rows": rows}
    write_table(options.out, result, markdown(result))


if __name__ == "__main__":
    with mistakes():
        main()
