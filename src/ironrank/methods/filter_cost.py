"""What a net costs without some of its filters, from the shapes of its tensors alone.

A tensor is cut along outputs, inputs, or both; channels that belong to no group, such as those of an input that is
concatenated, stay:

    numel' = numel (outputs' / outputs) (inputs' / inputs)          exact, outputs and inputs being factors of numel
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ironrank.layers import width_of
from ironrank.ranks import sites
from ironrank.surgery import Group, weighted_layers


class _Side(NamedTuple):
    """The channels on one side of a layer: those of groups, each with its name, and those that no group has."""

    groups: tuple[tuple[str, int], ...] = ()
    fixed: int = 0


class _Tensor(NamedTuple):
    """What one tensor costs: a number times the shares of outputs and inputs that stay."""

    cost: int
    outputs: _Side
    inputs: _Side


class FilterCost:
    """The cost of a net as a function of how many filters of each group stay."""

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], cost: str, input_shape: Sequence[int]
    ) -> None:
        """Look at the shapes of the net's tensors.

        Args:
            model: The net, whole.
            groups: Its groups of coupled filters.
            cost: "params", "macs" or "bytes".
            input_shape: Shape of one input; needed for macs.
        """
        self._sizes = {group.name: group.size for group in groups}
        covered: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for group in groups:
            for member in group.members:
                covered.setdefault((member.layer, member.side), []).append((group.name, member.where.numel()))
        sides = {key: _side(model, *key, found) for key, found in covered.items()}
        self._tensors = [
            _Tensor(
                number,
                sides.get((layer, "out"), _Side()),
                sides.get((layer, "in"), _Side()) if wide else _Side(),
            )
            for layer, number, wide in _costs(model, cost, input_shape)
        ]

    def __call__(self, kept: Mapping[str, int]) -> int:
        """Return the cost where so many filters of each group stay, by the name of the group."""
        total = 0
        for number, outputs, inputs in self._tensors:
            for side in (outputs, inputs):
                if side.groups:
                    channels = sum(size for _, size in side.groups)
                    stay = sum(size // self._sizes[name] * kept[name] for name, size in side.groups)
                    number = number // (channels + side.fixed) * (stay + side.fixed)
            total += number
        return total


def _side(model: nn.Module, layer: str, side: str, groups: list[tuple[str, int]]) -> _Side:
    width = width_of(model.get_submodule(layer))
    whole = 0 if width is None else width[0 if side == "out" else 1]
    return _Side(tuple(groups), max(0, whole - sum(size for _, size in groups)))


def _costs(model: nn.Module, cost: str, input_shape: Sequence[int]) -> list[tuple[str, int, bool]]:
    """Return layer, cost, and whether it has inputs too, of every tensor of a net."""
    if cost == "macs":
        names = [name for name, _ in weighted_layers(model)]
        example = next(model.parameters()).new_zeros(1, *input_shape)
        return [(site.name, site.out * _product(site.shape), True) for site in sites(model, names, example)]
    found, seen = [], set()
    for name, layer in model.named_modules():
        own: list[Any] = list(layer.parameters(recurse=False))
        if cost == "bytes":
            own += [
                b
                for key, b in layer.named_buffers(recurse=False)
                if key not in layer._non_persistent_buffers_set
            ]
        for tensor in own:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                size = tensor.element_size() if cost == "bytes" else 1
                found.append((name if tensor.ndim else "", tensor.numel() * size, tensor.ndim > 1))
    return found


def _product(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())
