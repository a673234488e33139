"""A plan whose forms and ranks share out one budget for the whole net."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from ironrank.layers import Rank, full_rank
from ironrank.ranks.fit import fit
from ironrank.ranks.menu import Option
from ironrank.surgery.choose import last_match
from ironrank.surgery.plans import Plan, Row

DENSE = "stays dense: under this budget no rank is worth it"


def budgeted(
    model: nn.Module,
    free: Plan,
    budget: str,
    ranks: Mapping[str, Rank],
    forms: Mapping[str, str],
    **options: Any,
) -> Plan:
    """Choose form and rank of every layer that may be factored, all together, within a budget.

    Args:
        model: The model. Layers that are factored already count as they are stored.
        free: A plan that says which layers may be factored: those with a rank.
        budget: Such as "params=8x".
        ranks: Rank by name pattern, for layers where it is given.
        forms: Form by name pattern, in place of ``form``.
        **options: For `ironrank.ranks.fit`.

    Returns:
        The plan, with the account of the budget.

    Raises:
        IronrankError: If the budget is misspelled or out of reach, or a given rank is not possible.
    """
    names = list(free.ranks)
    given = {name: rank for name in names if (rank := last_match(name, ranks)) is not None}
    wished = {name: form for name in names if (form := last_match(name, forms)) is not None}
    choice = fit(model, names, budget, ranks=given, forms=wished, moments=free.moments, **options)
    chosen = choice.by_name
    rows = tuple(_filled(row, chosen[row.name]) if row.name in chosen else row for row in free.rows)
    return dataclasses.replace(free, rows=rows, choice=choice)


def _filled(row: Row, option: Option) -> Row:
    if option.rank is None:
        return dataclasses.replace(row, rank=None, reason=DENSE)
    full = full_rank(row.shape, option.form)
    return dataclasses.replace(row, form=option.form, rank=option.rank, full_rank=full)
