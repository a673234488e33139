"""Latency of deployed nets, always beside the dense net: a machine that slows down slows down both.

For a comparison at equal latency each net gets the largest size whose measured time is so many percent below that of
the dense net. That size is searched for with untrained weights, by bisection in the logarithm of the parameters, with a
bounded number of measurements; methods whose form depends on the trained weights come out near it, not on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.bench.paired import compare
from ironrank.comparison.cells import Size, within
from ironrank.comparison.grid import one_thread
from ironrank.comparison.question import Question
from ironrank.data import mix
from ironrank.errors import IronrankError
from ironrank.files import read_json, write_json
from ironrank.judge.evaluate import for_inference
from ironrank.models import count
from ironrank.training import Run

SIZES = "sizes.json"
ROUNDS = 100
MEASUREMENTS, TRIES = 8, 20  # a try that no rank or width is small enough for costs nothing
SMALLEST = 1000  # times fewer parameters than the dense net

Measure = Callable[[Run], float]  # a run to the time of its net by that of the dense one


def paired(dense: nn.Module, net: nn.Module, x: Tensor, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time single calls of two deployed nets in turn, on one thread.

    Args:
        dense: The net to compare with.
        net: The net.
        x: A batch of one image.
        rounds: Calls of each.

    Returns:
        ``median``, ``q1``, ``q3`` of the net and ``dense`` of the other, in milliseconds; ``ratio``, ``ratio_q1``,
        ``ratio_q3`` of their times within a round; ``rounds`` and ``threads``.
    """

    def call(model: nn.Module) -> None:
        model(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    with one_thread(), torch.inference_mode():
        times = compare({"dense": lambda: call(dense), "net": lambda: call(net)}, rounds, warmup=5)
    own, ratio = times.spread("net").ms(), times.ratio("net", "dense")
    return {"median": own["median"], "q1": own["q1"], "q3": own["q3"],
            "dense": times.spread("dense").ms()["median"], "ratio": ratio.median, "ratio_q1": ratio.q1,
            "ratio_q3": ratio.q3, "rounds": rounds, "threads": 1}  # fmt: skip


def untrained(run: Run) -> nn.Module:
    """Return the deployed form that a run's method would give to untrained weights."""
    torch.manual_seed(mix(run.seed, "init"))
    net = run.method.prepare(run.model.build(run.data.spec))
    return for_inference(run.method.finish(net, run.method.init(net))).to(run.device)


def ratio_to_dense(base: Run) -> Measure:
    """Return what measures the net of a run against the dense one."""
    dense = untrained(base)
    x = torch.rand(1, *base.data.spec.shape, generator=torch.Generator().manual_seed(0)).to(base.device)
    return lambda run: float(paired(dense, untrained(run), x)["ratio"])


class Found(NamedTuple):
    """What a search came to: the number of parameters, None where the time was not met, and all measurements."""

    params: int | None
    measured: list[tuple[int, float]]


def search(ratio_of: Callable[[int], float], whole: int, target: float) -> Found:
    """Look for the largest number of parameters whose net takes at most a share of the dense net's time.

    Args:
        ratio_of: Number of parameters to the measured share; an `IronrankError` where no net is that small.
        whole: Parameters of the dense net.
        target: The share.

    Returns:
        What was found with at most `MEASUREMENTS` measurements.

    Example:
        >>> search(lambda params: params / 1000, 1000, 0.5).params
        497
    """
    low, high, best = whole / SMALLEST, float(whole), None
    measured: list[tuple[int, float]] = []
    for _ in range(TRIES):
        params = round(math.sqrt(low * high))
        if len(measured) == MEASUREMENTS or params in (round(low), round(high)):
            break
        try:
            ratio = ratio_of(params)
        except IronrankError:
            low = params
            continue
        measured.append((params, ratio))
        if ratio <= target:
            low = best = params
        else:
            high = params
    return Found(best, measured)


def by_latency(question: Question, folder: Path, measure: Measure | None = None, keep: bool = True) -> Size:
    """Return what gives a net so many percent less latency than the dense one has.

    Args:
        question: What is asked.
        folder: Where found sizes are kept, so that a comparison goes on with the same nets.
        measure: Measures the net of a run.
        keep: Whether to keep what is found.

    Returns:
        A function of net and budget; where the time cannot be met it raises an `IronrankError` that says what was
        reached.
    """
    base, store = question.base, folder / SIZES
    known: dict[str, Any] = read_json(store) if store.is_file() else {}
    timer = measure

    def size(net: str, budget: float) -> Run:
        nonlocal timer
        key = f"{net}_{budget:g}"
        if key not in known:
            timer = timer or ratio_to_dense(base)
            chosen = timer
            whole = count(base.model, base.data.spec)
            found = search(lambda params: chosen(within(question, net, params)), whole, 1 - budget / 100)
            known[key] = found._asdict()
            if keep:
                write_json(store, known)
        return _sized(question, net, budget, Found(**known[key]))

    return size


def _sized(question: Question, net: str, budget: float, found: Found) -> Run:
    if found.params is not None:
        return within(question, net, found.params)
    if not found.measured:
        return within(question, net, 1)  # says what the smallest is
    params, ratio = min(found.measured, key=lambda pair: pair[1])
    raise IronrankError(
        f"{net} with {budget:g} % less latency than dense: not reached in {len(found.measured)} measurements; at "
        f"{params:,} parameters it takes {100 * ratio:.0f} % of the dense net's time"
    )
