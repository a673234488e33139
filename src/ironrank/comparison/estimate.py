"""How long a comparison would take if nothing else ran: a few real steps of every kind of net, timed and multiplied.

A kind is a training, a net and a budget; its seeds cost the same. Timed are steps of each of its stages on untrained
weights and a short attack on the net as it would be judged. What a method does now and then (choose ranks anew, once in
a hundred steps) is seldom among the timed steps: this is an estimate. Judging is counted as if no image fell early. On
a CPU the clock counts the time that this process computes, on one thread, so that other programs do not count.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from ironrank.attacks import PGD
from ironrank.comparison.cells import Cell
from ironrank.comparison.grid import STAGES, TRAINED, one_thread, stage_name
from ironrank.comparison.judging import CURVE_IMAGES, CURVE_STEPS, radii_of
from ironrank.comparison.question import Protocol, stages_of
from ironrank.data import Images
from ironrank.judge import withstood
from ironrank.judge.evaluate import for_inference
from ironrank.training import Run, train
from ironrank.training.loop import Job

STEPS = 2  # timed, after one that is not
PROBE = PGD(eps=0.1, steps=2)
PROBED = 32  # images


class Cost(NamedTuple):
    """Seconds of a run's stages, without and with what cells may share, and of judging."""

    last_stage: float
    earlier: dict[str, float]
    judging: float


def estimate(out: Path, cells: Iterable[Cell], protocol: Protocol) -> dict[str, float]:
    """Estimate the seconds that each cell still takes; a shared stage counts with the first cell that needs it.

    Args:
        out: The folder of the comparison; what is trained there is not counted, what is half trained is, in full.
        cells: The cells that are not judged yet.
        protocol: How they are judged.

    Returns:
        Seconds by name of the cell.
    """
    by_kind: dict[tuple, Cost] = {}
    trained = {file.parent.name for file in (out / STAGES).glob(f"*/{TRAINED}")}
    seconds = {}
    for cell in cells:
        if cell.kind not in by_kind:
            with one_thread():
                by_kind[cell.kind] = cost(cell.run, protocol)
        known = by_kind[cell.kind]
        seconds[cell.name] = known.judging
        if (out / cell.name / TRAINED).is_file():
            continue
        names = [stage_name(stage) for stage in stages_of(cell.run)[:-1]]
        new = [
            spent for name, spent in zip(names, known.earlier.values(), strict=True) if name not in trained
        ]
        trained.update(names)
        seconds[cell.name] += known.last_stage + sum(new)
    return seconds


def cost(run: Run, protocol: Protocol) -> Cost:
    """Time a few steps of each stage of a run, and multiply.

    Args:
        run: The run.
        protocol: How its net is judged.

    Returns:
        Its cost in seconds.
    """
    earlier, judging = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        start: str | None = None
        for number, stage in enumerate(stages_of(run)):
            alone = dataclasses.replace(stage, start=start)
            job = Job(alone, Path(folder), start, None)
            attacked = _attack_seconds(job)
            spent = stage.epochs * (job.epoch_steps * _step_seconds(job) + _validation(job, attacked))
            earlier[stage_name(stage)] = spent
            judging = _judging(protocol, run.data.load("test"), attacked)
            if stage is not run:
                start = str(train(dataclasses.replace(alone, epochs=0), Path(folder) / str(number)))
    return Cost(earlier.pop(stage_name(run)), earlier, judging)


def _step_seconds(job: Job) -> float:
    job.step(0)
    began = _now(job)
    for k in range(STEPS):
        job.step(k)
    return (_now(job) - began) / STEPS


def _now(job: Job) -> float:
    device = torch.device(job.run.device)
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _attack_seconds(job: Job) -> float:
    """Return the seconds that one attack step on one image takes."""
    images: Images = job.train_images.first(PROBED)
    net = for_inference(job.final(job.model))
    began = _now(job)
    withstood(net, images, dataclasses.replace(PROBE, norm=job.run.validate.norm), 0)
    return (_now(job) - began) / (len(images) * (PROBE.steps + 1))


def _validation(job: Job, attacked: float) -> float:
    held, attack = len(job.validation), job.run.validate
    return attacked * (min(held, job.run.validate_images) * (attack.gradient_steps + 1) + held / 3)


def _judging(protocol: Protocol, images: Images, attacked: float) -> float:
    count = len(images)
    steps = sum(attack.steps + 1 for attack in protocol.attacks) * min(protocol.n, count)
    curve = len(radii_of(protocol, images)) * (CURVE_STEPS + 1) * min(CURVE_IMAGES, protocol.n, count)
    return attacked * (steps + curve + count / 3)  # a forward pass alone is a third of a step
