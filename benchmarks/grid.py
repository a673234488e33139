"""Cells of an experiment side by side: processes of one thread each take the cells that nobody has taken yet.

A stopped experiment goes on where it was: finished cells are kept, a cell that was cut off resumes from its checkpoint.
Stages that several cells start from are trained once, in the folder ``stages`` beside the cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ironrank.files import write_json
from ironrank.settings import encode
from ironrank.training import Run, train

Cell = tuple[str, Run]


def parser(description: str, out: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--n", type=int, default=1000, help="test images that are attacked")
    made.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    made.add_argument("--no-train", action="store_true", help="judge what is trained, leave the rest out")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def run_all(
    options: argparse.Namespace, cells: Iterable[Cell], judge: Callable[[Path, Run, int], dict[str, Any]]
) -> None:
    """Train and judge all cells; in a worker, those that are free."""
    if options.worker:
        torch.set_num_threads(1)
        for name, run in cells:
            if not options.no_train or (options.out / name / "last.safetensors").is_file():
                _take(options.out / name, run, options.n, judge)
        return
    for taken in options.out.rglob("*.taken"):  # left behind by a run that was killed
        shutil.rmtree(taken)
    command = [sys.executable, *sys.argv, "--worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=environment) for _ in range(options.jobs)]
    if sum(worker.wait() for worker in workers):
        sys.exit(1)


def _take(folder: Path, run: Run, n: int, judge: Callable[[Path, Run, int], dict[str, Any]]) -> None:
    if (folder / "judged.json").is_file():
        return
    taken = folder.with_name(folder.name + ".taken")
    taken.parent.mkdir(parents=True, exist_ok=True)
    try:
        taken.mkdir()
    except FileExistsError:
        return
    try:
        if not (folder / "last.safetensors").is_file():
            train(shared(run, folder.parent / "stages"), folder, resume=True)
        write_json(folder / "judged.json", judge(folder, run, n))
        print(f"{folder.name} done", flush=True)
    finally:
        taken.rmdir()


def shared(run: Run, stages: Path) -> Run:
    """Train the stage that a run starts from, unless another cell did or does; return the run with its folder."""
    if not isinstance(run.start, Run):
        return run
    start = shared(run.start, stages)
    folder = stages / hashlib.sha256(json.dumps(encode(start)).encode()).hexdigest()[:16]
    taken = folder.with_name(folder.name + ".taken")
    taken.parent.mkdir(parents=True, exist_ok=True)
    while not (folder / "last.safetensors").is_file():
        try:
            taken.mkdir()
        except FileExistsError:
            time.sleep(2)
            continue
        try:
            train(start, folder, resume=True)
        finally:
            taken.rmdir()
    return dataclasses.replace(run, start=str(folder))


def mean(hits: torch.Tensor) -> float:
    return hits.double().mean().item()


def spread(values: list[float], scale: float = 100, digits: int = 2) -> str:
    if any(value is None or math.isinf(value) for value in values):
        return "inf"
    text = f"{scale * statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {scale * statistics.stdev(values):.{digits}f}"
