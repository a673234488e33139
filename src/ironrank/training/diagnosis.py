"""What to say when numbers blow up: where, and what to do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ironrank.linalg import condition_number
from ironrank.surgery import factored_layers, weight_matrices


def blown_up(model: nn.Module, what: str, step: int, out: Path) -> str:
    """Return the message for a training whose numbers are not finite any more.

    Args:
        model: The model.
        what: What the loss is, such as "nan".
        step: Number of the step.
        out: The run folder.

    Returns:
        One line that names the layer with the widest spectrum.
    """
    where = ""
    ranks = {name: layer.U.shape[1] for name, layer in factored_layers(model)}  # what U spans
    conds = {name: _width(matrix, ranks.get(name)) for name, matrix in weight_matrices(model)}
    if conds:
        widest = max(conds, key=lambda name: conds[name])
        where = f"; the layer with the widest spectrum is '{widest}' (condition number {conds[widest]:.3g})"
    return (f"the loss is {what} at step {step}{where}; lower optimizer.lr or set clip, "
            f"then start again or resume from the last epoch in {out}")  # fmt: skip


def _width(matrix: Tensor, rank: int | None) -> float:
    """Return the condition number of a layer's matrix; infinite where an entry is not finite."""
    return float(condition_number(matrix, rank)) if bool(torch.isfinite(matrix).all()) else float("inf")
