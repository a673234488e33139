"""Recipes of the methods whose ranks adapt: the published nets, data sets and settings, as far as they are known.

    recipe                     net                 optimizer            epochs   batch   known from
    dlrt/lenet5-mnist          LeNet5 20-50-500    SGD, lr 0.05         20       128     scripts and logs of its code
    robust-dlrt/vgg16-cifar10  VGG16, batch norm   AdamW, lr 0.001      20 + 1   128     the paper, tables 8 and 9

LeNet5: the published data are split at random into 50,000 images for training, 10,000 for validation and 10,000 for
the test; here a sixth of the training set is held out and the test set is MNIST's own. Inputs are normalized, there
they are not.

VGG16: the published net is that of ImageNet (138 M parameters), started from ImageNet weights; here it is the net for
32 x 32 pixels (15 M), from random weights or from a dense run (``start``), so published figures are no target. As in
the published code the learning rate falls along half a cosine, gradients are clipped at norm 1 (in every mode), and
after 20 epochs one more trains at fixed rank. That stretch is counted in steps of the recipe's batch size: with
``batch_size`` set to another, set ``method.steps`` too.
"""

from __future__ import annotations

import dataclasses
import math

from ironrank.attacks import PGD
from ironrank.data import CIFAR10, MNIST
from ironrank.errors import IronrankError, nearest
from ironrank.methods import DLRT, Dense, Method, RobustDLRT
from ironrank.models import VGG16, LeNet5
from ironrank.optim import SGD, AdamW, Cosine
from ironrank.recipes.stages import images_of
from ironrank.training import Run

MODES = ("dense", "dlrt", "robust-dlrt")
THETAS = (0.09, 0.11, 0.13, 0.15, 0.2, 0.3, 0.4, 0.45)  # of DLRT's published table


def lenet5_mnist(
    mode: str = "dlrt",
    theta: float = 0.15,
    beta: float = 0.05,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """LeNet5 (20-50-500-10, ReLU) on MNIST from scratch; the last layer is dense, as DLRT is published.

    Args:
        mode: "dense", "dlrt" or "robust-dlrt".
        theta: Share of a core's norm that truncation may drop; published 0.09 to 0.45.
        beta: Weight of RobustDLRT's regulariser.
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
    start = "half-normal"  # as published; weights of torch's scale do not survive a large tolerance
    # as matrices, and with the same ends, so that both differ by their steps alone
    robust = RobustDLRT(
        tolerance=theta, beta=beta, form="channel", first="low-rank", last="dense", spectrum=start
    )
    return _with(run, mode, DLRT(tolerance=theta, spectrum=start), robust)


def vgg16_cifar10(
    mode: str = "robust-dlrt",
    theta: float = 0.1,
    beta: float = 0.05,
    pretrain: int = 0,
    fixed: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """VGG16 with batch norm on CIFAR-10.

    Args:
        mode: "dense", "dlrt" or "robust-dlrt".
        theta: Share of a core's norm that truncation may drop; published 0.1.
        beta: Weight of RobustDLRT's regulariser; published 0.05, in another table 0.15.
        pretrain: Epochs of dense training first, whose weights are the start; 0 is from scratch.
        fixed: The last so many epochs train at fixed ranks; published 1, which is the default unless epochs is 1.
        epochs: Passes over the training images after that, those at fixed ranks included; by default 21, tiny 1.
        seed: Seed of everything random.
        tiny: A narrow net and small batches, to try the recipe out.

    Returns:
        The run.

    Raises:
        IronrankError: If pretrain is negative, or no epoch is left in which ranks adapt.
    """
    run = Run(
        recipe="robust-dlrt/vgg16-cifar10",
        data=CIFAR10(validation=0.1, augment="crop-flip"),
        model=VGG16(width=0.0625 if tiny else 1.0),
        optimizer=AdamW(lr=0.001),
        schedule=Cosine(),
        clip=1.0,
        epochs=_length(epochs, 21, tiny),
        batch_size=32 if tiny else 128,
        seed=seed,
        validate=PGD(norm="L2", eps=0.1, steps=10),
        validate_images=64 if tiny else 500,
    )
    if pretrain < 0:
        raise IronrankError(f"pretrain={pretrain}: allowed is at least 0 (epochs of dense training first)")
    start = dataclasses.replace(run, epochs=pretrain) if pretrain else None
    run = dataclasses.replace(run, start=start)
    steps = _adapting(run, fixed)
    robust = RobustDLRT(tolerance=theta, beta=beta, keep=1.0, max_rank=150, steps=steps)
    return _with(run, mode, DLRT(tolerance=theta, keep=1.0, max_rank=150, steps=steps), robust)


def _length(epochs: int | None, published: int, tiny: bool) -> int:
    return epochs if epochs is not None else 1 if tiny else published


def _adapting(run: Run, fixed: int | None) -> int:
    """Return the number of steps before the epochs at fixed ranks, or 0 where there are no such epochs."""
    last = min(1, max(0, run.epochs - 1)) if fixed is None else fixed
    if fixed is not None and not 0 <= fixed < max(1, run.epochs):
        raise IronrankError(
            f"fixed={fixed}: allowed is 0 to {max(0, run.epochs - 1)}, epochs without the first"
        )
    return (run.epochs - last) * math.ceil(round(images_of(run)) / run.batch_size) if last else 0


def _with(run: Run, mode: str, *rivals: Method) -> Run:
    methods = {method.name: method for method in (Dense(), *rivals)}
    if mode not in methods:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(methods))}")
    return dataclasses.replace(run, method=methods[mode])
