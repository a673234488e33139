"""The demo: three nets on the embedded images, trained against attacks, judged and reported.

A dense LeNet5, its SVD truncation (fine-tuned), and a CondLR net of the same deployed size, on 10,000 images of
Fashion-MNIST under Linf 0.1. It shows the way from a bare machine to a report; one seed and a thousand test
images prove nothing about the methods.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from ironrank.attacks import PGD
from ironrank.data import FashionSmall
from ironrank.errors import IronrankError, nearest
from ironrank.judge import evaluate_folder
from ironrank.methods import SVD, CondLR, Dense
from ironrank.models import LeNet5
from ironrank.objectives import Madry
from ironrank.optim import SGD, OneCycle
from ironrank.training import Run, train

EPS = 0.1


def demo(
    mode: str = "condlr",
    nominal: int = 80,
    tau: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """LeNet5 on the embedded Fashion-MNIST images, trained by PGD-5 at Linf 0.1.

    Args:
        mode: "dense", "svd" or "condlr"; "svd" needs ``start``, a dense run folder.
        nominal: Nominal compression in percent.
        tau: CondLR's bound on the condition number is ``1 + tau``.
        epochs: Passes over the training images; by default 6, tiny 1.
        seed: Seed of everything random.
        tiny: A quarter of the width.

    Returns:
        The run.

    Raises:
        IronrankError: If the mode has another name.
    """
    keep = (100 - nominal) / 100
    methods = {"dense": Dense(), "svd": SVD(keep=keep), "condlr": CondLR(keep=keep, tau=tau)}
    if mode not in methods:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(methods))}")
    return Run(
        recipe="demo",
        data=FashionSmall(validation=0.1),
        model=LeNet5(width=0.25) if tiny else LeNet5(),
        objective=Madry(attack=PGD(norm="Linf", eps=EPS, steps=5, step_size=0.03, keep="last")),
        method=methods[mode],
        optimizer=SGD(lr=0.1, momentum=0.9),
        schedule=OneCycle(),
        epochs=epochs if epochs is not None else 1 if tiny else 6,
        seed=seed,
        validate=PGD(norm="Linf", eps=EPS, steps=10),
        validate_images=100 if tiny else 500,
    )


def run_demo(
    out: Path | str, seed: int = 0, console: Console | None = None, *, tiny: bool = False
) -> dict[str, Any]:
    """Train, judge and report the three nets of the demo.

    Args:
        out: Folder for the run folders and ``report.html``; finished runs in it are kept, stopped ones go on.
        seed: Seed of everything random.
        console: Where to show progress; None for nowhere.
        tiny: Small nets and one epoch, to try the way out.

    Returns:
        ``rows``, the evaluations of the three nets, and ``report``, the path of the page.
    """
    from ironrank.report import build  # drawing is not needed to train
    from ironrank.report.gather import courses, gather

    out = Path(out)
    dense = demo("dense", seed=seed, tiny=tiny)
    truncated = dataclasses.replace(demo("svd", epochs=3, seed=seed, tiny=tiny), start=str(out / "dense"))
    condlr = demo("condlr", seed=seed, tiny=tiny)
    stages = {"dense": dense, "svd": truncated, "condlr": condlr}
    rows = [_judged(name, run, out / name, console, tiny) for name, run in stages.items()]
    whole = [gather(out / name, row) for name, row in zip(stages, rows, strict=True)]
    runs = [
        course for name, row in zip(stages, rows, strict=True) for course in courses(row["name"], out / name)
    ]
    command = f"ironrank demo --out {shlex.quote(str(out))} --seed {seed}"
    report = build(whole, title="ironrank demo: Fashion-MNIST, Linf 0.1", runs=runs, command=command)
    report.write_markdown(out / "report.md")
    report.write_json(out / "report.json")
    return {"rows": rows, "verdict": report.verdict, "report": str(report.write_html(out / "report.html"))}


def _judged(name: str, run: Run, folder: Path, console: Console | None, tiny: bool) -> dict[str, Any]:
    labels = {"dense": "dense", "svd": "SVD, fine-tuned", "condlr": "CondLR, tau 0.1"}
    if console is not None:
        console.print(f"[bold]{labels[name]}[/bold]")
    train(run, folder, resume=True, console=console)
    few: dict[str, Any] = {"n": 40, "steps": 4, "latency_runs": 5} if tiny else {}
    return evaluate_folder(folder, name=labels[name], **few)
