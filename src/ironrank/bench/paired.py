"""Paired timing: all variants in one process, once per round, in shuffled order; ratios within a round count.

A shared machine slows down and speeds up for seconds at a time. Two variants timed one after the other see
two different machines; two variants timed in the same round see nearly the same one, so their ratio moves far
less than their times.

    ratio(a, b) = median over rounds of t(a) / t(b), with its quartiles; best = min t(a) / min t(b)
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ironrank.errors import IronrankError, nearest


class Spread(NamedTuple):
    """Median, quartiles and smallest of the times of one variant, in seconds."""

    median: float
    q1: float
    q3: float
    min: float

    def ms(self) -> dict[str, float]:
        """Return the four numbers in milliseconds, by name.

        Example:
            >>> Spread(0.002, 0.001, 0.003, 0.001).ms()["median"]
            2.0
        """
        return {key: 1e3 * value for key, value in self._asdict().items()}


class Ratio(NamedTuple):
    """Median and quartiles of the ratios of the rounds, and the ratio of the two smallest times."""

    median: float
    q1: float
    q3: float
    best: float


@dataclass(frozen=True)
class PairedTimes:
    """The times of all variants, in seconds, in the order of the rounds.

    Args:
        seconds: By variant: one time per round.

    Example:
        >>> times = PairedTimes({"a": (1.0, 2.0, 9.0), "b": (2.0, 4.0, 6.0)})
        >>> times.ratio("a", "b").median, times.spread("b").min
        (0.5, 2.0)
    """

    seconds: Mapping[str, tuple[float, ...]]

    def __getitem__(self, variant: str) -> tuple[float, ...]:
        """Return the times of a variant, one per round, in seconds.

        Args:
            variant: Its name.

        Returns:
            The times.

        Raises:
            IronrankError: If there is no such variant.
        """
        if variant not in self.seconds:
            raise IronrankError(f"variant {variant!r} was not timed: {nearest(variant, list(self.seconds))}")
        return self.seconds[variant]

    def spread(self, variant: str) -> Spread:
        """Return median, quartiles and minimum of a variant, in seconds."""
        q1, median, q3 = quartiles(self[variant])
        return Spread(median, q1, q3, min(self[variant]))

    def ratio(self, a: str, b: str) -> Ratio:
        """Compare two variants round by round.

        Args:
            a: The variant in the numerator.
            b: The variant in the denominator.

        Returns:
            Median and quartiles of t(a)/t(b), and min/min; below 1 means that ``a`` is faster.
        """
        q1, median, q3 = quartiles([ta / tb for ta, tb in zip(self[a], self[b], strict=True)])
        return Ratio(median, q1, q3, min(self[a]) / min(self[b]))


def quartiles(values: list[float] | tuple[float, ...]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile (linear interpolation).

    Args:
        values: At least one number.

    Returns:
        ``(q1, median, q3)``.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        (2.0, 3.0, 4.0)
    """
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    return float(q1), float(median), float(q3)


def compare(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimes:
    """Time all variants, each once per round, in an order that is shuffled anew in every round.

    Python's cyclic garbage collector runs between rounds only, so that no variant pays for the litter of
    another.

    Args:
        variants: What to time, by name.
        rounds: Number of timed rounds.
        warmup: Rounds before these that are not timed.
        seed: Seed of the shuffling.
        clock: Returns the time, in seconds.

    Returns:
        The times.

    Raises:
        IronrankError: If there is nothing to time.

    Example:
        >>> times = compare({"a": lambda: None, "b": lambda: None}, rounds=3)
        >>> len(times["a"]), len(times["b"])
        (3, 3)
    """
    if rounds < 1 or warmup < 0 or not variants:
        raise IronrankError(
            f"rounds={rounds}, warmup={warmup}, {len(variants)} variants: at least 1, 0 and 1 are needed"
        )
    shuffle = random.Random(seed).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with _frozen():
        for number in range(-warmup, rounds):
            order = list(variants)
            shuffle(order)
            for name, spent in _round(variants, order, clock):
                if number >= 0:
                    seconds[name].append(spent)
    return PairedTimes({name: tuple(values) for name, values in seconds.items()})


def _round(
    variants: Mapping[str, Callable[[], object]], order: list[str], clock: Callable[[], float]
) -> list[tuple[str, float]]:
    spent = []
    with _no_collection():
        for name in order:
            start = clock()
            variants[name]()
            spent.append((name, clock() - start))
    return spent


@contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _frozen() -> Iterator[None]:
    # Spare the collector what exists already, or each collection would sweep all of torch through the caches.
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
