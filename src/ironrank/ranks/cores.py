"""Ranks of layers that hold cores already: the size that they make, and truncations that share out one budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.layers.forms import Rank
from ironrank.ranks.budget import Budget, shown
from ironrank.ranks.choose import choose
from ironrank.ranks.cost import COSTS, DENSE, Site, count_bytes, count_params
from ironrank.ranks.menu import core_menu

Pair = tuple[int, int]
_COUNTS = {"params": count_params, "bytes": count_bytes}


def size_at(model: nn.Module, layers: Mapping[str, Any], ranks: Mapping[str, Pair], cost: str) -> float:
    """Return the size of the deployed net with its layers at given ranks, each in its smaller form.

    Args:
        model: The model.
        layers: Its factored layers by name.
        ranks: Ranks of U and V of each; layers that are not named count as they are stored.
        cost: "params" or "bytes".

    Returns:
        The size, biases and all else counted.
    """
    rest = float(_COUNTS[cost](model))
    for name, layer in layers.items():
        site = _site(name, layer)
        dense, thin = (
            float(COSTS[cost](site, *of)[0])
            for of in (("dense", DENSE), (layer.form, np.array([ranks[name]])))
        )
        rest += min(dense, thin) - _stored(layer, cost)
    return rest


def limit_of(model: nn.Module, layers: Mapping[str, Any], budget: Budget) -> float:
    """Return the size that a budget allows, for a net whose dense form it is relative to.

    Args:
        model: The model.
        layers: Its factored layers by name.
        budget: The budget, of params or bytes.

    Returns:
        The largest allowed size.
    """
    before = float(_COUNTS[budget.cost](model))
    for name, layer in layers.items():
        before += float(COSTS[budget.cost](_site(name, layer), "dense", DENSE)[0]) - _stored(
            layer, budget.cost
        )
    return budget.limit(before)


def ranks_within(
    model: nn.Module,
    layers: Mapping[str, Any],
    cores: Mapping[str, Tensor],
    least: Mapping[str, Pair],
    budget: Budget,
    round_to: int = 1,
) -> dict[str, Pair]:
    """Choose truncations of all cores together, so that the deployed net is within a budget.

    Args:
        model: The model.
        layers: Its layers with a core, by name.
        cores: Their cores, or what is left of them.
        least: Smallest ranks of each.
        budget: The budget, of params or bytes.
        round_to: Ranks are multiples of this, or those of the core.

    Returns:
        Ranks of U and V of each layer.

    Raises:
        IronrankError: If the smallest ranks are too large.
    """
    limit, cost = limit_of(model, layers, budget), COSTS[budget.cost]
    smallest = size_at(model, layers, least, budget.cost)
    if smallest > limit:
        raise IronrankError(f"{budget.text}: at the smallest ranks the net has {shown(budget.cost, smallest)}, and "
                            f"{shown(budget.cost, limit)} are allowed: ask for less, or lower min_rank")  # fmt: skip
    menus = [
        core_menu(_site(name, layer), cores[name], layer.form, least[name], cost, round_to)
        for name, layer in layers.items()
    ]
    fixed = _COUNTS[budget.cost](model) - sum(_stored(layer, budget.cost) for layer in layers.values())
    options, _ = choose(menus, limit - fixed)
    return {name: pair_of(option.rank or 1) for name, option in zip(layers, options, strict=True)}


def pair_of(rank: Rank) -> Pair:
    """Return a rank as those of U and of V; a matrix has the same for both."""
    return rank if isinstance(rank, tuple) else (rank, rank)


def _site(name: str, layer: Any) -> Site:
    return Site(name, layer.weight_shape, layer.U.element_size())


def _stored(layer: Any, cost: str) -> int:
    count = sum(math.prod(factor.shape) for factor in layer.factors())
    return count * (layer.U.element_size() if cost == "bytes" else 1)
