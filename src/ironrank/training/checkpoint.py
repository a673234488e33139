"""One file that holds all a training needs to go on: written whole or not at all.

model/...        weights
state/...        the method's tensors
objective/...    the objective's tensors
average/...      the averaged weights
optimizer/i/...  moments of parameter i, in the order of the optimizer's groups
header           layout, progress, and the optimizer's numbers that are no tensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.artifact import Layout, read_layout
from ironrank.errors import IronrankError
from ironrank.files import read_tensors, write_tensors

MOST_ALARMS = 64  # each doubles the steps of an attack


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: Steps taken.
        epoch: Epochs finished.
        best: Robust and clean validation accuracy of the best epoch so far.
        lines: Lines of metrics.jsonl written.
        best_epoch: The epoch of ``best``, from 1; 0 before the first.
        stronger: How often an alarm has made the attack stronger.
        overfit: The epoch in which robust overfitting was reported, since the last best; 0 where it was not.
    """

    step: int = 0
    epoch: int = 0
    best: tuple[float, float] = (-1.0, -1.0)
    lines: int = 0
    best_epoch: int = 0
    stronger: int = 0
    overfit: int = 0


@dataclass
class Checkpoint:
    """The contents of a checkpoint file."""

    layout: Layout
    progress: Progress
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    objective: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Tensor],
    layout: Layout,
    progress: Progress,
    more: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file.
        model: The model.
        optimizer: Its optimizer.
        state: The method's tensors.
        layout: The model's structure.
        progress: How far the training has come.
        more: Further tensors, by section ("objective", "average") and name.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"state/{name}": tensor for name, tensor in state.items()}
    for section, named in (more or {}).items():
        tensors |= {f"{section}/{name}": tensor for name, tensor in named.items()}
    numbers: dict[str, Any] = {}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            elif value is not None:
                numbers[f"{index}/{name}"] = value
    notes = {
        "layout": json.dumps(layout),
        "progress": json.dumps(vars(progress)),
        "numbers": json.dumps(numbers),
    }
    write_tensors(path, tensors, notes)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: The file.

    Returns:
        Its contents, on the CPU.

    Raises:
        IronrankError: If it is missing or damaged.
    """
    tensors, notes = read_tensors(path)
    layout = read_layout(notes, path)
    try:
        progress = _progress(json.loads(notes["progress"]))
        numbers = dict(json.loads(notes["numbers"]))
    except (KeyError, ValueError, TypeError, RecursionError):
        raise IronrankError(f"{path} is no checkpoint: its header is incomplete; train again") from None

    def part(head: str) -> dict[str, Tensor]:
        return {name.removeprefix(head): tensor for name, tensor in tensors.items() if name.startswith(head)}

    return Checkpoint(layout, progress, part("model/"), part("state/"), part("objective/"), part("average/"),
                      part("optimizer/"), numbers)  # fmt: skip


def _progress(values: dict[str, Any]) -> Progress:
    """Read what `vars` made of a progress; ValueError or TypeError where it cannot be one."""
    robust, clean = values.pop("best")
    progress = Progress(**values, best=(float(robust), float(clean)))
    counts = [value for key, value in vars(progress).items() if key != "best"]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or progress.stronger > MOST_ALARMS:
        raise ValueError("counts")
    return progress


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Give an optimizer the moments of a checkpoint.

    Args:
        optimizer: A fresh optimizer of the restored model's parameters, in the same groups.
        checkpoint: The checkpoint.

    Raises:
        IronrankError: If the moments do not fit the optimizer's parameters.
    """
    state: dict[int, dict[str, Any]] = {}
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in [*checkpoint.moments.items(), *checkpoint.numbers.items()]:
        index, _, name = key.partition("/")
        state.setdefault(int(index) if index.isdecimal() else -1, {})[name] = value
    if not state.keys() <= set(range(len(parameters))):
        raise IronrankError("the checkpoint's optimizer has other parameters than the model: train again")
    for place, moments in state.items():
        state[place] = {name: laid_out_as(parameters[place], moment) for name, moment in moments.items()}
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def laid_out_as(like: Tensor, value: Any) -> Any:
    """Return a tensor in the memory layout of another of its shape, such as channels last, which no file keeps.

    Args:
        like: The tensor whose layout it gets.
        value: The tensor; what is none, or has another shape, is returned as it is.

    Returns:
        The same values.
    """
    if not isinstance(value, Tensor) or value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
