"""What an attack drives up, one number per sample, so that no sample depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Losses (b,), at least 0. Their gradients fade as a model grows sure of itself.
    """
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return by how much the best wrong class leads, :math:`\max_{j \ne y} z_j - z_y`.

    Positive means fooled. Scaling all logits by a positive number scales the loss but changes no attack step,
    so it does not fade on models with large logits. Source: Carlini and Wagner 2017.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Margins (b,).

    Example:
        >>> margin(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    truth = y[:, None]
    return logits.scatter(1, truth, -torch.inf).amax(1) - logits.gather(1, truth)[:, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "margin": margin}
