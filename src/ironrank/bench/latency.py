"""Latency of a model: the time of single calls in evaluation mode, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.bench.paired import quartiles
from ironrank.errors import IronrankError


def latency(
    model: nn.Module,
    x: Tensor,
    runs: int = 80,
    threads: int = 1,
    *,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time the forward pass of a batch, call by call.

    Args:
        model: Any module; its mode is restored.
        x: The batch; of one image for the usual latency.
        runs: Number of timed calls.
        threads: Number of threads of torch during the calls; restored afterwards.
        warmup: Calls before these that are not timed.
        clock: Returns the time, in seconds.

    Returns:
        ``median``, ``q1``, ``q3`` of the calls in milliseconds, ``runs`` and ``threads``.

    Raises:
        IronrankError: If ``runs`` or ``threads`` is below one.

    Example:
        >>> sorted(latency(nn.Linear(2, 2), torch.zeros(1, 2), runs=2))
        ['median', 'q1', 'q3', 'runs', 'threads']
    """
    if runs < 1 or threads < 1:
        raise IronrankError(f"runs={runs}, threads={threads}: both must be at least 1")
    with _calm(model, threads), torch.inference_mode():
        for _ in range(warmup):
            model(x)
        times = [_call(model, x, clock) for _ in range(runs)]
    q1, median, q3 = quartiles(times)
    return {"median": median, "q1": q1, "q3": q3, "runs": runs, "threads": threads}


def _call(model: nn.Module, x: Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return 1e3 * (clock() - start)


@contextmanager
def _calm(model: nn.Module, threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with evaluation_mode(model):
            yield
    finally:
        torch.set_num_threads(before)
