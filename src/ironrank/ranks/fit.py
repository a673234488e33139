"""From a model and a budget to one form and rank for every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError, nearest
from ironrank.layers.forms import Rank
from ironrank.linalg.parallel import side_by_side
from ironrank.ranks.budget import Budget, parse_budget, shown
from ironrank.ranks.choose import RULES, Choice, choose, within
from ironrank.ranks.cost import (
    COSTS,
    DENSE,
    Cost,
    Site,
    check_wish,
    count_bytes,
    count_macs,
    count_params,
    sites,
)
from ironrank.ranks.latency import Timer, measure, median_ms
from ironrank.ranks.menu import Menu, least, menu
from ironrank.ranks.weighting import Moments


def fit(
    model: nn.Module,
    names: Iterable[str],
    budget: str,
    *,
    form: str = "auto",
    forms: Mapping[str, str] | None = None,
    example: Any = None,
    weights: Mapping[str, Tensor] | None = None,
    min_rank: int = 1,
    round_to: int = 1,
    ranks: Mapping[str, Rank] | None = None,
    factors: Mapping[str, float] | None = None,
    moments: Mapping[str, Moments] | None = None,
    rule: str = "global",
    timer: Timer = median_ms,
) -> Choice:
    """Choose forms and ranks of all layers together, so that the whole net costs no more than a budget.

    Args:
        model: The model, dense in these layers.
        names: Full names of the layers that may become low-rank; all others stay and are counted.
        budget: Such as "params=8x"; see `ironrank.ranks.budget`.
        form: "channel", "spatial", "tucker2", or "auto" for the best of all, layer by layer.
        forms: Form by full name, in place of ``form``.
        example: Input of the model, a batch, or a tuple of them; needed for macs (of the first example) and latency
            (of the batch as it is).
        weights: Weights to measure errors on, by name, in place of the model's own.
        min_rank: Smallest rank of a layer that does not stay dense.
        round_to: Ranks are multiples of this, or full.
        ranks: Ranks that are given, by full name.
        factors: Factors on the errors by name, such as `sensitivity`; 1 where there is none. With moments they are
            divided by the mean square of the layer's inputs, see `ironrank.ranks.weighting`.
        moments: Second moments of the inputs of all these layers by name, from `second_moments`.
        rule: "global" for the least error within the budget; for comparisons "uniform", the same share of each layer's
            cost, or "energy", the same share of each layer's energy.
        timer: Times a call of a module, in milliseconds; for latency.

    Returns:
        The choice; ``print(choice)`` shows it as a table.

    Raises:
        IronrankError: If the budget or the rule is misspelled, the budget is out of reach, an example is missing, a
            weight is not finite, or moments of a layer are missing.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> chosen = fit(net, ["0"], "params=2x")
        >>> chosen.by_name["0"].rank, chosen.after <= 4810 / 2
        (13, True)
    """
    parsed = parse_budget(budget)
    if rule not in ("global", *RULES):
        raise IronrankError(f"rule={rule!r}: {nearest(rule, ['global', *RULES])}")
    wishes = dict.fromkeys(names, form) | dict(forms or {})
    for wish in wishes.values():
        check_wish(wish)
    if example is None and parsed.cost in ("macs", "latency"):
        raise IronrankError(
            f"budget={budget!r} needs an example input: pass example=x, a batch that the model takes"
        )
    found = sites(model, wishes, example)
    cost, before = _measured(model, found, parsed, wishes, example, timer)
    pick, scale, roots = dict(ranks or {}), factors or {}, moments or {}
    if roots and (unseen := [site.name for site in found if site.name not in roots]):
        raise IronrankError(f"moments of layer '{unseen[0]}' are missing: errors could not be compared; "
                            "give those of all layers that may become low-rank, or exclude it")  # fmt: skip

    def make(site: Site) -> Menu:
        weight: Any = model.get_submodule(site.name).weight if weights is None else weights[site.name]
        if weight.is_meta:
            raise IronrankError(
                f"layer '{site.name}' is on the meta device: no rank can be chosen without its weights"
            )
        if not bool(torch.isfinite(weight).all()):
            raise IronrankError(f"layer '{site.name}' has weights that are not finite: no rank can be chosen")
        name, seen = site.name, roots.get(site.name)
        power = seen.power if seen is not None and name in scale else 1.0  # a sensitivity holds it already
        return menu(site, weight, cost, wishes[name], min_rank=min_rank, round_to=round_to, rank=pick.get(name),
                    factor=scale.get(name, 1.0) / (power or 1.0), roots=seen)  # fmt: skip

    menus = tuple(side_by_side(make, found))
    dense = sum(float(cost(site, "dense", DENSE)[0]) for site in found)
    return within_budget(menus, parsed, before, max(0.0, before - dense), rule)


def _measured(
    model: nn.Module, found: list[Site], budget: Budget, wishes: Mapping[str, str], example: Any, timer: Timer
) -> tuple[Cost, float]:
    """Return the cost of a layer's forms, and that of the whole model."""
    if budget.cost == "latency":
        return measure(model, found, wishes, example, timer=timer), timer(model, example)
    counts = {"params": lambda: count_params(model), "bytes": lambda: count_bytes(model),
              "macs": lambda: count_macs(model, example)}  # fmt: skip
    return COSTS[budget.cost], float(counts[budget.cost]())


def within_budget(
    menus: tuple[Menu, ...], budget: Budget, before: float, fixed: float, rule: str = "global"
) -> Choice:
    """Choose one option for each layer within a budget for the whole net.

    Args:
        menus: The menus.
        budget: The budget.
        before: Cost of the whole net as it is.
        fixed: Cost of what no menu covers.
        rule: "global", "uniform" or "energy".

    Returns:
        The choice.

    Raises:
        IronrankError: If the net cannot become that small, or costs less already.
    """
    limit = _reached(budget, before, fixed, sum(menu.options[0].cost for menu in menus))
    if rule == "global":
        options, bound = choose(menus, limit - fixed)
    else:
        options, bound = within(RULES[rule], menus, limit - fixed), 0.0
    return Choice(menus, tuple(options), before, fixed, limit, bound, budget)


def check_reach(
    model: nn.Module,
    names: Iterable[str],
    budget: str,
    *,
    form: str = "auto",
    example: Any = None,
    min_rank: int = 1,
    round_to: int = 1,
) -> None:
    """Refuse a budget that no ranks can meet; only shapes matter.

    Args:
        model: The model, dense in these layers.
        names: Full names of the layers that may become low-rank.
        budget: Of params, macs or bytes.
        form: As for `fit`.
        example: Input of the model; needed for macs.
        min_rank: Smallest rank of a layer that does not stay dense.
        round_to: Ranks are multiples of this, or full.

    Raises:
        IronrankError: If the net cannot become that small, or costs less already.

    Example:
        >>> check_reach(nn.Linear(64, 64), [""], "params=16x")
    """
    parsed, wishes = parse_budget(budget), dict.fromkeys(names, form)
    found = sites(model, wishes, example)
    cost, before = _measured(model, found, parsed, wishes, example, median_ms)
    fixed = max(0.0, before - sum(float(cost(site, "dense", DENSE)[0]) for site in found))
    _reached(
        parsed, before, fixed, sum(least(s, cost, form, min_rank=min_rank, round_to=round_to) for s in found)
    )


def _reached(budget: Budget, before: float, fixed: float, cheapest: float) -> float:
    """Return the limit of a budget; refuse one below the cheapest options and what is fixed."""
    limit, smallest = budget.limit(before), fixed + cheapest
    if smallest > limit:
        reach = f"{before / smallest:.3g}x ({shown(budget.cost, smallest)} of {shown(budget.cost, before)})"
        raise IronrankError(f"{budget.text}: the smallest this net can become is {reach}; "
                            f"{shown(budget.cost, fixed)} of that lie outside of the layers that may become low-rank: "
                            "ask for less, include more layers, or lower min_rank")  # fmt: skip
    return limit
