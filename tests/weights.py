"""Trained nets and real images beside the checkout, for the tests marked ``shared``; absent ones are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ironrank.data import MNIST, Images

SHARED = Path(__file__).parents[2] / "shared"


def mnist_net(name: str = "mnist_cnn16-32_pgd_linf0.3") -> nn.Module:
    """A small convolutional net for MNIST, trained against an attack; in evaluation mode."""
    path = SHARED / "weights" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip("there are no trained nets beside the checkout")
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(True)


def mnist_images(n: int) -> Images:
    """The first test images of MNIST."""
    folder = SHARED / "data" / "mnist"
    if not folder.is_dir():
        pytest.skip("there is no data folder beside the checkout")
    return MNIST(folder=str(folder)).load("test").first(n)


def pixels_and_classes(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first test images as pixels, and their classes."""
    images = mnist_images(n)
    return images.pixels(torch.arange(len(images))), images.y
