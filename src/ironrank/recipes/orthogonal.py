"""Recipes of the orthogonality baselines: full-rank nets whose weights are orthonormal, or drawn towards it.

Net, data, optimizer, epochs and validation are those of CondLR's recipes, so that rows stand in one table with it; its
own table has rows of Cayley SGD and projected SGD from the same scripts.

    mode              method
    dense             nothing
    cayley            Cayley SGD on the Stiefel manifold
    projected         projected SGD on it, by QR
    soft-orthogonal   penalty on the squared Frobenius norm of X^T X - I
    srip              penalty on its spectral norm
    spectral          penalty on the logarithm of the condition number

Weights of the penalties are ours and not tuned.
"""

from __future__ import annotations

import dataclasses

from ironrank.errors import IronrankError, nearest
from ironrank.methods import Cayley, Dense, Method, Projected, SoftOrthogonal, Spectral
from ironrank.recipes import condlr
from ironrank.training import Run

MODES = ("dense", "cayley", "projected", "soft-orthogonal", "srip", "spectral")


def lenet5_mnist(mode: str = "cayley", epochs: int | None = None, seed: int = 0, tiny: bool = False) -> Run:
    """LeNet5 (20-50-500-10) on MNIST; momentum 0.3.

    Args:
        mode: "dense", "cayley", "projected", "soft-orthogonal", "srip" or "spectral".
        epochs: Passes over the training images; by default 20, tiny 1.
        seed: Seed of everything random.
        tiny: A narrow net and small batches, to try the recipe out.

    Returns:
        The run.
    """
    run = condlr.lenet5_mnist("dense", epochs=epochs, seed=seed, tiny=tiny)
    return _with(run, "orthogonal/lenet5-mnist", mode, momentum=0.3)


def vgg16_cifar10(mode: str = "cayley", epochs: int | None = None, seed: int = 0, tiny: bool = False) -> Run:
    """VGG16 with batch norm on CIFAR-10, 120 epochs, momentum 0.45; for the arguments see `lenet5_mnist`."""
    run = condlr.vgg16_cifar10("dense", epochs=epochs, seed=seed, tiny=tiny)
    return _with(run, "orthogonal/vgg16-cifar10", mode, momentum=0.45)


def _with(run: Run, recipe: str, mode: str, momentum: float) -> Run:
    """Give a dense run its name and method; the momentum of orthonormal weights is that of the others."""
    methods: dict[str, Method] = {
        "dense": Dense(),
        "cayley": Cayley(momentum=momentum),
        "projected": Projected(momentum=momentum),
        "soft-orthogonal": SoftOrthogonal(kind="so"),
        "srip": SoftOrthogonal(kind="srip"),
        "spectral": Spectral(kind="cond"),
    }
    if mode not in methods:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(MODES))}")
    return dataclasses.replace(run, recipe=recipe, method=methods[mode])
