"""Rules that choose one option for each layer; the global one shares out a budget among all of them.

    minimize  sum_l error_l(o_l)   subject to   sum_l cost_l(o_l) <= limit          o_l on the menu of layer l

For a price p on the cost, each layer by itself takes the option of smallest ``error + p cost``, which is a corner
of the lower convex hull of its menu. Lowering the price walks along all hulls at once, always along the steepest
remaining edge of any layer: the walk is the bisection on the price, done exactly. It stops at the first edge that
does not fit; what is left is spent greedily, on whatever option still fits and gains most for its cost, until none
fits.

So no layer can afford one direction more: the budget is met within one direction. For the price at which the walk
stops, ``sum_l min_o (error + p cost) - p limit`` is below the best possible error (weak duality), so every result
carries a bound on how far it is from the best: `Choice.bound`.

Source: Everett, "Generalized Lagrange multiplier method", Operations Research 11, 1963; Shoham and Gersho,
"Efficient bit allocation for an arbitrary set of quantizers", 1988, which is the same problem. Sharing out ranks
this way is ours.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ironrank.errors import IronrankError
from ironrank.layers.forms import Rank
from ironrank.ranks.budget import Budget, shown
from ironrank.ranks.menu import Menu, Option

Picks = list[int]  # for each menu, the index of the option


@dataclass(frozen=True)
class Choice:
    """One option for each layer, and the account of the whole net.

    Attributes:
        menus: The menus.
        options: The chosen option of each.
        before: Cost of the net as it is.
        fixed: Cost of what no menu covers.
        limit: Largest allowed cost; infinite without a budget.
        bound: No choice within the limit has an error below this one; 0 where a rule made no attempt.
        budget: The budget, or None.
    """

    menus: tuple[Menu, ...]
    options: tuple[Option, ...]
    before: float
    fixed: float
    limit: float
    bound: float = 0.0
    budget: Budget | None = None

    @property
    def after(self) -> float:
        """Cost of the net with these options."""
        return self.fixed + sum(option.cost for option in self.options)

    @property
    def error(self) -> float:
        """What the projections of all layers drop together."""
        return sum(option.error for option in self.options)

    @property
    def ratio(self) -> float:
        """How many times smaller the net becomes."""
        return self.before / self.after

    @property
    def by_name(self) -> dict[str, Option]:
        """The option of each layer by its full name."""
        return {menu.name: option for menu, option in zip(self.menus, self.options, strict=True)}

    @property
    def cost(self) -> str:
        """Name of what is counted."""
        return self.budget.cost if self.budget else "cost"

    @property
    def columns(self) -> tuple[str, ...]:
        """Titles of `cells`."""
        return "kept energy", self.cost, "of dense"

    @property
    def cells(self) -> dict[str, tuple[str, ...]]:
        """For each layer by its full name: kept energy, cost, and its share of the dense layer's, as text."""
        return {
            menu.name: (
                f"{menu.kept(option):.2%}",
                shown(self.cost, option.cost),
                f"{option.cost / menu.dense:.1%}" if menu.dense else "-",
            )
            for menu, option in zip(self.menus, self.options, strict=True)
        }

    @property
    def totals(self) -> str:
        """The budget, and the cost of the whole net before and after, in a sentence."""
        asked = f"{self.budget.text}: at most {shown(self.cost, self.limit)}; " if self.budget else ""
        after = f"{shown(self.cost, self.after)} after, {self.ratio:.2f}x smaller"
        rest = f"{shown(self.cost, self.fixed)} outside of these layers"
        return f"{asked}{shown(self.cost, self.before)} before, {after}, {rest}"

    def __str__(self) -> str:
        """Return the choice as a text table with totals."""
        head = ("layer", "form", "rank", *self.columns)
        body = [(n, o.form, _text(o.rank), *self.cells[n]) for n, o in self.by_name.items()]
        return f"{table([head, *body])}\n\n{self.totals}"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of text as one text, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _text(rank: Rank | None) -> str:
    return "-" if rank is None else str(rank).strip("()").replace(", ", " x ")


def choose(menus: Sequence[Menu], limit: float) -> tuple[list[Option], float]:
    """Choose one option for each layer, with total cost at most ``limit`` and as little error as possible.

    Args:
        menus: The menus.
        limit: Largest sum of their costs.

    Returns:
        The options, and a lower bound of the error of any choice within the limit.

    Raises:
        IronrankError: If not even the cheapest options fit.

    Example:
        >>> menus = [Menu("a", 5, 4, (Option("channel", 1, 2, 5), Option("dense", None, 4, 0))),
        ...          Menu("b", 9, 4, (Option("channel", 1, 2, 9), Option("dense", None, 4, 0)))]
        >>> [option.form for option in choose(menus, 6)[0]]
        ['channel', 'dense']
    """
    costs = [np.array([option.cost for option in menu.options]) for menu in menus]
    errors = [np.array([option.error for option in menu.options]) for menu in menus]
    least = sum(float(c[0]) for c in costs)
    if least > limit:
        raise IronrankError(
            f"the cheapest options cost {least:,.6g} together: a limit of {limit:,.6g} is too low"
        )
    picks, left, price = _walk(costs, errors, limit - least)
    bound = sum(float((e + price * c).min()) for c, e in zip(costs, errors, strict=True)) - price * limit
    _fill(costs, errors, picks, left)
    return [menu.options[pick] for menu, pick in zip(menus, picks, strict=True)], max(bound, 0.0)


def hull(costs: np.ndarray, errors: np.ndarray) -> list[int]:
    """Return the corners of the lower convex hull of points with rising cost and falling error, from first to last."""
    corners: list[int] = []
    for i in range(len(costs)):
        while len(corners) > 1 and _gain(costs, errors, corners[-2], corners[-1]) <= _gain(
            costs, errors, corners[-2], i
        ):
            corners.pop()
        corners.append(i)
    return corners


def _gain(costs: np.ndarray, errors: np.ndarray, i: int, j: int) -> float:
    return float((errors[i] - errors[j]) / (costs[j] - costs[i]))


def _walk(costs: list[np.ndarray], errors: list[np.ndarray], left: float) -> tuple[Picks, float, float]:
    """Go down all hulls together, steepest edge first; return picks, what is left, and the price of the stop."""
    hulls = [hull(c, e) for c, e in zip(costs, errors, strict=True)]
    steps = [0] * len(hulls)

    def edge(k: int) -> tuple[float, int]:
        return -_gain(costs[k], errors[k], *hulls[k][steps[k] : steps[k] + 2]), k

    edges = [edge(k) for k in range(len(hulls)) if len(hulls[k]) > 1]
    heapq.heapify(edges)
    while edges:
        gain, k = heapq.heappop(edges)
        here, there = hulls[k][steps[k] : steps[k] + 2]
        if costs[k][there] - costs[k][here] > left:
            return [corners[step] for corners, step in zip(hulls, steps, strict=True)], left, -gain
        left -= float(costs[k][there] - costs[k][here])
        steps[k] += 1
        if steps[k] + 1 < len(hulls[k]):
            heapq.heappush(edges, edge(k))
    return [corners[-1] for corners in hulls], left, 0.0


def _fill(costs: list[np.ndarray], errors: list[np.ndarray], picks: Picks, left: float) -> None:
    """Spend what is left on the best gain for its cost that still fits, until nothing fits; picks change in place."""
    while True:
        best = (0.0, -1, -1)
        for k, pick in enumerate(picks):
            last = int(np.searchsorted(costs[k], costs[k][pick] + left, side="right"))
            if last <= pick + 1:
                continue
            window = slice(pick + 1, last)
            gains = (errors[k][pick] - errors[k][window]) / (costs[k][window] - costs[k][pick])
            at = int(gains.argmax())
            best = max(best, (float(gains[at]), k, pick + 1 + at))
        gain, k, there = best
        if gain <= 0:
            return
        left -= float(costs[k][there] - costs[k][picks[k]])
        picks[k] = there


def uniform(menus: Sequence[Menu], share: float) -> list[Option]:
    """Give every layer the same share of its dense cost: the dearest option within it, or the cheapest there is.

    Args:
        menus: The menus.
        share: Share of the dense cost, in (0, 1].

    Returns:
        The options.
    """
    _check_share(share)
    fitting = [[option for option in menu.options if option.cost <= share * menu.dense] for menu in menus]
    return [(fits or menu.options[:1])[-1] for fits, menu in zip(fitting, menus, strict=True)]


def energy(menus: Sequence[Menu], share: float) -> list[Option]:
    """Keep the same share of every layer's energy: the cheapest option that keeps it.

    Args:
        menus: The menus.
        share: Share of the squared norm, in (0, 1].

    Returns:
        The options.
    """
    _check_share(share)
    slack = 1e-12  # 1 - 0.0 / energy is exact, but a share such as 0.9 of a sum of squares is not
    return [
        next((option for option in menu.options if menu.kept(option) >= share - slack), menu.options[-1])
        for menu in menus
    ]


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise IronrankError(f"share={share}: allowed is above 0 and at most 1")


def within(
    rule: Callable[[Sequence[Menu], float], list[Option]], menus: Sequence[Menu], limit: float
) -> list[Option]:
    """Apply a rule of one share, such as `uniform` or `energy`, at the largest share that a limit allows.

    Args:
        rule: The rule; its cost must not fall as the share rises.
        menus: The menus.
        limit: Largest sum of costs.

    Returns:
        The options, found by bisection on the share to 50 binary digits.

    Raises:
        IronrankError: If no share fits.
    """
    low, high, share, found = 0.0, 1.0, 1.0, None
    for _ in range(51):  # the whole first, then halves
        options = rule(menus, share)
        if sum(option.cost for option in options) <= limit:
            low, found = share, options
        else:
            high = share
        share = (low + high) / 2
    if found is None:
        raise IronrankError(f"no share fits a limit of {limit:,.6g}: even the cheapest options cost more")
    return found


RULES = {"uniform": uniform, "energy": energy}  # of one share; `choose` is the one that shares out the budget
