"""Filters: which channels hang together, and taking them out of a net for good.

A filter is a channel together with all that makes it, rescales it and reads it: rows of the weights that make it,
entries of batch norms, columns of the weights that read it. Where residual branches are added, the same channel is made
by several layers, so that they lose it together; behind a flattening, one channel is read in many columns. Such a set
of coupled channels is a group, and filter i of a group is the i-th channel of each layer that makes it.

    member side   layer                         what filter i is
    out           linear, convolution           rows of weight and bias
    out           batch norm                    entries of its four vectors
    in            linear, convolution           columns of the weight
    either        shortcuts without weights     see `ironrank.models.blocks.Pad`

The library Torch-Pruning (Fang et al., "DepGraph: Towards any structural pruning", 2023) finds the groups, by tracing
one forward, and cuts the tensors. Left whole are the outputs of the net and groups that touch a layer which cannot be
narrowed: other kinds with weights, grouped convolutions that are not depthwise, tied, hooked or parametrized layers. A
trace does not see how channels are rearranged (channel shuffle, pixel shuffle), so what it says is tried out, see
`ironrank.surgery.proof`; groups that fail are left whole too.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers import width_of
from ironrank.surgery.cutting import Group, Member, cut, is_depthwise, pruners, torch_pruning
from ironrank.surgery.find import candidates, factored_layers
from ironrank.surgery.inputs import example, find_input_shape, output_shapes
from ironrank.surgery.proof import faithful
from ironrank.surgery.reasons import untouchable


def find_groups(
    model: nn.Module, input_shape: Sequence[int] = (), exclude: Iterable[str] = ()
) -> list[Group]:
    """Find the groups of coupled filters of a dense net; the net stays as it is.

    Args:
        model: The net.
        input_shape: Shape of one input, such as (3, 32, 32); by default found by trying, see
            `ironrank.surgery.inputs`.
        exclude: Full names of layers whose filters stay.

    Returns:
        The groups from which filters can be taken, in the order of the net.

    Raises:
        IronrankError: If Torch-Pruning is missing, the net holds factors, or no input fits.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 3))
        >>> [(group.name, group.size, [m.layer for m in group.members]) for group in find_groups(net)]
        [('0', 4, ['0', '3']), ('3', 10, ['3', '4'])]
    """
    if factored_layers(model):
        raise IronrankError(
            "filters are removed from dense layers, and this net is factored: start from a dense one"
        )
    twin = _twin(model)
    shape = tuple(input_shape) or find_input_shape(twin)
    stay, whole = set(exclude), _whole(twin)
    graph = _graph(twin, shape)
    names = {module: name for name, module in twin.named_modules()}
    found = [_group(graph, traced, names) for traced in graph.get_all_groups()]
    free = [group for group in found if group is not None and group.size > 1 and group.side("in")]
    place = {name: number for number, name in enumerate(names.values())}
    free.sort(key=lambda group: place[group.name])
    free = [group for group in free if not stay & {member.layer for member in group.side("out")}]
    free = [group for group in free if not whole & {member.layer for member in group.members}]
    return free if next(twin.parameters()).is_meta else faithful(twin, free, shape)


def remove(
    model: nn.Module, groups: Sequence[Group], keep: Mapping[str, Tensor], input_shape: Sequence[int] = ()
) -> nn.Module:
    """Take filters out of a net for good; parameters stay the same objects, of smaller shapes, without gradients.

    Args:
        model: The net that the groups were found in, changed in place.
        groups: The groups.
        keep: Indices of the filters to keep, by group; the filters of a group without an entry all stay.
        input_shape: Shape of one input; by default found by trying.

    Returns:
        The same model. Layers that lost channels carry ``full_width``, see `ironrank.layers.widths`.

    Raises:
        IronrankError: If the net does not work without these filters; it is as it was then.
    """
    gone = {group.name: _gone(group.size, keep[group.name]) for group in groups if group.name in keep}
    twin = _twin(model)
    shape = tuple(input_shape) or find_input_shape(twin)
    before = output_shapes(twin, shape)
    cut(twin, groups, gone)
    try:
        after = output_shapes(twin, shape)
    except (RuntimeError, ValueError, IndexError):
        after = None
    if after != before:
        raise IronrankError("filters of this net are coupled in a way that was not found: exclude its layers")
    cut(model, groups, gone)
    return model


def _twin(model: nn.Module) -> Any:
    """Return a copy to trace and to try on, on the CPU, or on the meta device if the model is there."""
    twin = copy.deepcopy(model)
    meta = any(parameter.is_meta for parameter in model.parameters())
    return (twin if meta else twin.cpu()).requires_grad_(True)


def _graph(twin: nn.Module, shape: Sequence[int]) -> Any:
    tp = torch_pruning()
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about parameters outside of layers: groups that touch them stay whole
        return tp.DependencyGraph().build_dependency(
            twin, example(twin, shape), customized_pruners=pruners(twin), verbose=False
        )


def _whole(model: nn.Module) -> set[str]:
    """Return the names of layers that have to stay as they are."""
    depthwise = {name for name, layer in candidates(model) if is_depthwise(layer)}
    return untouchable(model).keys() - depthwise


def _group(graph: Any, traced: Any, names: Mapping[Any, str]) -> Group | None:
    """Return a traced group in our terms; None where it must stay whole."""
    size, members = len(traced[0].idxs), []
    for item in traced:
        node, handler = item.dep.target, item.dep.handler
        layer, out = node.module, graph.is_out_channel_pruning_fn(handler)
        if type(layer).__name__ == "_OutputOp" or (out and not node.outputs):
            return None  # the outputs of the net
        held = isinstance(layer, nn.Parameter) or bool(list(layer.parameters()))
        if layer in names and width_of(layer) is not None:
            where = _where(item.idxs, item.root_idxs, size)
            if where is None:
                return None
            members.append(Member(names[layer], "out" if out else "in", where))
        elif held:
            return None
    order = list(names.values())
    members.sort(key=lambda member: order.index(member.layer))
    first = next(member.layer for member in members if member.side == "out")
    return Group(first, size, tuple(members))


def _where(channels: Sequence[int], roots: Sequence[int], size: int) -> Tensor | None:
    """Return (n, k), the channels of each filter; None where not all have as many."""
    by_root: list[list[int]] = [[] for _ in range(size)]
    for channel, root in zip(channels, roots, strict=True):
        by_root[root].append(channel)
    sizes = {len(found) for found in by_root}
    return torch.tensor(by_root) if len(sizes) == 1 and sizes != {0} else None


def _gone(size: int, keep: Tensor) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[keep.cpu()] = False
    return mask.nonzero().flatten()
