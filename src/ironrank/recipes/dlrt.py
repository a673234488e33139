"""Recipes of the methods whose ranks adapt: the published nets, data sets and settings, as far as they are known.

    recipe                     net                 optimizer            epochs   batch   known from
    dlrt/lenet5-mnist          LeNet5 20-50-500    SGD, lr 0.05         20       128     scripts and logs of its code

The published data are split at random into 50,000 images for training, 10,000 for validation and 10,000 for the test;
here a sixth of the training set is held out and the test set is MNIST's own. Inputs are normalized, there they are not.
"""

from __future__ import annotations

import dataclasses

from ironrank.attacks import PGD
from ironrank.data import MNIST
from ironrank.errors import IronrankError, nearest
from ironrank.methods import DLRT, Dense, Method
from ironrank.models import LeNet5
from ironrank.optim import SGD
from ironrank.training import Run

MODES = ("dense", "dlrt")
THETAS = (0.09, 0.11, 0.13, 0.15, 0.2, 0.3, 0.4, 0.45)  # of the published table


def lenet5_mnist(
    mode: str = "dlrt", theta: float = 0.15, epochs: int | None = None, seed: int = 0, tiny: bool = False
) -> Run:
    """LeNet5 (20-50-500-10, ReLU) on MNIST from scratch; the last layer is dense, as published.

    Args:
        mode: "dense" or "dlrt".
        theta: Share of a core's norm that truncation may drop; published 0.09 to 0.45.
        epochs: Passes over the training images; by default 20, tiny 1.
        seed: Seed of everything random.
        tiny: A narrow net and small batches, to try the recipe out.

    Returns:
        The run.
    """
    run = Run(
        recipe="dlrt/lenet5-mnist",
        data=MNIST(validation=1 / 6),
        model=LeNet5(width=0.25 if tiny else 1.0, slope=0.0),
        optimizer=SGD(lr=0.05, momentum=0.0),
        epochs=_length(epochs, 20, tiny),
        batch_size=32 if tiny else 128,
        seed=seed,
        validate=PGD(norm="Linf", eps=0.1, steps=5),
        validate_images=64 if tiny else 500,
    )
    return _with(run, mode, {"dense": Dense(), "dlrt": DLRT(tolerance=theta)})


def _length(epochs: int | None, published: int, tiny: bool) -> int:
    return epochs if epochs is not None else 1 if tiny else published


def _with(run: Run, mode: str, methods: dict[str, Method]) -> Run:
    if mode not in methods:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(methods))}")
    return dataclasses.replace(run, method=methods[mode])
