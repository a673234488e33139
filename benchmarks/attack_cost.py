"""What an attack costs on a factored net, against the dense one it came from: one PGD step, in pairs within one run.

    python benchmarks/attack_cost.py [--nets resnet18 vgg16] [--ratios 4 8] [--batch 64] [--rounds 7] [--out PATH]

Each net is made small in each form: to a share of its deployed parameters, with one keep for all layers ("uniform") or
ranks chosen globally ("global"), which takes most from the layers with the most parameters and leaves those with the
most multiply-adds, or to a share of its multiply-adds, chosen globally ("macs"). It is attacked as training attacks it:
on merged weights, parameter gradients off, evaluation mode, channels last. Time per step of PGD (one forward and one
backward), its ratio to the dense net's in the same round, and the ratios of multiply-adds, which is what could be had,
and of deployed parameters.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grid import mistakes
from ironrank import factorize
from ironrank.attacks import PGD
from ironrank.bench import compare
from ironrank.bench.allocator import relaunch_if_needed
from ironrank.bench.machine import machine
from ironrank.data.base import DataSpec
from ironrank.files import write_json, write_text
from ironrank.methods import SVD
from ironrank.models import MODELS
from ironrank.ranks.cost import count_macs, count_params
from ironrank.surgery import deploy

SPEC = DataSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FORMS = ("channel", "spatial", "tucker2")
STEPS = 2


def nets(name: str, ratio: float) -> dict[str, nn.Module]:
    """Return the dense net and its small forms, in evaluation mode."""
    torch.manual_seed(0)
    dense = MODELS[name]().build(SPEC)
    made = {"dense": dense}
    limit, image = int(count_params(dense) / ratio), torch.zeros(1, *SPEC.shape)
    for form in FORMS:
        made[f"uniform, {form}"] = SVD(form=form).within(dense, limit).prepare(copy.deepcopy(dense))
        made[f"global, {form}"] = factorize(copy.deepcopy(dense), budget=f"params={limit}", form=form)
        made[f"macs, {form}"] = factorize(
            copy.deepcopy(dense), budget=f"macs={ratio:g}x", form=form, example=image
        )
    return {key: net.eval().to(memory_format=torch.channels_last) for key, net in made.items()}


def measure(name: str, ratio: float, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Time a PGD step on all forms of one net at one compression."""
    x = torch.rand(batch, *SPEC.shape).to(memory_format=torch.channels_last)
    y, attack = torch.randint(0, SPEC.classes, (batch,)), PGD(eps=8 / 255, steps=STEPS, keep="last")
    made = nets(name, ratio)

    def attacked(net: nn.Module) -> Callable[[], None]:
        return lambda: attack(net, x, y, generator=torch.Generator().manual_seed(0))  # type: ignore[return-value]

    times = compare({key: attacked(net) for key, net in made.items()}, rounds, warmup=1)
    deployed = {key: deploy(net) for key, net in made.items()}
    macs = {key: count_macs(net, x[:1]) for key, net in deployed.items()}
    params = {key: count_params(net) for key, net in deployed.items()}
    return [
        {"net": name, "ratio": ratio, "form": key, "ms per step": times.spread(key).ms()["median"] / STEPS,
         "time / dense": times.ratio(key, "dense")._asdict(), "macs / dense": macs[key] / macs["dense"],
         "params / dense": params[key] / params["dense"]}
        for key in made
    ]  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| net | compression | ranks, form | ms per step | time / dense [quartiles] | multiply-adds / dense | "
             "parameters / dense |", "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        time = row["time / dense"]
        lines.append(
            f"| {row['net']} | {row['ratio']:g}x | {row['form']} | {row['ms per step']:.0f} | {time['median']:.3f} "
            f"[{time['q1']:.3f}, {time['q3']:.3f}] | {row['macs / dense']:.3f} | {row['params / dense']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--nets", nargs="+", default=["resnet18", "vgg16"], choices=sorted(MODELS))
    made.add_argument("--ratios", nargs="+", type=float, default=[4, 8])
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = made.parse_args()
    print(relaunch_if_needed(options.threads), file=sys.stderr)
    torch.set_num_threads(options.threads)
    rows = [
        row
        for name in options.nets
        for ratio in options.ratios
        for row in measure(name, ratio, options.batch, options.rounds)
    ]
    print(markdown(rows))
    if options.out:
        result = {"rows": rows, "batch": options.batch, "machine": machine(options.threads)}
        write_json(options.out.with_name(options.out.name + ".json"), result)
        write_text(options.out.with_name(options.out.name + ".md"), markdown(rows))


if __name__ == "__main__":
    with mistakes():
        main()
