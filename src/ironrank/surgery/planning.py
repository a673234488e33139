"""Which layers would become low-rank, in which form, at which rank, and why others stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ironrank.errors import IronrankError, nearest
from ironrank.layers import Rank, full_rank, natural_form
from ironrank.linalg import side_by_side
from ironrank.ranks.cost import check_wish
from ironrank.ranks.keep import keep_rank
from ironrank.ranks.weighting import Moments
from ironrank.surgery.budgeted import budgeted
from ironrank.surgery.choose import cheapest, last_match, rank_in
from ironrank.surgery.find import candidates
from ironrank.surgery.plans import Plan, Row
from ironrank.surgery.reasons import untouchable

Pattern = str | type[nn.Module]


def plan(
    model: nn.Module,
    keep: float = 1.0,
    *,
    include: Iterable[Pattern] | None = None,
    exclude: Iterable[Pattern] = (),
    ranks: Mapping[str, Rank] | None = None,
    round_to: int = 1,
    core: bool = True,
    form: str = "channel",
    forms: Mapping[str, str] | None = None,
    budget: str | None = None,
    example: Any = None,
    min_rank: int = 1,
    factors: Mapping[str, float] | None = None,
    moments: Mapping[str, Moments] | None = None,
    rule: str = "global",
) -> Plan:
    """Say which layers `factorize` would replace, and why it would leave others alone. Changes nothing.

    Args:
        model: Any module.
        keep: Kept fraction of each layer's full rank, ``min(n, m)``, or of both ranks of Tucker-2; in (0, 1].
        include: Layer types, or patterns of full names such as ``"layer3.*"``; by default every layer.
        exclude: The same, for layers to leave alone.
        ranks: Rank by name pattern; it overrides ``keep`` for layers that match. A pair (r1, r2) for Tucker-2, where
            one number stands for both.
        round_to: Round ranks from ``keep`` up to a multiple of this.
        core: Whether layers held as a matrix get a core S; Tucker-2 layers always have one.
        form: "channel", "spatial" (convolutions in two dimensions), "tucker2" (convolutions), or "auto": for each layer
            the form of fewest multiply-adds that keeps at least the energy that the channel form keeps at the asked
            rank, see `ironrank.surgery.choose.cheapest`. A layer that has not the form, such as a linear or 1 x 1 one,
            gets the channel form.
        forms: Form by name pattern; it overrides ``form`` for the layers that match.
        budget: Cost of the whole deployed net, such as "params=8x", in place of ``keep``: forms and ranks of all layers
            are chosen together, and "auto" means the best form within it; see `ironrank.ranks.budget`.
        example: Input of the model, for a budget of macs or latency.
        min_rank: Smallest rank under a budget.
        factors: Factors on the layers' errors under a budget, by full name; see `ironrank.ranks.sensitivity`.
        moments: Second moments of the layers' inputs by full name, whose metric decides what is dropped, and how; see
            `ironrank.ranks.second_moments`.
        rule: How a budget is shared out: "global" for the least error of all layers together; "uniform" or "energy",
            the same share of each layer's cost or energy, to compare with.

    Returns:
        The plan; ``print(plan)`` shows it as a table.

    Raises:
        IronrankError: If a pattern matches no layer, keep is not in (0, 1], a rank is above the layer's, a form is
            unknown, or the budget is out of reach.
    """
    keep_rank(keep, 1, round_to)
    if budget is not None and keep != 1.0:
        raise IronrankError(f"keep={keep:g} and budget={budget!r}: give one of them")
    if budget is None and rule != "global":
        raise IronrankError(f"rule={rule!r} shares out a budget: give one, such as budget='params=8x'")
    include, exclude = None if include is None else list(include), list(exclude)
    ranks, forms, reasons = dict(ranks or {}), dict(forms or {}), untouchable(model)
    _check_names(model, [*ranks, *forms, *(include or []), *exclude])
    for wish in (form, *forms.values()):
        check_wish(wish)

    def row(candidate: tuple[str, Any]) -> Row:
        name, layer = candidate
        if nn.parameter.is_lazy(layer.weight):
            if budget is not None:
                raise IronrankError(f"budget={budget!r}: layer '{name}' is lazy; call the model once first")
            return Row(name, type(layer).__name__, (), 0, None, "lazy: call the model once first")
        wish, given = (last_match(name, forms) or form), last_match(name, ranks)
        if budget is not None:  # decides both, once it is known which layers are free
            wish, given = "channel", None
        reason = reasons.get(name, "") or _left_out(name, layer, include, exclude)
        return _row(name, layer, wish, reason, keep, given, round_to)

    made = Plan(tuple(side_by_side(row, candidates(model))), core, moments=moments or {})
    if budget is None:
        return made
    return budgeted(model, made, budget, ranks, forms, form=form, example=example, min_rank=min_rank,
                    round_to=round_to, factors=factors, rule=rule)  # fmt: skip


def _row(
    name: str, layer: Any, wish: str, reason: str, keep: float, given: Rank | None, round_to: int
) -> Row:
    shape, kind = tuple(layer.weight.shape), type(layer).__name__
    form = natural_form("channel" if wish == "auto" or reason else wish, shape)
    if reason:
        return Row(name, kind, shape, full_rank(shape, form), None, reason)
    rank = rank_in(name, shape, form, keep, given, round_to)
    if wish == "auto" and isinstance(rank, int):
        check_finite(name, layer)
        form, rank = cheapest(name, layer, rank, round_to)
    return Row(name, kind, shape, full_rank(shape, form), rank, "", form)


def check_finite(name: str, layer: Any) -> None:
    """Refuse a layer whose weights are not finite.

    Args:
        name: Its full name.
        layer: A dense layer.

    Raises:
        IronrankError: If an entry is infinite or not a number.
    """
    if not bool(torch.isfinite(layer.weight).all()):
        raise IronrankError(f"layer '{name}' has weights that are not finite: nothing to factorize")


def _check_names(model: nn.Module, patterns: list[Pattern]) -> None:
    names = [name for name, _ in candidates(model)]
    for pattern in patterns:
        if isinstance(pattern, str) and not any(fnmatchcase(name, pattern) for name in names):
            raise IronrankError(f"no layer matches '{pattern}': {nearest(pattern, names)}")


def _left_out(name: str, layer: nn.Module, include: list[Pattern] | None, exclude: list[Pattern]) -> str:
    if include is not None and not any(_matches(name, layer, pattern) for pattern in include):
        return "not included"
    return "excluded" if any(_matches(name, layer, pattern) for pattern in exclude) else ""


def _matches(name: str, layer: nn.Module, pattern: Pattern) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(layer, pattern)
