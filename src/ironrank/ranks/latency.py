"""Latency as a cost: each layer is timed by itself, dense and at a few ranks of each form, the rest interpolated.

The inputs of the layers have the shapes that an example gives them. Between two measured ranks, time is taken as linear
in the stored parameters, and never falling: what a stopwatch shows beyond that is noise. For Tucker-2 the measured
pairs keep the proportion of the two channel counts. What the layers do not explain of the whole model's time counts as
fixed.

A sum of single times is an estimate: caches and threads see the whole net otherwise. Time the result.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ironrank.errors import IronrankError
from ironrank.layers import factored_kind
from ironrank.layers.forms import matrix_shape
from ironrank.linalg.tucker import feasible_ranks
from ironrank.ranks.cost import Array, Site, call, input_of, params

Timer = Callable[[nn.Module, Any], float]  # from a module and its input to milliseconds


def median_ms(
    module: nn.Module, x: Any, runs: int = 15, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the median time of a call in evaluation mode, in milliseconds, after three calls that are not timed.

    Args:
        module: The module.
        x: Its input, or a tuple of inputs.
        runs: Number of timed calls.
        clock: Returns the time in seconds.

    Returns:
        Milliseconds.

    Raises:
        IronrankError: If runs is below one.
    """
    if runs < 1:
        raise IronrankError(f"runs={runs}: allowed is at least 1")
    times = [_seconds(module, x, clock) for _ in range(runs + 3)]
    return 1e3 * statistics.median(times[3:])


def _seconds(module: nn.Module, x: Any, clock: Callable[[], float]) -> float:
    start = clock()
    call(module, x)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


class Times(NamedTuple):
    """Measured times of one form of a layer: stored parameters, rising, and milliseconds, never falling."""

    params: Array
    ms: Array


class LatencyTable:
    """The latency of every form and rank of every measured layer: a cost, as those of `ironrank.ranks.cost`.

    Args:
        times: Measured times by name and form; "dense" is one of the forms.
    """

    def __init__(self, times: dict[tuple[str, str], Times]) -> None:
        self.times = times

    def __call__(self, site: Site, form: str, ranks: Array) -> Array:
        """Return milliseconds for each row of ranks (k, 2)."""
        measured = self.times[site.name, form]
        return np.interp(params(site, form, ranks), measured.params, measured.ms)


def measure(
    model: nn.Module,
    sites: Iterable[Site],
    wishes: Mapping[str, str],
    example: Any,
    *,
    points: int = 5,
    timer: Timer = median_ms,
) -> LatencyTable:
    """Time layers by themselves, in the forms that a wish allows.

    Args:
        model: The model, dense in these layers.
        sites: The layers.
        wishes: Wished form of each layer by name, or "auto".
        example: Input of the model as it will be used: latency depends on the size of the batch.
        points: Number of ranks to time for each form.
        timer: Times a call of a module, in milliseconds.

    Returns:
        The table. A layer that is called several times counts several times.
    """
    found: dict[tuple[str, str], Times] = {}
    chosen = list(sites)
    inputs = _inputs(model, [site.name for site in chosen], example)
    for site in chosen:
        layer = model.get_submodule(site.name)

        def total(module: nn.Module, name: str = site.name) -> float:
            return sum(timer(module, x) for x in inputs[name])

        whole = params(site, "dense", np.zeros((1, 2), dtype=np.int64))
        found[site.name, "dense"] = Times(whole, np.array([total(layer)]))
        for kind in site.forms(wishes[site.name]):
            pairs = _ladder(site, kind, points)
            times = np.array([total(thin(layer, kind, _rank(kind, pair))) for pair in pairs])
            found[site.name, kind] = Times(params(site, kind, pairs), np.maximum.accumulate(times))
    return LatencyTable(found)


@torch.no_grad()
def thin(layer: Any, form: str, rank: Any) -> nn.Module:
    """Return plain layers of the sizes of a form, with random weights, as `deploy` would make them.

    Args:
        layer: The dense layer.
        form: Its form.
        rank: Its rank.

    Returns:
        A chain of plain torch layers.
    """
    made: Any = factored_kind(type(layer), form)
    factored = made.like(layer, rank, form == "tucker2", form=form, fresh=False)
    for parameter in factored.parameters():
        parameter.normal_()  # what the memory holds may be slow to compute with
    return factored.deploy(False)


def _rank(kind: str, pair: Array) -> Any:
    return (int(pair[0]), int(pair[1])) if kind == "tucker2" else int(pair[0])


def _ladder(site: Site, kind: str, points: int) -> Array:
    """Return ranks from the smallest to the largest, evenly spaced in the logarithm, as rows (k, 2)."""
    n, c = site.shape[:2]
    if kind == "tucker2":
        shares = np.geomspace(1 / max(n, c), 1, points)
        pairs = [feasible_ranks(site.shape, (max(1, round(n * s)), max(1, round(c * s)))) for s in shares]
        return np.unique(np.array(pairs), axis=0)
    ranks = np.unique(np.geomspace(1, min(matrix_shape(site.shape, kind)), points).round().astype(np.int64))
    return np.stack([ranks, ranks], 1)


def _inputs(model: nn.Module, names: list[str], example: Any) -> dict[str, list[torch.Tensor]]:
    """Return the inputs with which each layer is called."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}

    def keep(layer: nn.Module, args: tuple, named: dict[str, Any], name: str) -> None:
        seen[name].append(input_of(args, named).detach())

    hooks = [
        model.get_submodule(n).register_forward_pre_hook(functools.partial(keep, name=n), with_kwargs=True)
        for n in names
    ]
    try:
        call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
