"""Ranks of layers that hold cores already: the size that they make, and the one that a budget allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from ironrank.layers.forms import Rank
from ironrank.ranks.budget import Budget
from ironrank.ranks.cost import COSTS, DENSE, Site, count_bytes, count_params

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


def pair_of(rank: Rank) -> Pair:
    """Return a rank as those of U and of V; a matrix has the same for both."""
    return rank if isinstance(rank, tuple) else (rank, rank)


def _site(name: str, layer: Any) -> Site:
    return Site(name, layer.weight_shape, layer.U.element_size())


def _stored(layer: Any, cost: str) -> int:
    count = sum(math.prod(factor.shape) for factor in layer.factors())
    return count * (layer.U.element_size() if cost == "bytes" else 1)
