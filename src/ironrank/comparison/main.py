"""Compare methods on one recipe: ask, train and judge what is missing, time, and say what came out."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ironrank import __version__
from ironrank.bench.machine import machine
from ironrank.comparison import folder, grid, page
from ironrank.comparison.cells import Cell, LeftOut, Size, by_params, cells_of
from ironrank.comparison.estimate import estimate
from ironrank.comparison.findings import ablation_of, findings
from ironrank.comparison.question import Question, ask, stages_of
from ironrank.comparison.table import FAILED, groups, rows_of
from ironrank.comparison.timing import ROUNDS, by_latency
from ironrank.config import build_run, shorthand
from ironrank.errors import IronrankError
from ironrank.files import plain_json, write_json, write_text
from ironrank.methods import METHODS, Method
from ironrank.models import count
from ironrank.settings import encode
from ironrank.shell import command_line
from ironrank.training import Run

FORMAT = "ironrank-comparison/1"
Say = Callable[[str], None]


def compare(
    recipe: str | Run,
    methods: str | Sequence[str] = "all",
    budgets: Sequence[float] = (50, 80, 90),
    seeds: int = 3,
    *,
    equal: str = "size",
    training: str = "recipe",
    ablation: bool = False,
    overrides: Iterable[str] = (),
    data: Path | str | None = None,
    device: str | None = None,
    out: Path | str | None = None,
    jobs: int = 1,
    n: int = 1000,
    steps: int = 50,
    restarts: int = 5,
    rounds: int = ROUNDS,
    dry_run: bool = False,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Train all methods on one recipe, at equal budgets and for equally many epochs, and judge them alike.

    What is there already in the folder is kept: called again, it goes on; with more methods, budgets or seeds, it
    trains those that are missing.

    Args:
        recipe: Name of a recipe, or a run: its data, model, objective, optimizer, schedule, epochs and validation.
        methods: "all", or names, as a list or with commas. The dense net and narrow dense nets always take part.
        budgets: Percent less than the dense net: of deployed parameters, or of latency.
        seeds: How many seeds.
        equal: "size" or "latency".
        training: "recipe" as it is, "clean", "adversarial", or "both".
        ablation: Also train low rank alone and with bounded condition numbers, clean and adversarially.
        overrides: ``path=value``; see `ironrank.config`.
        data: Folder with the data set.
        device: Torch device.
        out: Folder of the comparison; by default runs/compare-RECIPE.
        jobs: Processes of one thread each; 0 for as many as the machine has processors.
        n: Test images that are attacked.
        steps: Steps of PGD.
        restarts: Random starts of PGD on cross-entropy, and as many on the margin.
        rounds: Timed calls of each net.
        dry_run: Train nothing and write nothing; return the cells and estimated times.
        say: Is told of progress, in a few words.

    Returns:
        Plain values. ``rows`` (see `ironrank.comparison.table.rows_of`), ``ablation``, ``findings``, ``protocol``, and
        ``files``, the paths of table.json, table.md and comparison.html. With ``dry_run`` instead ``cells`` with their
        ``seconds``, ``left_out``, ``seconds`` of all and ``jobs``.

    Raises:
        IronrankError: If a word is unknown, a number out of range, data is missing, or the folder holds other things.
    """
    name = recipe if isinstance(recipe, str) else recipe.recipe or "run"
    changes = [*overrides, *shorthand(data, None, device)]
    run = recipe if isinstance(recipe, Run) else build_run(recipe, changes)
    own = {} if isinstance(recipe, Run) else settings_of(recipe, changes)
    question = ask(run, methods, budgets, seeds, equal, training, ablation, n, steps, restarts, own)
    place, jobs = Path(out or default_folder(name)), _processes(jobs)
    folder.check(place, question)
    for split in ("train", "test"):
        question.base.data.load(split)
    if equal == "latency" and not dry_run:  # found sizes are kept in a folder of its own
        folder.claim(place, question, name)
    cells, left_out = cells_of(question, _size(question, place, dry_run))
    if dry_run:
        return _plan(place, question, cells, left_out, jobs)
    grid.check(place, ((cell.name, cell.run) for cell in cells))
    folder.claim(place, question, name)
    _fill(place, question, cells, jobs, say)
    folder.time_all(place, cells, question.base, say, rounds)
    told = _result(place, name, question, cells, left_out)
    told["command"] = _command(name, question, training, changes, out)
    told["machine"] = {"ironrank": __version__} | {k: machine(1)[k] for k in ("torch", "python", "cpu")}
    return _written(place, told)


def default_folder(recipe: str) -> Path:
    """Return where the comparison of a recipe is kept."""
    return Path("runs", f"compare-{recipe.replace('/', '-')}")


def settings_of(recipe: str, changes: Sequence[str] = ()) -> dict[str, Method]:
    """Return the methods that a recipe has settings for: those that are modes of it.

    Args:
        recipe: Its name.
        changes: ``path=value``; a mode that they do not fit is left out.

    Returns:
        Methods by name.

    Example:
        >>> settings_of("condlr/lenet5-mnist", ["nominal=50"])["condlr"].keep
        0.5
    """
    found: dict[str, Method] = {}
    for name in METHODS:
        with suppress(IronrankError):  # no mode of this recipe, or one that the changes do not fit
            run = build_run(recipe, [*changes, f"mode={name}"])
            found |= {
                stage.method.name: stage.method for stage in stages_of(run) if stage.method.name == name
            }
    return found


def _processes(jobs: int) -> int:
    if jobs < 0:
        raise IronrankError(f"jobs={jobs}: allowed is at least 0 (0: as many as the machine has processors)")
    if jobs:
        return jobs
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(question: Question, out: Path, dry_run: bool) -> Size:
    return by_params(question) if question.equal == "size" else by_latency(question, out, keep=not dry_run)


def _plan(
    out: Path, question: Question, cells: list[Cell], left_out: list[LeftOut], jobs: int
) -> dict[str, Any]:
    missing = [cell for cell in cells if not (out / cell.name / grid.JUDGED).is_file()]
    seconds = estimate(out, missing, question.protocol)
    listed = [
        {"name": cell.name, "net": cell.net, "budget": cell.budget, "training": cell.training, "seed": cell.run.seed,
         "done": cell.name not in seconds, "seconds": seconds.get(cell.name, 0.0)}
        for cell in cells
    ]  # fmt: skip
    return {"out": str(out), "cells": listed, "left_out": [row._asdict() for row in left_out],
            "seconds": sum(seconds.values()), "jobs": jobs}  # fmt: skip


def _fill(out: Path, question: Question, cells: list[Cell], jobs: int, say: Say) -> None:
    """Train and judge what is missing, here or in several processes."""
    for cell in cells:
        (out / cell.name / FAILED).unlink(missing_ok=True)  # tried again
    if jobs == 1:
        folder.work(out, cells, question.protocol, say)
        return
    folder.write_cells(out, cells, dataclasses.asdict(question.protocol))
    command = [sys.executable, "-m", "ironrank.comparison.worker", str(out)]
    grid.side_by_side(command, jobs, folder.watcher(out, cells, say))


def _result(
    out: Path, name: str, question: Question, cells: list[Cell], left_out: list[LeftOut]
) -> dict[str, Any]:
    """Put the answer together."""
    found, base = groups(out, cells), question.base
    whole = count(base.model, base.data.spec)
    files = {key: str(out / key) for key in ("table.json", "table.md", "comparison.html")}
    return plain_json({
        "format": FORMAT, "recipe": name, "equal": question.equal, "epochs": base.epochs, "budgets": question.budgets,
        "seeds": question.seeds, "params_dense": whole, "chance": 1 / base.data.spec.classes,
        "protocol": dataclasses.asdict(question.protocol), "run": encode(base),
        "rows": rows_of(out, cells, left_out, found, whole), "ablation": ablation_of(question, found),
        "findings": findings(question, found), "files": files,
    })  # fmt: skip


def _command(
    name: str, question: Question, training: str, changes: Sequence[str], out: Path | str | None
) -> str:
    """Return the command that does the same."""
    rule = question.protocol
    sets = [word for change in changes for word in ("--set", change)]
    return command_line(
        "compare", name, *sets, methods=question.settings, budgets=question.budgets, seeds=len(question.seeds),
        equal=question.equal, train=training, ablation=question.ablation, n=rule.n, steps=rule.steps,
        restarts=rule.restarts, out=out,
    )  # fmt: skip


def _written(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write the answer three ways."""
    write_json(out / "table.json", result)
    write_text(out / "table.md", page.markdown(result))
    write_text(out / "comparison.html", page.render(result))
    return result
