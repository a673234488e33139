"""Recipes of pruning: filters removed, or singular values dropped, from nets that are trained against attacks.

Net, data, attack, optimizer, epochs and validation are those of CSTAR's recipes of the same name, so that rows stand in
one table with it.

    mode           stages                                                       epochs
    dense          the dense net                                                all
    magnitude      dense; filters of least norm removed, fine-tuning            half, half
    admm-filters   dense; ADMM on filters; fine-tuning of the smaller net       half, a quarter, a quarter
    scores         dense; scores for half of the stage, then fine-tuning        half, half
    svd-prune      SVD training, the smallest singular values dropped halfway   all

All but the first have at most 1 / ratio of the dense net's parameters, all as many epochs. Fine-tuning takes a tenth of
the learning rate, see `ironrank.recipes.stages.course`. Shares and settings are ours; HYDRA gives a sixth of the steps
after the dense net to its scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ironrank.errors import IronrankError, nearest
from ironrank.methods import ADMMFilters, Magnitude, Method, Scores, SVDPrune
from ironrank.recipes import cstar
from ironrank.recipes.stages import at_full_eps, course
from ironrank.training import Run

KINDS: dict[str, Callable[..., Method]] = {
    kind.name: kind for kind in (Magnitude, ADMMFilters, Scores, SVDPrune)
}
MODES = ("dense", *KINDS)


def lenet5_mnist(
    mode: str = "magnitude", ratio: float = 8, epochs: int | None = None, seed: int = 0, tiny: bool = False
) -> Run:
    """LeNet5 (20-50-500-10) on MNIST at Linf 0.3, trained by PGD-10.

    Args:
        mode: "dense", "magnitude", "admm-filters", "scores" or "svd-prune".
        ratio: How many times fewer parameters, above 1.
        epochs: Passes over the training images, all stages together; by default 20, tiny 4.
        seed: Seed of everything random.
        tiny: A narrow net, small batches and a short attack, to try the recipe out.

    Returns:
        The run.
    """
    run = cstar.lenet5_mnist("dense", epochs=_length(epochs, tiny), seed=seed, tiny=tiny)
    return _staged(
        dataclasses.replace(run, recipe="pruning/lenet5-mnist"), mode, ratio, tiny, ramp=cstar.RAMP
    )


def resnet18_cifar10(
    mode: str = "magnitude", ratio: float = 8, epochs: int | None = None, seed: int = 0, tiny: bool = False
) -> Run:
    """ResNet-18 on CIFAR-10 at Linf 8/255, trained by PGD-10, 80 epochs; for the arguments see `lenet5_mnist`."""
    run = cstar.resnet18_cifar10("dense", epochs=_length(epochs, tiny), seed=seed, tiny=tiny)
    return _staged(dataclasses.replace(run, recipe="pruning/resnet18-cifar10"), mode, ratio, tiny)


def _length(epochs: int | None, tiny: bool) -> int | None:
    return 4 if tiny and epochs is None else epochs


def _staged(run: Run, mode: str, ratio: float, tiny: bool, ramp: float = 0.0) -> Run:
    """Give a dense run its stages; see the table at the top of this file."""
    if mode not in MODES:
        raise IronrankError(f"mode={mode!r}: {nearest(mode, list(MODES))}")
    if ratio <= 1:
        raise IronrankError(f"ratio={ratio:g}: allowed is above 1 (how many times fewer parameters)")
    if mode == "dense":
        return run
    method = KINDS[mode](budget=f"params={ratio:g}x")
    if tiny and isinstance(method, (Scores, SVDPrune)):
        method = dataclasses.replace(method, steps=2)  # the data may be small as well
    return course(at_full_eps(run), method, ramp=0.0 if tiny else ramp)
