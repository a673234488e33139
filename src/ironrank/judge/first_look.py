"""A first look at a net on a few images, before anything long begins: a net that does not fit ends in one line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironrank.attacks.base import evaluation_mode
from ironrank.data import Images
from ironrank.errors import IronrankError

FEW = 8  # images that are looked at


def look_at(model: nn.Module, images: Images, what: str) -> Tensor:
    """Return what a net answers to the first few images; see `first_look`, which needs pixels.

    Args:
        model: Maps pixels (b, c, h, w) to logits (b, classes).
        images: The images.
        what: What is about to be done, for the error message.

    Returns:
        The logits (b, classes), float32.

    Raises:
        IronrankError: If the net does not fit the images.
    """
    return first_look(model, images.pixels(torch.arange(min(FEW, len(images)))), images.y, what)


def first_look(model: nn.Module, x: Tensor, y: Tensor, what: str) -> Tensor:
    """Return what a net answers to a few images.

    Args:
        model: Maps pixels (b, ...) to logits (b, classes); evaluation mode, restored afterwards.
        x: Pixels of a few images (b, ...).
        y: Classes of all images (n,), int64.
        what: What is about to be done, for the error message, such as "evaluate".

    Returns:
        The logits (b, classes), float32.

    Raises:
        IronrankError: If there are no images, the net does not take them, it returns no logits of two classes or more,
            none of them is a number, or a label is none of its classes.
    """
    if len(y) == 0:
        raise IronrankError(f"{what} on no images: at least one is needed")
    shape = tuple(x.shape)
    try:
        with torch.no_grad(), evaluation_mode(model):
            logits = model(x.clone())
    except Exception as error:  # it is the user's code: whatever it raises is reported
        reason = " ".join(str(error).split())[:200]
        raise IronrankError(
            f"{what}: it does not take images of shape {shape} ({reason}); is it the right data set?"
        ) from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x) or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise IronrankError(
            f"{what}: for {shape} it returned {got}; logits (b, classes) of at least two classes are needed"
        )
    if bool(logits.isnan().all()):
        raise IronrankError(
            f"{what}: all logits of the first {len(x)} images are NaN; are the weights finite?"
        )
    if y.max() >= logits.shape[1] or y.min() < 0:
        label = int(y.min() if y.min() < 0 else y.max())
        raise IronrankError(
            f"{what}: {logits.shape[1]} logits, but a label is {label}; is it the right data set?"
        )
    return logits.float()
