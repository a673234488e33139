"""Recipes: functions that return a `Run`, by name. To add one, write the function and name it here."""

from __future__ import annotations

from collections.abc import Callable

from ironrank.recipes import condlr, demo
from ironrank.training import Run

RECIPES: dict[str, Callable[..., Run]] = {
    "demo": demo.demo,
    "condlr/lenet5-mnist": condlr.lenet5_mnist,
    "condlr/vgg16-cifar10": condlr.vgg16_cifar10,
    "condlr/wrn16-4-cifar10": condlr.wrn16_4_cifar10,
    "condlr/wrn16-4-cifar100": condlr.wrn16_4_cifar100,
}

__all__ = ["RECIPES"]
