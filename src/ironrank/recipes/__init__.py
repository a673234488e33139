"""Recipes: functions that return a `Run`, by name. To add one, write the function and name it here."""

from __future__ import annotations

from collections.abc import Callable

from ironrank.recipes.condlr import lenet5_mnist, vgg16_cifar10, wrn16_4_cifar10, wrn16_4_cifar100
from ironrank.recipes.demo import demo
from ironrank.training import Run

RECIPES: dict[str, Callable[..., Run]] = {
    "demo": demo,
    "condlr/lenet5-mnist": lenet5_mnist,
    "condlr/vgg16-cifar10": vgg16_cifar10,
    "condlr/wrn16-4-cifar10": wrn16_4_cifar10,
    "condlr/wrn16-4-cifar100": wrn16_4_cifar100,
}

__all__ = ["RECIPES", "demo", "lenet5_mnist", "vgg16_cifar10", "wrn16_4_cifar10", "wrn16_4_cifar100"]
