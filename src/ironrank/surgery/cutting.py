"""Taking channels out of layers: what a group of coupled filters is, and the cut itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import mark, width_of


class Member(NamedTuple):
    """One layer's part in a group.

    Attributes:
        layer: Full name.
        side: "out" where it makes or carries the channels, "in" where it reads them.
        where: int64 (n, k), for each of n filters the k channels of the layer that belong to it.
    """

    layer: str
    side: str
    where: Tensor


class Group(NamedTuple):
    """Coupled filters.

    Attributes:
        name: Full name of the first layer that makes them.
        size: Their number n.
        members: All layers that they touch.
    """

    name: str
    size: int
    members: tuple[Member, ...]

    def side(self, side: str) -> list[Member]:
        """Return the members of one side."""
        return [member for member in self.members if member.side == side]


def torch_pruning() -> Any:
    """Return the library Torch-Pruning.

    Raises:
        IronrankError: If it is not installed.
    """
    try:
        import torch_pruning
    except ImportError:
        raise IronrankError(
            "removing filters needs Torch-Pruning: pip install 'ironrank[prune]' (torch-pruning 1.4 or newer)"
        ) from None
    return torch_pruning


def cut(model: nn.Module, groups: Sequence[Group], gone: Mapping[str, Tensor]) -> None:
    """Let Torch-Pruning cut the tensors: all that one side of a layer loses, from whatever groups, in one go.

    Args:
        model: The net, changed in place; parameters stay the same objects, without gradients.
        groups: The groups.
        gone: Filters to take out, by name of the group.
    """
    lost: dict[tuple[str, str], list[int]] = {}
    for group in groups:
        for member in group.members:
            lost.setdefault((member.layer, member.side), []).extend(channels_of(member, group, gone))
    graph = torch_pruning().DependencyGraph()
    for kind, pruner in pruners(model).items():
        graph.register_customized_layer(kind, pruner)
    last = _is_channels_last(model)
    for (name, side), channels in lost.items():
        if channels:
            _cut_layer(graph, model.get_submodule(name), side, channels)
    if last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def channels_of(member: Member, group: Group, gone: Mapping[str, Tensor]) -> list[int]:
    """Return the channels of a layer that belong to the filters that are gone."""
    return member.where[gone.get(group.name, torch.tensor([], dtype=torch.int64))].flatten().tolist()


def _cut_layer(graph: Any, layer: Any, side: str, channels: list[int]) -> None:
    before, parameters = width_of(layer), dict(layer.named_parameters(recurse=False))
    pruner = graph.get_pruner_of_module(layer)
    if is_depthwise(layer):
        pruner = torch_pruning().function.PrunerBox[torch_pruning().ops.OPTYPE.DEPTHWISE_CONV]
    (pruner.prune_out_channels if side == "out" else pruner.prune_in_channels)(layer, sorted(channels))
    for name, old in parameters.items():  # an optimizer goes on with the same objects
        old.data, old.grad = getattr(layer, name).data, None
        layer.register_parameter(name, old)
    assert before is not None
    mark(layer, before)


def _is_channels_last(model: nn.Module) -> bool:
    kernels = [p for p in model.parameters() if p.ndim == 4]
    return any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in kernels)


def pruners(model: nn.Module) -> dict[type[nn.Module], Any]:
    """Return how Torch-Pruning shall cut layers of types that say so themselves."""

    class Pruner(torch_pruning().BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            layer.remove_outputs(idxs)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            layer.remove_inputs(idxs)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return len(layer.source)

        def get_in_channels(self, layer: Any) -> int:
            return layer.inputs

    kinds = {type(module) for module in model.modules() if hasattr(module, "remove_outputs")}
    return {kind: Pruner() for kind in kinds}


def is_depthwise(layer: Any) -> bool:
    """Return whether a convolution filters each channel by itself."""
    return getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels == layer.out_channels
