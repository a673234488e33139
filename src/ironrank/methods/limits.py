"""Limits of ranks that adapt: between which ranks a layer stays, and what a tolerance leaves of them.

A rank is written as a pair everywhere here, that of U and that of V; for a matrix both are the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ironrank.layers import parts
from ironrank.linalg import feasible_ranks, tail_rank
from ironrank.ranks.cores import Pair, pair_of
from ironrank.ranks.cost import count_params
from ironrank.surgery import Row

Shape = tuple[int, ...]


def clipped(rank: Pair, low: int, high: int, full: Pair, shape: Shape) -> Pair:
    """Return ranks within limits, as far as the full rank and the core allow.

    Args:
        rank: The ranks.
        low: Smallest rank.
        high: Largest rank; 0 for none.
        full: The full ranks.
        shape: Shape of the weight, outputs first.

    Returns:
        The ranks.

    Example:
        >>> clipped((40, 5), 8, 32, (64, 16), (64, 16, 3, 3)), clipped((1, 1), 2, 0, (9, 9), (9, 20))
        ((32, 8), (2, 2))
    """
    first, second = (min(max(r, low), high or f, f) for r, f in zip(rank, full, strict=True))
    return feasible_ranks(shape, (first, second)) if len(shape) > 2 else (first, second)


def limited(row: Row, low: int, high: int) -> Row:
    """Return a row of a plan with its rank, where it has one, within limits."""
    if row.rank is None:
        return row
    pair = clipped(pair_of(row.rank), low, high, pair_of(row.full_rank), row.shape)
    return dataclasses.replace(row, rank=pair if isinstance(row.rank, tuple) else pair[0])


def full_ends(names: Iterable[str], first: str, last: str) -> set[str]:
    """Return which of the first and the last name is to keep its full rank.

    Args:
        names: Names of low-rank layers, in the order of the model.
        first: Form of the first one, "full-rank" or another.
        last: Form of the last one.

    Returns:
        None, one or two of the names.
    """
    listed = list(names)
    ends = zip(listed[:1] + listed[-1:], (first, last), strict=False)
    return {name for name, form in ends if form == "full-rank"}


def smallest_size(model: nn.Module, rows: Mapping[str, Row], held: set[str], low: int) -> int:
    """Return the number of parameters of a net at its smallest ranks, deployed.

    Args:
        model: The dense model; only shapes matter.
        rows: The rows of the layers that are to be low-rank.
        held: Names of those that keep their full rank.
        low: Smallest rank of the others.

    Returns:
        The number; each layer counts in its smaller form.
    """
    total = count_params(model)
    for name, row in rows.items():
        full = pair_of(row.full_rank)
        keeps = name in held and row.rank == row.full_rank
        pair = full if keeps else clipped((low, low), low, 0, full, row.shape)
        rank = pair if isinstance(row.full_rank, tuple) else pair[0]
        total -= max(0, math.prod(row.shape) - sum(parts(row.shape, row.form, rank)))
    return total


def share_of(theta: float, form: str) -> float:
    """Return the share that a tolerance allows to go on each side of a core; one of Tucker-2 is cut on two."""
    return theta / math.sqrt(2) if form == "tucker2" else theta


def thetas_of(spectra: Iterable[Tensor], form: str) -> list[float]:
    """Return all tolerances at which a layer loses one more direction, each a hair larger so that it does.

    Args:
        spectra: Singular values of its core as seen from U and from V, largest first.
        form: Its form.

    Returns:
        The tolerances, in no order; none of a core that is zero.

    Example:
        >>> [round(theta, 6) for theta in thetas_of([Tensor([4.0, 3.0])], "channel")]
        [0.6, 1.0]
    """
    found: list[float] = []
    for s in spectra:
        lost = s.double().square().flip(0).cumsum(0)  # entry k: with the k + 1 smallest
        found += (
            ((lost / lost[-1]).sqrt() / share_of(1.0, form) * (1 + 1e-9)).tolist() if lost[-1] > 0 else []
        )
    return found


def left(
    layer: Any, spectra: tuple[Tensor, Tensor], theta: float, bounds: tuple[Pair, Pair], round_to: int
) -> Pair:
    """Return the ranks that a tolerance leaves, within bounds.

    Args:
        layer: The layer; its form and shape count.
        spectra: Singular values of its core as seen from U and from V, largest first.
        theta: Share of their norm that may go.
        bounds: Smallest and largest ranks.
        round_to: Ranks are rounded up to a multiple of this.

    Returns:
        The ranks, none above that of the core.
    """
    share, shape = share_of(theta, layer.form), layer.weight_shape
    wanted = [-(-tail_rank(s, share) // round_to) * round_to for s in spectra]
    first, second = (
        min(max(r, low), high, len(s)) for r, low, high, s in zip(wanted, *bounds, spectra, strict=True)
    )
    return feasible_ranks(shape, (first, second)) if len(shape) > 2 else (first, second)
