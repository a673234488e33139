"""The folder of a comparison.

comparison.json        what it asks; a folder that holds another question is refused
cells.json             the cells, for the processes that work on them
sizes.json             at equal latency: the sizes that were found
CELL/                  a run folder; judged.json, survivors.safetensors and latency.json, or failed.json
stages/                what several cells start from
table.json, table.md, comparison.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ironrank.artifact import load_model
from ironrank.comparison import grid
from ironrank.comparison.cells import Cell
from ironrank.comparison.judging import judge
from ironrank.comparison.question import Protocol, Question
from ironrank.comparison.table import FAILED, LATENCY
from ironrank.comparison.timing import paired, untrained
from ironrank.errors import IronrankError
from ironrank.files import read_json, write_json
from ironrank.judge.evaluate import for_inference
from ironrank.training import Run
from ironrank.training.start import kept

COMPARISON, CELLS = "comparison.json", "cells.json"


def check(out: Path, question: Question) -> None:
    """Refuse a folder that holds something else.

    Args:
        out: The folder.
        question: What is asked now.

    Raises:
        IronrankError: If it is a file, holds other things, or a comparison that cannot be gone on with.
    """
    there = out / COMPARISON
    if out.exists() and not out.is_dir():
        raise IronrankError(f"{out} is a file: name a folder with --out")
    if there.is_file():
        old, new = read_json(there), question.identity()
        names = [key for key in new if not isinstance(old, dict) or old.get(key) != new[key]]
        if names:
            inside = _inside(old["run"], new["run"]) if names == ["run"] else names
            raise IronrankError(
                f"{out} holds another comparison (it differs in {', '.join(inside)}): choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise IronrankError(f"{out} holds other files and no comparison: choose another --out")


def claim(out: Path, question: Question, recipe: str) -> None:
    """Write whose folder it is; see `check`."""
    write_json(out / COMPARISON, question.identity() | {"recipe": recipe})


def _inside(old: Any, new: dict[str, Any]) -> list[str]:
    return [key for key in new if not isinstance(old, dict) or old.get(key) != new[key]]


def work(out: Path, cells: Sequence[Cell], protocol: Protocol, say: grid.Say = lambda _: None) -> None:
    """Train and judge the cells that are free; one that cannot be trained leaves `FAILED` behind.

    Args:
        out: The folder.
        cells: The cells.
        protocol: How they are judged.
        say: Is told of each cell that ended.
    """
    known = {cell.name: cell for cell in cells}

    def judged(folder: Path, run: Run) -> dict[str, Any]:
        (folder / FAILED).unlink(missing_ok=True)
        began = time.perf_counter()
        found = judge(known[folder.name], protocol, folder)
        return found | {"judging_seconds": round(time.perf_counter() - began, 2)}

    def failed(folder: Path, error: IronrankError) -> None:
        write_json(folder / FAILED, {"error": str(error)})
        say(f"{folder.name} failed: {error}")

    with grid.one_thread():
        grid.work(out, [(cell.name, cell.run) for cell in cells], judged, say, failed)


def write_cells(out: Path, cells: Sequence[Cell], protocol: dict[str, Any]) -> None:
    """Write what other processes need to work on the cells.

    Args:
        out: The folder.
        cells: The cells.
        protocol: How they are judged, as plain values.

    Raises:
        IronrankError: If a cell uses something that other processes would not know.
    """
    for cell in cells:
        run = cell.run
        for part in (run.data, run.model, run.objective, run.method):
            if type(part).__module__.partition(".")[0] != __name__.partition(".")[0]:
                raise IronrankError(f"{part.label()} is no part of this package, and other processes do not know it: "
                                    "take --jobs 1")  # fmt: skip
    write_json(out / CELLS, {"protocol": protocol, "cells": [cell.encode() for cell in cells]})


def read_cells(out: Path) -> tuple[list[Cell], Protocol]:
    """Read what `write_cells` wrote."""
    found = read_json(out / CELLS)
    return [Cell.decode(value) for value in found["cells"]], Protocol(**found["protocol"])


def watcher(out: Path, cells: Sequence[Cell], say: grid.Say) -> Callable[[], None]:
    """Return what tells, each time it is called, which cells other processes have ended since.

    Args:
        out: The folder.
        cells: The cells.
        say: Is told.

    Returns:
        The function.
    """
    told = {cell.name for cell in cells if (out / cell.name / grid.JUDGED).is_file()}

    def look() -> None:
        for cell in cells:
            if cell.name in told:
                continue
            if (out / cell.name / grid.JUDGED).is_file():
                told.add(cell.name)
                say(f"{cell.name} done")
            elif (out / cell.name / FAILED).is_file():
                told.add(cell.name)
                say(f"{cell.name} failed: {read_json(out / cell.name / FAILED)['error']}")

    return look


def time_all(out: Path, cells: Sequence[Cell], base: Run, say: grid.Say, rounds: int) -> None:
    """Time each judged net beside the dense one, alone on the machine, unless that is done.

    Args:
        out: The folder.
        cells: The cells.
        base: The dense run.
        say: Is told before the first one.
        rounds: Calls of each net.
    """
    left = [
        cell for cell in cells
        if (out / cell.name / grid.JUDGED).is_file() and not (out / cell.name / LATENCY).is_file()
    ]  # fmt: skip
    if left:
        say(f"timing {len(left)} nets beside the dense one")
        dense = untrained(base)
        x = torch.rand(1, *base.data.spec.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    for cell in left:
        net = for_inference(load_model(out / cell.name, kept(cell.run))).to(base.device)
        write_json(out / cell.name / LATENCY, paired(dense, net, x, rounds))
