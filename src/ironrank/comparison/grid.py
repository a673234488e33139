"""Cells of an experiment side by side: processes of one thread each take the cells that nobody has taken yet.

    OUT/NAME/               a cell: the run folder, and `judged.json` once it is done
    OUT/stages/HASH/        a stage that several cells start from, trained once
    .../lock                held by the process that works on the folder

A stopped experiment goes on where it was: finished cells are kept, and a cell that was cut off resumes from its
checkpoint. The system frees the lock of a process that ends, however it ends. All processes may be started and stopped
at any time: they meet in the folder only. Those of several machines may share it where its file system locks files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ironrank.artifact import WHICH
from ironrank.errors import IronrankError
from ironrank.files import write_json
from ironrank.settings import encode
from ironrank.training import Run, train
from ironrank.training.folder import differences, identity

Cell = tuple[str, Run]
Judge = Callable[[Path, Run], dict[str, Any]]  # of a trained cell: its folder and its run
Say = Callable[[str], None]
Fail = Callable[[Path, IronrankError], None]  # of a cell that cannot be trained: its folder and why

STAGES = "stages"
JUDGED, TRAINED, LOCK = "judged.json", WHICH["best"], "lock"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PAUSE = 2.0  # seconds between two looks at what others hold
LOOK = 0.2  # seconds between two looks at processes that run
PATIENCE = 5.0  # seconds that processes are given to stop by themselves


def work(
    out: Path, cells: Iterable[Cell], judge: Judge, say: Say = lambda _: None, fail: Fail | None = None
) -> None:
    """Train and judge all cells that are free, until each is done or in the hands of another process.

    Args:
        out: The folder of the experiment.
        cells: Names and runs.
        judge: Returns what is kept of a trained cell.
        say: Is told of each finished cell, in a few words.
        fail: Is told of each cell that cannot be trained or judged, and the others go on; without it all end.

    Raises:
        IronrankError: If a cell cannot be trained or judged.
    """

    def ended(name: str, run: Run) -> bool:
        try:
            return take(out / name, run, judge, say)
        except IronrankError as error:
            reason = error
        except torch.OutOfMemoryError as error:
            reason = IronrankError(f"out of memory: {str(error).splitlines()[0]}")
        if fail is None:
            raise reason
        fail(out / name, reason)
        return True

    waiting, told = list(cells), False
    check(out, waiting)
    while waiting:
        left = [(name, run) for name, run in waiting if not ended(name, run)]
        if len(left) == len(waiting):
            if not told:
                say("waiting for stages that other processes are training")
            told = True
            time.sleep(PAUSE)
        waiting = left


def check(out: Path, cells: Iterable[Cell]) -> None:
    """Refuse to take over what was trained with other settings than a cell has now, such as changed defaults.

    Args:
        out: The folder of the experiment.
        cells: Names and runs.

    Raises:
        IronrankError: If a cell that is trained is another run.
    """
    for name, run in cells:
        if _ended(out / name) and (names := differences(out / name, located(run, out / STAGES))):
            raise IronrankError(f"{out / name} was trained with other settings (it differs in {', '.join(names)}): "
                                "delete it to train it anew, or choose another folder")  # fmt: skip


def _ended(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (JUDGED, TRAINED))


def take(folder: Path, run: Run, judge: Judge, say: Say = lambda _: None) -> bool:
    """Train and judge one cell, unless that is done, or another process does it.

    Args:
        folder: The cell's folder.
        run: Its run.
        judge: Returns what is kept of it.
        say: Is told when it is finished.

    Returns:
        False where it has to wait for a stage that another process is training.

    Raises:
        IronrankError: If it cannot be trained or judged.
    """
    if (folder / JUDGED).is_file():
        return True
    with taken(folder) as mine:
        if not mine or (folder / JUDGED).is_file():
            return True
        if not (folder / TRAINED).is_file():
            ready = shared(run, folder.parent / STAGES)
            if ready is None:
                return False
            train(ready, folder, resume=True)
        write_json(folder / JUDGED, judge(folder, run))
        say(f"{folder.name} done")
    return True


def shared(run: Run, stages: Path) -> Run | None:
    """Train the stage that a run starts from, unless it is there.

    Args:
        run: The run.
        stages: Where stages are kept, each under a name that follows from its run.

    Returns:
        The run that starts from the folder of its stage; None where another process is training that.

    Raises:
        IronrankError: If it cannot be trained.
    """
    if not isinstance(run.start, Run):
        return run
    start = shared(run.start, stages)
    if start is None:
        return None
    folder = stages / stage_name(start)
    with taken(folder) as mine:
        if not (folder / TRAINED).is_file():
            if not mine:
                return None
            train(start, folder, resume=True)
    return located(run, stages)


def located(run: Run, stages: Path) -> Run:
    """Return a run with the folder of its stage in place of the stage itself.

    Args:
        run: The run.
        stages: Where stages are kept.

    Returns:
        The run; the same where it has no stage of its own.
    """
    if not isinstance(run.start, Run):
        return run
    return dataclasses.replace(run, start=str(stages / stage_name(located(run.start, stages))))


def stage_name(run: Run) -> str:
    """Return the name of a stage's folder: the same for the same run, wherever its data and its own stage lie."""
    return hashlib.sha256(json.dumps(identity(encode(run))).encode()).hexdigest()[:16]


@contextmanager
def taken(folder: Path) -> Iterator[bool]:
    """Take a folder for this process while the block runs.

    Args:
        folder: The folder; made if needed.

    Yields:
        Whether it is this process's now.

    Raises:
        IronrankError: If it cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        pass
    except OSError as error:
        raise IronrankError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread while the block runs, as each of several processes does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def side_by_side(command: Sequence[str], jobs: int, look: Callable[[], None] = lambda: None) -> None:
    """Run a command in several processes of one thread each, and wait for all of them.

    Args:
        command: The command; it takes what is free.
        jobs: Number of processes.
        look: Is called every now and then while they run, and at the end.

    Raises:
        IronrankError: If one of them failed.
        KeyboardInterrupt: After an interrupt, once all have stopped.
    """
    workers = [subprocess.Popen(command, env=os.environ | ONE_THREAD) for _ in range(jobs)]
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(LOOK)
            look()
        failed = sum(worker.returncode != 0 for worker in workers)
    except BaseException:
        for worker in workers:
            _stop(worker)
        raise
    if failed:
        raise IronrankError(
            f"{failed} of {jobs} processes stopped early; the same command goes on with what is left"
        )


def _stop(worker: subprocess.Popen) -> None:
    try:
        worker.wait(PATIENCE)  # a terminal has interrupted it too
    except subprocess.TimeoutExpired:
        worker.send_signal(signal.SIGINT)
        worker.wait()
