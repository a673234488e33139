"""Stages of runs that compress: what comes before a method, what after it, and what it is measured against.

    mode         stages                                          epochs
    dense        the dense net                                   all
    cstar        dense; CSTAR; fine-tuning in factored form      half, a quarter, a quarter
    cstar+cond   the same, fine-tuned by CondLR                  half, a quarter, a quarter
    condlr       CondLR from scratch, one keep for all layers    all
    svd          dense; truncated at global ranks, fine-tuned    half, half
    narrow       a dense net of equal size                       all

All but the first have at most 1 / ratio of the dense net's parameters, biases and batch norm counted, in the deployed
form, and all have the same number of epochs and the same objective. Modes condlr and svd hold convolutions in the
channel form, or, where rank 1 everywhere is too much in it, in Tucker-2 form. CondLR starts from random weights, as its
authors train it. Fine-tuning takes a tenth of the learning rate: at the full one free factors of trained weights
diverge within a few steps.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from ironrank.data import DataSpec
from ironrank.errors import IronrankError, nearest
from ironrank.methods import CSTAR, SVD, CondLR, Dense, Method
from ironrank.models import Model, count, width_for
from ironrank.optim import Optimizer
from ironrank.training import Run

MODES = ("dense", "cstar", "cstar+cond", "condlr", "svd", "narrow")
GENTLER = 10  # fine-tuning divides the learning rate by this
TRAIN_IMAGES = {"mnist": 60_000, "fashion-mnist": 60_000, "fashion-small": 10_000, "cifar10": 50_000,
                "cifar100": 50_000, "imagenet": 1_281_167}  # fmt: skip


def staged(run: Run, mode: str, ratio: float, tau: float, ramp: float = 0.0) -> Run:
    """Give a dense run its stages; see the table there.

    Args:
        run: The dense run, adversarially trained.
        mode: One of `MODES`.
        ratio: How many times fewer parameters.
        tau: CondLR's tau.
        ramp: Share of a training from random weights in which the attack's eps grows to its full size.

    Returns:
        The run; all modes have its number of epochs.

    Raises:
        IronrankError: If the mode has another name, the ratio is out of range, or there are too few epochs.
    """
    if mode not in MODES:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(MODES))}")
    if ratio <= 1:
        raise IronrankError(f"ratio={ratio:g}: allowed is above 1 (how many times fewer parameters)")
    if mode == "dense":
        return ramped(run, ramp)
    if mode == "narrow":
        width = width_for(run.model, run.data.spec, count(run.model, run.data.spec) / ratio)
        narrow = dataclasses.replace(run.model, width=width)  # type: ignore[call-arg]
        return ramped(dataclasses.replace(run, model=narrow), ramp)
    if mode == "condlr":
        return ramped(
            dataclasses.replace(run, method=condlr_within(run.model, run.data.spec, ratio, tau)), ramp
        )
    return _from_dense(run, mode, ratio, tau, ramp)


def ramped(run: Run, share: float) -> Run:
    """Let the attack's eps grow over the first share of a training from random weights.

    Args:
        run: A training; one without an adversary stays as it is.
        share: 0 for the full eps from the first step on.

    Returns:
        The run.
    """
    if run.objective.threat is None or not share:
        return run
    steps = steps_of(run, share * run.epochs)
    if steps == 0:
        return run
    return dataclasses.replace(run, objective=dataclasses.replace(run.objective, ramp=steps))  # type: ignore[call-arg]


def at_full_eps(run: Run) -> Run:
    """Return a run whose attack has its full eps from the first step on."""
    if not getattr(run.objective, "ramp", 0):
        return run
    return dataclasses.replace(run, objective=dataclasses.replace(run.objective, ramp=0))  # type: ignore[call-arg]


def images_of(run: Run) -> float:
    """Return the number of images of an epoch; data that is known is not read for that."""
    known = TRAIN_IMAGES.get(run.data.name)
    return (1 - run.data.validation) * (known or len(run.data.load("train")))


def _from_dense(run: Run, mode: str, ratio: float, tau: float, ramp: float) -> Run:
    """Return the stages of the modes that start from the dense net."""
    budget = f"params={ratio:g}x"
    if mode == "svd":
        net, params = shapes(run.model, run.data.spec), int(count(run.model, run.data.spec) / ratio)
        method = SVD(budget=budget, last="low-rank").in_reach(net, params)
        return course(run, method, ramp=ramp)
    return course(run, CSTAR(budget=budget, last="low-rank"), None if mode == "cstar" else tau, ramp)


def course(run: Run, method: Method, condition: float | None = None, ramp: float = 0.0) -> Run:
    """Put a method on a dense run, in as many epochs, all stages together.

    A method that begins with random weights has all of them. One that begins with a trained net gets half of them,
    after a dense stage of the other half, which all such methods share. One whose final form is cut at the end has a
    quarter, and what it leaves is fine-tuned for the last quarter. Fine-tuning, and a method that is no more than that,
    takes a tenth of the learning rate. What a method counts in steps is a share of those it has, see `Method.paced`.

    Args:
        run: The dense run.
        method: The method.
        condition: tau of CondLR in the fine-tuning, where there is one; None for plain training.
        ramp: Share of a training from random weights in which the attack's eps grows to its full size.

    Returns:
        The run, with its earlier stages as ``start``.

    Raises:
        IronrankError: If there are fewer epochs than stages.
    """
    if method.begins == "random":
        return ramped(dataclasses.replace(run, method=method.paced(steps_of(run, run.epochs))), ramp)
    cut = method.ends == "cut"
    least = 3 if cut else 2
    if run.epochs < least:
        raise IronrankError(
            f"epochs={run.epochs}: method '{method.label()}' has {least} stages: allowed is at least {least}"
        )
    later = 2 * max(1, run.epochs // 4) if cut else run.epochs // 2
    dense = ramped(dataclasses.replace(run, epochs=run.epochs - later), ramp)
    paced = method.paced(steps_of(run, later // 2 if cut else later))
    after = dataclasses.replace(run, epochs=later, start=dense, method=paced)
    if cut:
        return fine_tuned(after, condition)
    return dataclasses.replace(after, optimizer=gentle(run)) if method.gentle else after


def steps_of(run: Run, epochs: float) -> int:
    """Return the whole steps of so many epochs; replays of a batch count."""
    return int(epochs * images_of(run) / run.batch_size * run.objective.steps_per_batch)


@functools.cache  # a dozen plans are made for one answer
def condlr_within(model: Model, spec: DataSpec, ratio: float, tau: float) -> CondLR:
    """Return CondLR at the largest keep, the same for all layers, whose deployed net meets the ratio.

    Args:
        model: The dense net.
        spec: The data it is built for.
        ratio: How many times fewer parameters.
        tau: tau.

    Returns:
        The method. Its last layer has full rank, as published, unless that alone is too much. The cores start at the
        norm of the random weights: what a truncation to a few percent of the rank leaves of those is so small that the
        training does not begin.

    Raises:
        IronrankError: If rank 1 everywhere is too much.
    """
    net, params = shapes(model, spec), int(count(model, spec) / ratio)
    return CondLR(tau=tau, scale="norm").in_reach(net, params).within(net, params)


def shapes(model: Model, spec: DataSpec) -> nn.Module:
    """Return a net on the meta device."""
    with torch.device("meta"):
        return model.build(spec)


def fine_tuned(run: Run, condition: float | None = None) -> Run:
    """Share a run's epochs between it and a stage that fine-tunes what it leaves, in factored form.

    Args:
        run: A run whose method leaves factors.
        condition: tau of CondLR in the second stage; None for plain training of the factors.

    Returns:
        The second stage, which starts from the first; the odd epoch is the first one's.
    """
    first = dataclasses.replace(run, epochs=run.epochs - run.epochs // 2)
    method: Method = Dense() if condition is None else CondLR(tau=condition)
    after = dataclasses.replace(
        run, start=first, method=method, optimizer=gentle(run), epochs=run.epochs // 2
    )
    return at_full_eps(after)


def gentle(run: Run) -> Optimizer:
    """Return the optimizer of a run with a tenth of its learning rate, for factors of trained weights."""
    return dataclasses.replace(run.optimizer, lr=run.optimizer.lr / GENTLER)
