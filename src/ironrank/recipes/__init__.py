"""Recipes: functions that return a `Run`, by name. To add one, write the function and name it here."""

from __future__ import annotations

from collections.abc import Callable

from ironrank.recipes import condlr, cstar, demo, dlrt, orthogonal, pruning
from ironrank.training import Run

RECIPES: dict[str, Callable[..., Run]] = {
    "demo": demo.demo,
    "condlr/lenet5-mnist": condlr.lenet5_mnist,
    "condlr/vgg16-cifar10": condlr.vgg16_cifar10,
    "condlr/wrn16-4-cifar10": condlr.wrn16_4_cifar10,
    "condlr/wrn16-4-cifar100": condlr.wrn16_4_cifar100,
    "cstar/lenet5-mnist": cstar.lenet5_mnist,
    "cstar/resnet20-cifar10": cstar.resnet20_cifar10,
    "cstar/resnet18-cifar10": cstar.resnet18_cifar10,
    "cstar/vgg16-cifar10": cstar.vgg16_cifar10,
    "cstar/wrn28-4-cifar10": cstar.wrn28_4_cifar10,
    "cstar/resnet18-cifar100": cstar.resnet18_cifar100,
    "cstar/resnet18-imagenet": cstar.resnet18_imagenet,
    "orthogonal/lenet5-mnist": orthogonal.lenet5_mnist,
    "orthogonal/vgg16-cifar10": orthogonal.vgg16_cifar10,
    "dlrt/lenet5-mnist": dlrt.lenet5_mnist,
    "robust-dlrt/vgg16-cifar10": dlrt.vgg16_cifar10,
    "pruning/lenet5-mnist": pruning.lenet5_mnist,
    "pruning/resnet18-cifar10": pruning.resnet18_cifar10,
}

__all__ = ["RECIPES"]
