"""Peak resident memory of a training step, in a fresh process: ``python -m ironrank.bench.peak "{...}"``."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from ironrank.bench.memory import resident_peak
from ironrank.bench.steps import Step, Task, batch_of, condlr_step, dense_step


def measure(spec: dict[str, Any], make: Callable[[Task], Step], steps: int = 3) -> dict[str, int]:
    """Build a step, run it, and read the peak of this process before and after.

    Args:
        spec: ``net``, ``keep``, ``batch``, ``tau``, ``momentum``, ``threads``.
        make: Builds the step.
        steps: Number of steps to run.

    Returns:
        ``baseline`` and ``peak``, in bytes.
    """
    for room in ("ironrank.methods", "ironrank.models"):
        importlib.import_module(room)  # libraries count for the baseline
    torch.set_num_threads(spec["threads"])
    warm = torch.nn.Conv2d(3, 8, 3)
    warm(torch.rand(1, 3, 8, 8)).sum().backward()
    baseline = resident_peak()
    torch.manual_seed(0)
    x, y = batch_of(spec["net"], spec["batch"])
    step = make(Task(spec["net"], spec["keep"], x, y, 0.01, spec["momentum"], spec["tau"]))
    for _ in range(steps):
        step()
    return {"baseline": baseline, "peak": resident_peak()}


def _main(text: str) -> None:
    spec = json.loads(text)
    make = {"dense": dense_step, "condlr": condlr_step}[spec["kind"]]
    sys.stdout.write(json.dumps(measure(spec, lambda task: make(task, spec["layout"]))) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1])
