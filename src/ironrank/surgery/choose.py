"""Which form and rank a layer gets: what was asked, and the cheapest form that loses no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from ironrank.errors import IronrankError
from ironrank.layers import Rank, full_rank, natural_form
from ironrank.layers.forms import Shape, to_matrix
from ironrank.linalg import check_ranks, feasible_ranks
from ironrank.ranks.cost import Site, macs
from ironrank.ranks.keep import keep_rank
from ironrank.ranks.menu import matrix_errors, menu

# The errors are sums of squares in float64: what differs by less than this share of the whole is the same.
_SAME = 1e-12
Value = TypeVar("Value")


def last_match(name: str, given: Mapping[str, Value]) -> Value | None:
    """Return the value of the last pattern that matches a name, or None."""
    found = [value for pattern, value in given.items() if fnmatchcase(name, pattern)]
    return found[-1] if found else None


def rank_in(name: str, shape: Shape, form: str, keep: float, given: Rank | None, round_to: int) -> Rank:
    """Return the rank of a layer in a form: the one that is given, or the kept share of its full rank.

    Args:
        name: Full name, for the message.
        shape: Shape of the weight.
        form: Its form.
        keep: Kept fraction of the full rank, of both for Tucker-2.
        given: The rank that was asked for, if any; one number stands for both ranks of Tucker-2.
        round_to: Ranks from ``keep`` are rounded up to a multiple of this.

    Returns:
        The rank.

    Raises:
        IronrankError: If the rank that is given is not possible.
    """
    full = full_rank(shape, form)
    if isinstance(full, tuple):
        return _pair_in(name, shape, full, keep, given, round_to)
    if given is None:
        return keep_rank(keep, full, round_to)
    if not isinstance(given, int):
        raise IronrankError(
            f"rank {given} for layer '{name}' in {form} form: expected one number, 1 to {full}"
        )
    if not 1 <= given <= full:
        raise IronrankError(f"rank {given} for layer '{name}': allowed is 1 to {full}, its full rank")
    return given


def _pair_in(
    name: str, shape: Shape, full: tuple[int, int], keep: float, given: Rank | None, round_to: int
) -> Rank:
    if given is None:
        return feasible_ranks(shape, (keep_rank(keep, full[0], round_to), keep_rank(keep, full[1], round_to)))
    first, second = (given, given) if isinstance(given, int) else given
    try:
        check_ranks(shape, (first, second))
    except IronrankError as error:
        raise IronrankError(f"layer '{name}': {error}") from None
    return first, second


def cheapest(name: str, layer: Any, rank: int, round_to: int) -> tuple[str, Rank]:
    """Return the form and rank of fewest multiply-adds that keep as much energy as the channel form does at a rank.

    Counted as if the image were large and padded so that only the stride changes its size. Energy is the squared
    Frobenius norm; that of Tucker-2 is that of the truncated HOSVD, which HOOI can only better. Where every form that
    keeps as much costs more than the dense layer, the channel form stays.

    Args:
        name: Full name.
        layer: The dense layer.
        rank: Rank in the channel form.
        round_to: Other ranks are multiples of this, or full.

    Returns:
        Form and rank.
    """
    weight = layer.weight.detach()
    shape = tuple(weight.shape)
    if natural_form("tucker2", shape) == "channel":
        return "channel", rank
    errors, stride = matrix_errors(to_matrix(weight, "channel")), layer.stride
    site = Site(name, shape, into=math.prod(stride), between=stride[-1], out=1)
    allowed = errors[rank] + _SAME * errors[0]
    options = menu(site, weight, macs, round_to=round_to).options  # the cheapest first
    fitting = [(o.form, o.rank) for o in options if o.rank is not None and o.error <= allowed]
    form, found = fitting[0] if fitting else ("channel", rank)
    return form, rank if form == "channel" else found
