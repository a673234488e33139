"""Put factored layers in the place of dense ones, and plain torch layers in the place of factored ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from ironrank.errors import IronrankError
from ironrank.layers import FACTORED, Factored, Rank, factored_kind
from ironrank.linalg import side_by_side
from ironrank.ranks.weighting import Moments, project
from ironrank.surgery.find import replace
from ironrank.surgery.planning import Pattern, check_finite, plan
from ironrank.surgery.plans import Plan, Row

Net = TypeVar("Net", bound=nn.Module)


def factorize(
    model: Net,
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
    dry_run: bool = False,
) -> Net:
    """Replace layers by factored ones in place, starting from their weights (truncated SVD, or HOOI for Tucker-2).

    Args:
        model: Any module; it is changed and returned.
        keep: Kept fraction of each layer's full rank, ``min(n, m)``, or of both ranks of Tucker-2; in (0, 1]. 1.0 keeps
            the function.
        include: Layer types, or patterns of full names such as ``"layer3.*"``; by default every layer.
        exclude: The same, for layers to leave alone.
        ranks: Rank by name pattern; it overrides ``keep`` for layers that match. A pair (r1, r2) for Tucker-2, where
            one number stands for both.
        round_to: Round ranks from ``keep`` up to a multiple of this.
        core: Whether layers held as a matrix get a core S (``U S V^T``) or not (``U V^T``).
        form: "channel", "spatial", "tucker2" or "auto", see `plan`.
        forms: Form by name pattern; it overrides ``form`` for the layers that match.
        budget: Cost of the whole deployed net, such as "params=8x", in place of ``keep``; see `plan`.
        example: Input of the model, for a budget of macs or latency.
        min_rank: Smallest rank under a budget.
        factors: Factors on the layers' errors under a budget, by full name; see `plan`.
        moments: Second moments of the layers' inputs by full name, in whose metric weights are projected; see `plan`.
        rule: How a budget is shared out: "global", "uniform" or "energy"; see `plan`.
        dry_run: Print the plan and change nothing.

    Returns:
        The same model.

    Raises:
        IronrankError: If a pattern matches no layer, keep is not in (0, 1], a rank is above the layer's, or a form is
            unknown.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> factorize(net, keep=0.5, exclude=["2"], form="tucker2")[0].rank
        (4, 2)
    """
    if isinstance(model, tuple(FACTORED)):
        raise IronrankError("a bare layer cannot be replaced in place: pass nn.Sequential(layer)")
    chosen = plan(model, keep, include=include, exclude=exclude, ranks=ranks, round_to=round_to, core=core,
                  form=form, forms=forms, budget=budget, example=example, min_rank=min_rank, factors=factors,
                  moments=moments, rule=rule)  # fmt: skip
    if dry_run:
        print(chosen)  # what the caller asked for
        return model
    return apply_plan(model, chosen)


def apply_plan(model: Net, chosen: Plan) -> Net:
    """Replace the layers that a plan names, in its forms and ranks; the model is changed and returned.

    Args:
        model: The module that the plan was made for, dense in these layers.
        chosen: The plan.

    Returns:
        The same model.

    Raises:
        IronrankError: If a layer has weights that are not finite, is factored already, or cannot have such a rank.
    """

    def make(row: Row) -> Factored:
        layer, seen = model.get_submodule(row.name), chosen.moments.get(row.name)
        return _factored(row, layer if seen is None else _tilted(row, layer, seen), chosen.core)

    rows = [row for row in chosen.rows if row.rank is not None]
    for row, layer in zip(rows, side_by_side(make, rows), strict=True):
        replace(model, row.name, layer)
    return model


def _factored(row: Row, layer: Any, core: bool) -> Factored:
    if type(layer) not in FACTORED:
        raise IronrankError(
            f"layer '{row.name}' is a {type(layer).__name__}: only dense layers can be factored"
        )
    check_finite(row.name, layer)
    kind = factored_kind(type(layer), row.form)
    return kind.from_dense(layer, row.rank, core or row.form == "tucker2", row.form)


def _tilted(row: Row, layer: Any, seen: Moments) -> Any:
    """Return a copy of a layer whose weight is already projected, in the metric of its inputs."""
    check_finite(row.name, layer)
    twin = copy.deepcopy(layer)
    twin.weight.data.copy_(project(layer.weight, row.form, row.rank, seen[row.form]))
    return twin


def deploy(model: nn.Module, dense: bool | None = None) -> nn.Module:
    """Return a copy in which every factored layer is plain torch layers: thin ones, or one dense where smaller.

    Args:
        model: A model, or a factored layer itself.
        dense: True for dense layers everywhere (the merged-weight twin), False for thin ones everywhere.

    Returns:
        A copy with the same function and no class of this package but what the model itself is made of.
    """
    if isinstance(model, Factored):
        return model.deploy(dense)
    twin = copy.deepcopy(model)
    done: dict[Factored, nn.Module] = {}  # a layer that is shared stays shared
    for name, layer in list(twin.named_modules(remove_duplicate=False)):
        if isinstance(layer, Factored):
            done[layer] = done[layer] if layer in done else layer.deploy(dense)
            replace(twin, name, done[layer])
    return twin
