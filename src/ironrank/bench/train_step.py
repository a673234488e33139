"""The training step, ours against dense: paired times, update share and memory of each net.

For each net one paired run holds: dense SGD in both memory formats, CondLR at each nominal compression, and
any further variants. "Best dense" is the dense variant with the smaller median.

    nominal compression c %   the low-rank layers keep the fraction 1 - c/100 of their rank
    ratio                     t(ours) / t(best dense), paired by round; below 1 ours is faster
    retraction share          (update of ours - update of dense) / step of ours
    update                    a step without its forward and backward pass
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ironrank.bench.allocator import in_force
from ironrank.bench.machine import machine
from ironrank.bench.memory import peak_of
from ironrank.bench.paired import PairedTimes, compare, quartiles
from ironrank.bench.steps import LAYOUTS, SHAPES, Step, Task, batch_of, condlr_step, dense_step
from ironrank.errors import IronrankError, nearest

Maker = Callable[[Task], Step | None]
LEARNING_RATE = 0.01  # small: the batch is noise, and the weights must stay finite


def bench_train_step(
    nets: list[str],
    nominal: list[int],
    rounds: int,
    batch: int,
    tau: float,
    momentum: float,
    threads: int,
    extra: Mapping[str, Maker] | None = None,
    *,
    layout: str = "channels_last",
    peak: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure training steps.

    Args:
        nets: Names out of ``lenet5``, ``vgg16``, ``wrn16-4``, ``resnet18``.
        nominal: Compressions in percent, such as 50 and 80.
        rounds: Timed rounds; 15 or more for the small net.
        batch: Images per step.
        tau: CondLR bounds every condition number by 1 + tau.
        momentum: Momentum of all variants.
        threads: Threads of torch; restored afterwards.
        extra: Further low-rank variants by name: each builds the step of a task, or returns None for a net
            that it does not have.
        layout: Memory format of our step: ``channels_last`` or ``nchw``.
        peak: Also measure the peak of resident memory, in one fresh process per variant.
        progress: Is told the name of each net that starts.

    Returns:
        What JSON can hold: ``hardware``, ``settings`` and ``rows``, one row per net and nominal compression;
        times in milliseconds, memory in bytes.
    """
    _check(nets, nominal, layout, rounds, batch)
    told = {"nets": list(nets), "nominal": list(nominal), "rounds": rounds, "batch": batch, "tau": tau,
            "momentum": momentum, "threads": threads, "layout": layout,
            "allocator_settings": in_force(threads), "extra": list(extra or {})}  # fmt: skip
    result: dict[str, Any] = {"hardware": machine(threads), "settings": told, "rows": []}
    with _threads(threads):
        for net in nets:
            if progress:
                progress(net)
            result["rows"] += _net(net, told, extra or {}, peak)
    return result


def _check(nets: list[str], nominal: list[int], layout: str, rounds: int, batch: int) -> None:
    for net in nets:
        if net not in SHAPES:
            raise IronrankError(f"net={net!r}: {nearest(net, list(SHAPES))}")
    if not nets or not nominal or any(not 0 < value < 100 for value in nominal):
        raise IronrankError(
            f"nets={nets}, nominal={nominal}: at least one of each is needed, nominal between 1 and 99 %"
        )
    if layout not in LAYOUTS:
        raise IronrankError(f"layout={layout!r}: {nearest(layout, list(LAYOUTS))}")
    if rounds < 1 or batch < 2:
        raise IronrankError(f"rounds={rounds}, batch={batch}: at least 1 and 2 are needed")


def _net(net: str, told: Mapping[str, Any], extra: Mapping[str, Maker], peak: bool) -> list[dict[str, Any]]:
    steps = dict(_steps(net, told, extra))
    times = compare(steps, told["rounds"])
    stuck = [name for name, step in steps.items() if not math.isfinite(step.loss)]
    if stuck:
        raise IronrankError(
            f"{net}: the loss of {', '.join(stuck)} is not finite, its times mean nothing; lower the momentum"
        )
    rows = [_row(net, value, told, steps, times, extra) for value in told["nominal"]]
    del steps
    gc.collect()  # the next net needs the memory
    if peak:
        for row in rows:
            _add_peak(row, told)
    return rows


def _steps(net: str, told: Mapping[str, Any], extra: Mapping[str, Maker]) -> Iterator[tuple[str, Step]]:
    x, y = batch_of(net, told["batch"])
    task = Task(net, 1.0, x, y, LEARNING_RATE, told["momentum"], told["tau"])
    makers: dict[str, Maker] = {"condlr": partial(condlr_step, layout=told["layout"]), **extra}
    for layout in LAYOUTS:
        torch.manual_seed(0)
        yield f"dense {layout}", dense_step(task, layout)
    for value in told["nominal"]:
        for name, make in makers.items():
            torch.manual_seed(0)
            step = make(task._replace(keep=_keep(value)))
            if step is not None:
                yield f"{name} {value}", step


def _keep(nominal: int) -> float:
    return round(1 - nominal / 100, 4)


def _row(
    net: str,
    value: int,
    told: Mapping[str, Any],
    steps: Mapping[str, Step],
    times: PairedTimes,
    extra: Mapping[str, Maker],
) -> dict[str, Any]:
    best = min((f"dense {layout}" for layout in LAYOUTS), key=lambda name: times.spread(name).median)
    ours, others = f"condlr {value}", [name for name in extra if f"{name} {value}" in steps]
    shown = {**{f"dense {layout}": f"dense {layout}" for layout in LAYOUTS}, "condlr": ours}
    shown |= {name: f"{name} {value}" for name in others}
    return {
        "net": net,
        "nominal": value,
        "keep": _keep(value),
        "best_dense": best,
        "ms": {label: times.spread(name).ms() for label, name in shown.items()},
        "ratio": times.ratio(ours, best)._asdict(),
        "retraction_share": _retraction_share(times, steps, ours, best, told["rounds"]),
        "extra_over_ours": {name: times.ratio(f"{name} {value}", ours)._asdict() for name in others},
        "failures": {label: steps[name].failures for label, name in shown.items() if steps[name].failures},
        "parameters": {label: steps[name].parameters() for label, name in shown.items()},
        "memory": {label: steps[name].memory().as_dict() for label, name in shown.items()},
    }


def _retraction_share(
    times: PairedTimes, steps: Mapping[str, Step], ours: str, dense: str, rounds: int
) -> float:
    def updates(name: str) -> list[float]:
        backward = steps[name].backward_seconds[-rounds:]
        return [total - part for total, part in zip(times[name], backward, strict=True)]

    pairs = zip(updates(ours), updates(dense), times[ours], strict=True)
    return quartiles([(mine - base) / total for mine, base, total in pairs])[1]


def _add_peak(row: dict[str, Any], told: Mapping[str, Any]) -> None:
    common = {"net": row["net"], **{key: told[key] for key in ("batch", "tau", "momentum", "threads")}}
    layout = row["best_dense"].removeprefix("dense ")
    variants = {
        row["best_dense"]: {**common, "kind": "dense", "layout": layout, "keep": 1.0},
        "condlr": {**common, "kind": "condlr", "layout": told["layout"], "keep": row["keep"]},
    }
    commands = {label: ["-m", "ironrank.bench.peak", json.dumps(spec)] for label, spec in variants.items()}
    row["peak"] = {label: peak_of(command, told["threads"]) for label, command in commands.items()}


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
