"""What all attacks of an audit found, image by image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ironrank.judge.ensemble import FREE, Trial
from ironrank.judge.ledger import Ledger

CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class Result:
    """What one attack found.

    Attributes:
        trial: The attack.
        attacked: On which images it ran, bool (n,).
        broken: Which of them it broke, bool (n,).
        inside: Whether what it finds lies in the ball that the audit is about.
        seconds: Time that it took.
        free: Which of the broken ones a gradient-free part of it found, bool (n,).
        error: Why it could not be run, if so.
        flags: What it says about itself.
        watched: What `Witness.found` counted.
    """

    trial: Trial
    attacked: Tensor
    broken: Tensor
    inside: bool
    seconds: float
    free: Tensor
    error: str = ""
    flags: tuple[str, ...] = ()
    watched: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class Tally:
    """What all attacks found.

    Attributes:
        right: Which images the net gets right, bool (n,).
        probe: Number of the first images, on which attacks ran in full.
        results: The attacks, in order.
    """

    right: Tensor
    probe: int
    results: tuple[Result, ...]

    @property
    def standing(self) -> Tensor:
        """Which images no attack inside the ball has broken, bool (n,)."""
        stand = self.right.clone()
        for result in self.results:
            if result.inside:
                stand &= ~result.broken
        return stand

    def count(self, result: Result) -> int:
        """Return the number of leading images on which an attack ran in full: all, or the probe."""
        return len(self.right) if bool((result.attacked | ~self.right).all()) else self.probe

    def accuracy(self, result: Result) -> float:
        """Return the accuracy under one attack, on the images that `count` says.

        That is what it finds alone, where it ran in full; an attack that was only run on survivors of the others is
        stated with what these found.
        """
        return (result.attacked & ~result.broken)[: self.count(result)].double().mean().item()

    def broken_by(self, *kinds: str) -> Tensor:
        """Return which images of the probe attacks of these kinds break, inside the ball, bool (probe,)."""
        found = torch.zeros(self.probe, dtype=torch.bool)
        for result in self.results:
            if result.inside and result.trial.kind in kinds:
                found |= (result.broken & ~result.free)[: self.probe]
            if result.inside and FREE in kinds:
                found |= result.free[: self.probe]
        return found


def tally_of(ledger: Ledger, blocks: list[slice], trials: list[Trial], eps: float) -> Tally:
    """Put together what a ledger holds; what an attack has not been run on counts as not broken.

    Args:
        ledger: The finished ledger.
        blocks: The blocks of images.
        trials: The attacks.
        eps: The radius of the audit.

    Returns:
        The tally.
    """
    right = torch.cat([_known(ledger, block, CLEAN)[0]["right"] for block in range(len(blocks))])
    results = [_result(ledger, blocks, trial, right, eps) for trial in trials]
    return Tally(right, blocks[0].stop, tuple(results))


def _result(ledger: Ledger, blocks: list[slice], trial: Trial, right: Tensor, eps: float) -> Result:
    found = {key: torch.zeros_like(right) for key in ("attacked", "broken", "free")}
    seconds, error, flags, watched = 0.0, "", set(), Counter[str]()
    for number, block in enumerate(blocks):
        if ledger.has(number, trial.name):
            tensors, notes = _known(ledger, number, trial.name)
            for key, whole in found.items():
                whole[block] = tensors[key]
            seconds += notes["seconds"]
            error = error or notes.get("error", "")
            flags |= set(notes.get("flags", ()))
            watched.update(notes.get("watched", {}))
    return Result(trial=trial, inside=trial.attack.radius <= eps, seconds=seconds, error=error,
                  flags=tuple(sorted(flags)), watched=watched, **found)  # fmt: skip


def _known(ledger: Ledger, block: int, name: str) -> tuple[dict[str, Tensor], dict]:
    entry = ledger.get(block, name)
    assert entry is not None, (block, name)
    return entry
