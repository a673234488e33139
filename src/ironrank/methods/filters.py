"""What filter pruning methods share: how many filters of each group stay under a budget, and which.

A filter is a channel with all that makes and reads it, a group is a set of channels that layers lose together
(`ironrank.surgery.filters`). All groups keep the same share of their filters, the largest one whose net is within the
budget: the methods differ in which filters stay, and in how the net is led there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError, nearest
from ironrank.methods.base import Method
from ironrank.methods.filter_cost import FilterCost
from ironrank.ranks import parse_budget
from ironrank.ranks.budget import shown
from ironrank.settings import setting
from ironrank.surgery import Group, find_groups, remove, weighted_layers

COSTS = ("params", "macs", "bytes")
_SHARES = 10_000  # the share that is searched for is a multiple of 1 / 10,000


class FilterPlan(NamedTuple):
    """How many filters stay.

    Attributes:
        groups: The groups of coupled filters.
        kept: The number of filters that stay, by group.
        cost: What is counted: "params", "macs" or "bytes".
        before: Cost of the net as it is.
        after: Cost of the net without the other filters.
    """

    groups: tuple[Group, ...]
    kept: dict[str, int]
    cost: str
    before: int
    after: int

    def __str__(self) -> str:
        """Return a table: a line for each group."""
        wide = max(len(group.name) for group in self.groups)
        lines = [f"{'filters of':<{wide}}  kept    of  layers"]
        for group in self.groups:
            makers = sum(member.side == "out" for member in group.members)
            kept = self.kept[group.name]
            lines.append(
                f"{group.name:<{wide}}  {kept:4d}  {group.size:4d}  {makers} make, {len(group.side('in'))} read"
            )
        total = f"{self.cost}: {shown(self.cost, self.before)} -> {shown(self.cost, self.after)}"
        return "\n".join([*lines, f"{total}, {self.before / self.after:.2f}x"])


@dataclass(frozen=True, kw_only=True)
class FilterPruning(Method):
    """Base of the methods that remove filters.

    Attributes:
        budget: What the whole net may cost: "params=8x", "params=25%", "params=1.2M", "macs=4x", "bytes=2MB"; biases,
            batch norm and layers that stay whole count.
        round_to: The number of filters that stay is a multiple of this, or all; 8 or 16 suits most devices.
        exclude: Name patterns of layers whose filters stay.
        input_shape: Shape of one input, such as (3, 32, 32); by default found by trying.
    """

    budget: str = setting("params=8x", "cost of the whole net")
    round_to: int = setting(1, "numbers of filters are multiples of this, or all", ge=1)
    exclude: tuple[str, ...] = setting((), "name patterns of layers whose filters stay")
    input_shape: tuple[int, ...] = setting((), "shape of one input; by default found by trying")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            IronrankError: If a value is not allowed.
        """
        super().__post_init__()
        cost = parse_budget(self.budget).cost
        if cost not in COSTS:
            raise IronrankError(f"{self.label()}.budget={self.budget!r}: allowed is {', '.join(COSTS)}")
        if cost == "macs" and not self.input_shape:
            raise IronrankError(
                f"{self.label()}.budget={self.budget!r} needs {self.label()}.input_shape, such as (3, 32, 32)"
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Leave the model whole; refuse one that has no filters to remove, or cannot be as small.

        Args:
            model: The dense model.

        Returns:
            The same model, unchanged.
        """
        self.plan(model)
        return model

    def plan(self, model: nn.Module) -> FilterPlan:
        """Find the groups, and say how many filters of each stay within the budget.

        Args:
            model: The dense model; only its shapes matter.

        Returns:
            The plan; ``print`` shows it as a table.

        Raises:
            IronrankError: If the net has no filters to remove, a pattern matches no layer, or the budget is too small.
        """
        groups = find_groups(model, self.input_shape, _matching(model, self.exclude))
        if not groups:
            raise IronrankError(f"{self.label()}: this net has no filters that could be removed")
        budget = parse_budget(self.budget)
        count = FilterCost(model, groups, budget.cost, self.input_shape)
        before = count(self._kept(groups, _SHARES))
        limit = budget.limit(before)
        low, high = 0, _SHARES + 1
        if count(self._kept(groups, low)) > limit:
            least = shown(budget.cost, count(self._kept(groups, low)))
            raise IronrankError(
                f"{self.label()}.budget={self.budget!r} is at most {shown(budget.cost, limit)}: the smallest net has "
                f"{least}; ask for less compression"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if count(self._kept(groups, middle)) <= limit else (low, middle)
        kept = self._kept(groups, low)
        return FilterPlan(tuple(groups), kept, budget.cost, before, count(kept))

    def within(self, model: nn.Module, params: int) -> Self:
        """Return these settings with a budget of so many parameters.

        Args:
            model: The dense model; only its shapes matter.
            params: The largest number of parameters of the net.

        Returns:
            The method.
        """
        method = replace(self, budget=f"params={params}")
        method.plan(model)  # refuses what is out of reach
        return method

    def cut(self, model: nn.Module, plan: FilterPlan, scores: Mapping[str, Tensor]) -> nn.Module:
        """Remove, in each group, the filters of least score for good.

        Args:
            model: The dense model, changed in place.
            plan: How many stay.
            scores: A score (n,) for each filter, by group; a group without scores stays whole.

        Returns:
            The same model.
        """
        keep = {name: largest(scores[name], number) for name, number in plan.kept.items() if name in scores}
        return remove(model, plan.groups, keep, self.input_shape)

    def _kept(self, groups: Sequence[Group], steps: int) -> dict[str, int]:
        """Return how many filters stay at a share of ``steps / _SHARES``, at least one."""
        step = self.round_to
        wanted = {group.name: max(1, -(-group.size * steps // _SHARES)) for group in groups}
        return {group.name: min(group.size, -(-wanted[group.name] // step) * step) for group in groups}


def largest(scores: Tensor, number: int) -> Tensor:
    """Return the indices of the largest scores, ascending; among equals the first.

    Example:
        >>> largest(torch.tensor([0.5, 2.0, 0.5, 1.0]), 3)
        tensor([0, 1, 3])
    """
    return torch.argsort(scores, descending=True, stable=True)[:number].sort().values


@torch.no_grad()
def norms(model: nn.Module, group: Group) -> Tensor:
    """Return the norm of each filter: of its rows in all weights that make it.

    Args:
        model: The dense model.
        group: A group of its filters.

    Returns:
        float64 (n,).
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.side("out"):
        weight = getattr(model.get_submodule(member.layer), "weight", None)
        if weight is not None and weight.ndim > 1:
            total += rows(weight, member.where).square().sum(1).cpu()
    return total.sqrt()


def rows(tensor: Tensor, where: Tensor) -> Tensor:
    """Return what a tensor holds for each filter along its first dimension, float64 (n, ...)."""
    found = tensor.detach().double().index_select(0, where.flatten().to(tensor.device))
    return found.reshape(len(where), -1)


def columns(tensor: Tensor, where: Tensor) -> Tensor:
    """Return what a weight holds for each filter along its second dimension, float64 (n, ...)."""
    return rows(tensor.transpose(0, 1), where)


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in weighted_layers(model)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise IronrankError(f"no layer matches '{pattern}': {nearest(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
