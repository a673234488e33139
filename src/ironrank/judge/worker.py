"""One of the processes that share an audit: ``python -m ironrank.judge.worker FOLDER``; started by `shared_out`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ironrank.errors import IronrankError
from ironrank.files import read_json, write_json
from ironrank.judge.blocks import Work, claimed, run_block
from ironrank.judge.ledger import Ledger
from ironrank.judge.question import Question, question_of
from ironrank.linalg.precision import no_tf32

JOB = "job.json"
POLL = 0.5  # seconds between two looks at what the others have done


def shared_out(question: Question, work: Work, jobs: int, done: Callable[[str], None]) -> None:
    """Let other processes run all blocks, and wait for them.

    Args:
        question: What is asked; net and images by name.
        work: What is to be done; its ledger has a folder.
        jobs: Number of processes.
        done: Told now and then.

    Raises:
        IronrankError: If a process ends with an error; what is finished is kept.
    """
    assert work.ledger.folder is not None
    write_json(work.ledger.folder / JOB, question.plain())
    command = [sys.executable, "-m", "ironrank.judge.worker", str(work.ledger.folder)]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile("w+") as said:
        others = [subprocess.Popen(command, env=environment, stderr=said, stdout=said) for _ in range(jobs)]
        try:
            while any(other.poll() is None for other in others):
                time.sleep(POLL)
                done(f"{jobs} processes")
            said.seek(0)
            if any(other.returncode for other in others):
                last = (said.read().strip().splitlines() or ["nothing was said"])[-1]
                raise IronrankError(f"a process of the audit failed: {last}; what is finished is kept")
        finally:
            for other in others:
                other.terminate()
                other.wait()


@no_tf32()
def work_off(folder: Path) -> None:
    """Run the blocks of an audit that no other process has claimed.

    Args:
        folder: The folder of the ledger, with the question in it.
    """
    asked = question_of(read_json(folder / JOB)).opened()
    work = asked.work(Ledger(folder))
    with asked.subject.judged():
        for block in claimed(work):
            run_block(work, block, lambda name: None)


if __name__ == "__main__":
    work_off(Path(sys.argv[1]))
