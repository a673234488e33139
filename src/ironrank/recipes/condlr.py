"""Recipes of CondLR: the published nets, data sets and settings.

Settings as in the scripts of the published code (SGD, 120 epochs, learning rate times 0.3 at epochs 70 and
100, a quarter
of the training set held out, clean training); milestones are fractions here, so that a shorter run keeps their places.
The published attack is FGSM; validation here is by PGD on the net's own gradients.

    recipe                  net                 lr      momentum   batch
    condlr/lenet5-mnist     LeNet5 20-50-500    0.1     0.3        128
    condlr/vgg16-cifar10    VGG16, batch norm   0.05    0.45       128
    condlr/wrn16-4-cifar10  WRN-16-4            0.08    0.5        128
    condlr/wrn16-4-cifar100 WRN-16-4            0.1     0.5        256
"""

from __future__ import annotations

import dataclasses

from ironrank.attacks import PGD
from ironrank.data import CIFAR10, CIFAR100, MNIST
from ironrank.errors import IronrankError, nearest
from ironrank.methods import SVD, UV, CondLR, Dense, Method
from ironrank.models import VGG16, LeNet5, WideResNet
from ironrank.optim import SGD, Steps
from ironrank.recipes.stages import gentle
from ironrank.training import Run

MODES = ("dense", "svd", "uv", "condlr")
_L2 = PGD(norm="L2", eps=0.1, steps=10)


def lenet5_mnist(
    mode: str = "condlr",
    nominal: int = 80,
    tau: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """LeNet5 (20-50-500-10) on MNIST; published with 120 epochs.

    Args:
        mode: "dense", "svd", "uv" or "condlr".
        nominal: Nominal compression in percent: ranks are ``ceil((1 - nominal/100) full rank)``.
        tau: CondLR's bound on the condition number is ``1 + tau``.
        epochs: Passes over the training images; by default 20, tiny 1.
        seed: Seed of everything random.
        tiny: A narrow net and small batches, to try the recipe out.

    Returns:
        The run.
    """
    run = Run(
        recipe="condlr/lenet5-mnist",
        data=MNIST(validation=0.25),
        model=LeNet5(width=0.25 if tiny else 1.0),
        optimizer=SGD(lr=0.1, momentum=0.3),
        schedule=Steps(),
        epochs=_length(epochs, 20, tiny),
        batch_size=32 if tiny else 128,
        seed=seed,
        validate=PGD(norm="Linf", eps=0.1, steps=5),
        validate_images=64 if tiny else 500,
    )
    return staged(run, mode, nominal, tau)


def vgg16_cifar10(
    mode: str = "condlr",
    nominal: int = 80,
    tau: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """VGG16 with batch norm on CIFAR-10, 120 epochs; for the arguments see `lenet5_mnist`."""
    run = Run(
        recipe="condlr/vgg16-cifar10",
        data=CIFAR10(validation=0.25, augment="crop-flip"),
        model=VGG16(width=0.0625 if tiny else 1.0),
        optimizer=SGD(lr=0.05, momentum=0.45),
        schedule=Steps(),
        epochs=_length(epochs, 120, tiny),
        batch_size=32 if tiny else 128,
        seed=seed,
        validate=_L2,
        validate_images=64 if tiny else 500,
    )
    return staged(run, mode, nominal, tau)


def wrn16_4_cifar10(
    mode: str = "condlr",
    nominal: int = 80,
    tau: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """WRN-16-4 on CIFAR-10, 120 epochs; for the arguments see `lenet5_mnist`."""
    # the published scripts use lr 0.05 for tau = 0 at 50 and momentum 0.95 for tau = 0.1 at 80: set them by --set
    run = Run(
        recipe="condlr/wrn16-4-cifar10",
        data=CIFAR10(validation=0.25, augment="crop-flip"),
        model=WideResNet(width=0.125 if tiny else 1.0),
        optimizer=SGD(lr=0.08, momentum=0.5),
        schedule=Steps(),
        epochs=_length(epochs, 120, tiny),
        batch_size=32 if tiny else 128,
        seed=seed,
        validate=_L2,
        validate_images=64 if tiny else 500,
    )
    return staged(run, mode, nominal, tau)


def wrn16_4_cifar100(
    mode: str = "condlr",
    nominal: int = 50,
    tau: float = 0.1,
    epochs: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> Run:
    """WRN-16-4 on CIFAR-100, 120 epochs, published at 50 only; for the arguments see `lenet5_mnist`."""
    run = wrn16_4_cifar10(mode="dense", epochs=epochs, seed=seed, tiny=tiny)
    run = dataclasses.replace(
        run,
        recipe="condlr/wrn16-4-cifar100",
        data=CIFAR100(validation=0.25, augment="crop-flip"),
        optimizer=SGD(lr=0.1, momentum=0.5),
        batch_size=32 if tiny else 256,
    )
    return staged(run, mode, nominal, tau)


def _length(epochs: int | None, published: int, tiny: bool) -> int:
    return epochs if epochs is not None else 1 if tiny else published


def staged(run: Run, mode: str, nominal: int, tau: float) -> Run:
    """Give a run its method.

    SVD trains dense for half of the epochs first, so that all modes have the same budget, and fine-tunes with a
    tenth of the learning rate: at the full one the two factors of a trained layer diverge within a few steps.

    Args:
        run: The dense run.
        mode: "dense", "svd", "uv" or "condlr".
        nominal: Nominal compression in percent, from 0 to 99.
        tau: CondLR's tau.

    Returns:
        The run.

    Raises:
        IronrankError: If the mode has another name, or the compression is out of range.
    """
    if mode not in MODES:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(MODES))}")
    if not 0 <= nominal < 100:
        raise IronrankError(f"nominal={nominal}: allowed is 0 to 99 (nominal compression in percent)")
    keep, centre = (100 - nominal) / 100, "rms" if tau == 0 else "mean"  # centres as published
    methods: dict[str, Method] = {
        "dense": Dense(),
        "svd": SVD(keep=keep),
        "uv": UV(keep=keep),
        "condlr": CondLR(keep=keep, tau=tau, centre=centre),
    }
    if mode != "svd":
        return dataclasses.replace(run, method=methods[mode])
    first = dataclasses.replace(run, epochs=run.epochs - run.epochs // 2)
    return dataclasses.replace(
        run, method=methods["svd"], epochs=run.epochs // 2, start=first, optimizer=gentle(run)
    )
