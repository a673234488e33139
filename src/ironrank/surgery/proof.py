"""Trying out what a trace says of coupled filters: a net without them computes what it does if none reads them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.surgery.cutting import Group, channels_of, cut, is_depthwise
from ironrank.surgery.find import candidates
from ironrank.surgery.inputs import outputs

TOLERANCE = 3.0  # in square roots of the rounding of a number, relative to the largest output


def faithful(twin: nn.Module, groups: Sequence[Group], shape: Sequence[int]) -> list[Group]:
    """Return the groups that may be cut: those whose channels are where the trace says.

    Every second filter is taken out of a copy with random weights. In another copy all that reads those filters is set
    to zero: both must give the same outputs.

    Args:
        twin: The net, on the CPU; it stays as it is.
        groups: The groups.
        shape: Shape of one input.

    Returns:
        All of them, or, where together they fail, those that pass one after the other.
    """
    trial = copy.deepcopy(twin)
    _randomize(trial)
    if not groups or _same(trial, groups, shape):
        return list(groups)
    passed: list[Group] = []
    for group in groups:
        if _same(trial, [*passed, group], shape):
            passed.append(group)
    return passed


def _randomize(model: nn.Module) -> None:
    """Give all layers weights at which every channel counts; a last layer that begins at zero would hide all others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in candidates(model):
            if "weight" in layer._parameters:
                layer.weight.normal_(0, layer.weight[0].numel() ** -0.5, generator=generator)


def _same(trial: nn.Module, groups: Sequence[Group], shape: Sequence[int]) -> bool:
    gone = {group.name: torch.arange(1, group.size, 2) for group in groups}
    silent, narrow = copy.deepcopy(trial), copy.deepcopy(trial)
    x = next(trial.parameters()).new_empty(2, *shape).normal_(generator=torch.Generator().manual_seed(1))
    try:
        _silence(silent, groups, gone)
        cut(narrow, groups, gone)
        return all(_close(a, b) for a, b in zip(outputs(silent, x), outputs(narrow, x), strict=True))
    except (RuntimeError, ValueError, IndexError):
        return False


@torch.no_grad()
def _silence(model: nn.Module, groups: Sequence[Group], gone: Mapping[str, Tensor]) -> None:
    for group in groups:
        for member in group.side("in"):
            layer: Any = model.get_submodule(member.layer)
            channels = channels_of(member, group, gone)
            if hasattr(layer, "silence_inputs"):
                layer.silence_inputs(channels)
            elif not is_depthwise(layer):
                layer.weight[:, channels] = 0


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    allowed = TOLERANCE * torch.finfo(a.dtype).eps ** 0.5 * a.abs().max().item()
    return torch.allclose(a, b, rtol=0, atol=allowed, equal_nan=True)
