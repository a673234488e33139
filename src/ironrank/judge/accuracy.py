"""Accuracy, clean and under attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ironrank.attacks.base import Attack, evaluation_mode
from ironrank.attacks.losses import predicts
from ironrank.data import Images
from ironrank.linalg.precision import no_tf32

BATCH = 500


def batches(images: Images, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images in order.

    Args:
        images: The images.
        size: Images at a time.

    Yields:
        x float32 (b, c, h, w) in [0, 1] and y int64 (b,).
    """
    for start in range(0, len(images), size):
        x = images.pixels(torch.arange(start, min(start + size, len(images))))
        yield x.to(memory_format=torch.channels_last), images.y[start : start + size]


@no_tf32()
@torch.no_grad()
def correct(model: nn.Module, images: Images) -> Tensor:
    """Return, for each image, whether the model is right; evaluation mode, restored afterwards.

    A largest logit that is not a finite number names no class, and is wrong.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.

    Returns:
        bool (n,), on the CPU.
    """
    with evaluation_mode(model):
        return torch.cat([predicts(model(x), y).cpu() for x, y in batches(images)])


def accuracy(model: nn.Module, images: Images) -> float:
    """Return the fraction of images that the model gets right.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.

    Returns:
        A number in [0, 1].
    """
    return correct(model, images).double().mean().item()


@no_tf32()
def withstood(model: nn.Module, images: Images, attack: Callable[..., Tensor], seed: int) -> Tensor:
    """Return, for each image, whether the model is right on it and still right when it is attacked.

    White-box: the attack follows the gradients of this very model. Images that are wrong already are not attacked.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.
        attack: The attack.
        seed: Seed of the attack's random starts.

    Returns:
        bool (n,), on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    results = []
    with evaluation_mode(model):
        for x, y in batches(images):
            with torch.no_grad():
                right = predicts(model(x), y)
            if right.any():
                attacked = attack(model, x[right], y[right], generator=generator)
                with torch.no_grad():
                    right[right.clone()] = predicts(model(attacked), y[right])
            results.append(right.cpu())
    return torch.cat(results)


def robust_accuracy(model: nn.Module, images: Images, attack: Attack, seed: int) -> float:
    """Return the fraction of images that the model gets right under attack; see `withstood`."""
    return withstood(model, images, attack, seed).double().mean().item()
