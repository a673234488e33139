"""Groups of filters as tensors: what a method that chooses filters while it trains keeps in its state.

    kept.<group>            how many of its filters stay, int64 ()
    out.<group>|<layer>     the channels of a layer that make the group's filters, int64 (n, k)
    in.<group>|<layer>      the channels of a layer that read them, int64 (n, k)

A group of which all filters stay is not noted. With these, the steps of a training need no tracing of the net.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ironrank.methods.base import State
from ironrank.methods.filters import FilterPlan, rows


class Noted(NamedTuple):
    """A group, as read from a state.

    Attributes:
        name: Its name.
        kept: How many filters stay.
        layers: Layers of the side that was noted, with their channels (n, k).
    """

    name: str
    kept: int
    layers: tuple[tuple[str, Tensor], ...]


def note(plan: FilterPlan, side: str) -> State:
    """Return one side of the groups of a plan as tensors.

    Args:
        plan: The plan.
        side: "out" or "in".

    Returns:
        Tensors by name, as at the top of this file, and ``ratio``, how many times smaller the net becomes.
    """
    state: State = {"ratio": torch.tensor(plan.before / plan.after, dtype=torch.float64)}
    for group in plan.groups:
        if plan.kept[group.name] < group.size:
            state[f"kept.{group.name}"] = torch.tensor(plan.kept[group.name])
            state |= {f"{side}.{group.name}|{member.layer}": member.where for member in group.side(side)}
    return state


def noted(state: State, side: str) -> list[Noted]:
    """Return the groups of a state, by name."""
    found = []
    for key in sorted(key for key in state if key.startswith("kept.")):
        name = key.removeprefix("kept.")
        head = f"{side}.{name}|"
        layers = tuple((k.removeprefix(head), state[k]) for k in sorted(state) if k.startswith(head))
        found.append(Noted(name, int(state[key]), layers))
    return found


def makers(model: nn.Module, groups: list[Noted]) -> dict[str, nn.Parameter]:
    """Return all parameters that make filters of the groups, by full name: weights, biases, scales and shifts."""
    layers = sorted({layer for group in groups for layer, _ in group.layers})
    return {
        f"{layer}.{key}": parameter
        for layer in layers
        for key, parameter in model.get_submodule(layer).named_parameters(recurse=False)
    }


def lengths(group: Noted, tensors: dict[str, Tensor]) -> Tensor:
    """Return the norm of each filter over all that makes it.

    Args:
        group: The group.
        tensors: Values in place of the parameters, by full name as in `makers`.

    Returns:
        float64 (n,), on the CPU.
    """
    total = torch.zeros((), dtype=torch.float64)
    for layer, where in group.layers:
        for name, tensor in tensors.items():
            if name.rpartition(".")[0] == layer:
                total = total + rows(tensor, where).square().sum(1).cpu()
    return total.sqrt()
