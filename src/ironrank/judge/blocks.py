"""The work of an audit: each block of images through all attacks, each result kept as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ironrank.errors import IronrankError
from ironrank.judge.ensemble import ALL, STANDING, SURVIVORS, Trial
from ironrank.judge.ledger import Ledger
from ironrank.judge.samples import Samples
from ironrank.judge.slopes import small_steps
from ironrank.judge.subject import Subject
from ironrank.judge.tally import CLEAN
from ironrank.judge.witness import Witness

Done = Callable[[str], None]  # told the name of what is through


@dataclass(frozen=True, eq=False)
class Work:
    """All that is to be done.

    Attributes:
        subject: The net.
        samples: All images.
        blocks: The blocks of images; the first is the probe.
        trials: The attacks, in order.
        ledger: Where results are kept.
    """

    subject: Subject
    samples: Samples
    blocks: list[slice]
    trials: list[Trial]
    ledger: Ledger

    def trials_on(self, block: int) -> list[Trial]:
        """Return the attacks that run on a block."""
        return [trial for trial in self.trials if block == 0 or trial.where in (STANDING, ALL)]

    def left(self) -> dict[tuple[int, str], float]:
        """Return the cost of each attack on each block that has no result yet."""
        return {
            (block, trial.name): trial.cost * (part.stop - part.start)
            for block, part in enumerate(self.blocks)
            for trial in self.trials_on(block)
            if not self.ledger.has(block, trial.name)
        }


def claimed(work: Work) -> Iterator[int]:
    """Yield the blocks that fall to this process, one at a time, the probe first, as the longest."""
    for block in range(len(work.blocks)):
        if work.ledger.claim(block):
            yield block


def run_block(work: Work, block: int, done: Done) -> None:
    """Run all attacks on one block; what the ledger has already is not run again.

    Args:
        work: What is to be done.
        block: Number of the block.
        done: Told of each attack that is through.
    """
    samples = work.samples.part(work.blocks[block])
    stand = right = _clean(work, block, samples)
    for trial in work.trials_on(block):
        entry = work.ledger.get(block, trial.name)
        if entry is None:
            full = trial.where == ALL or (block == 0 and trial.where != SURVIVORS)
            entry = work.ledger.put(
                block, trial.name, *_run(work, block, trial, samples, right if full else stand)
            )
        if trial.inside(work.subject):
            stand = stand & ~entry[0]["broken"]
        done(trial.name)


def _clean(work: Work, block: int, samples: Samples) -> Tensor:
    entry = work.ledger.get(block, CLEAN)
    if entry is None:
        entry = work.ledger.put(block, CLEAN, {"right": work.subject.right(samples)}, {})
    return entry[0]["right"]


def _run(
    work: Work, block: int, trial: Trial, samples: Samples, attacked: Tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Run one attack on some images of a block; return which were attacked and broken, and the time it took."""
    start = time.perf_counter()
    notes: dict[str, Any] = {}
    broken, free = torch.zeros_like(attacked), torch.zeros_like(attacked)
    if attacked.any():
        generator = work.subject.generator(trial.name, block)
        witness = Witness(work.subject.plain, work.subject.generator("witness", trial.name, block))
        try:
            tried = work.subject.tried(trial.attack, samples.take(attacked), trial.source, generator, witness)
            broken[attacked], free[attacked], notes["flags"] = tried.broken, tried.free, list(tried.flags)
            notes["watched"] = witness.found(work.subject.norm, small_steps(work.subject, samples.x))
        except (IronrankError, RuntimeError) as error:  # a net without gradients; the verdict says so
            notes["error"] = " ".join(str(error).split())[:200]
    tensors = {"attacked": attacked, "broken": broken, "free": free}
    return tensors, notes | {"seconds": time.perf_counter() - start}
