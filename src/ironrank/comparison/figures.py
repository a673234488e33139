"""The figures of a comparison: size or latency against robust accuracy, and accuracy against eps.

A net has the same colour, dash and marker in all of them; its budgets are joined by a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from ironrank.comparison import words
from ironrank.comparison.words import Result
from ironrank.judge.evaluate import CURVE
from ironrank.report import text
from ironrank.report.drawing import EDGE, Panel, Plate, legend, line
from ironrank.report.palette import MUTED, style
from ironrank.report.robustness import amounts, front
from ironrank.report.svg import draw

Row = Mapping[str, Any]
NEAR = 5  # costs within this factor need more ticks
COSTS = {
    "size": ("Size against robustness", "deployed parameters (logarithmic)"),
    "latency": (
        "Latency against robustness",
        "time of one image, % of the dense net's (paired, logarithmic)",
    ),
}


def places_of(result: Result) -> dict[str, int]:
    """Return the place of each net, which fixes its style."""
    nets = dict.fromkeys(row["net"] for row in result["rows"] if row["seeds"])
    return {net: place for place, net in enumerate(nets)}


def pareto(result: Result, kind: str) -> Plate | None:
    """Return the figure of a cost against accuracy under attack, one panel for each training.

    Args:
        result: The comparison.
        kind: "size" or "latency".

    Returns:
        The plate; None where nothing is measured.
    """
    places, panels = places_of(result), []
    for training in words.trainings_of(result):
        rows = [row for row in words.judged(result, training) if kind == "size" or row["latency"]]
        if rows:
            svg = draw(f"{kind}-{training}", partial(_scatter, rows=rows, kind=kind, places=places), 460, 330)
            panels.append(Panel(words.HEADS[training], _alt(rows, kind), svg))
    if not panels:
        return None
    caption = (
        f"{words.attack_of(result)}. A line joins the budgets of a net; bars: standard deviation over seeds. Up and to "
        "the left is better. Dashed: the front; no net beats those on it in both. Dotted: the dense net's accuracy."
    )
    return Plate(
        "methods", COSTS[kind][0], caption, tuple(panels), legend((i, net) for net, i in places.items())
    )


def _cost(row: Row, kind: str) -> float:
    return float(row["params_deployed"] if kind == "size" else 100 * row["latency"]["ratio"])


def _alt(rows: Sequence[Row], kind: str) -> str:
    unit = "parameters" if kind == "size" else "% of the time"
    points = [
        f"{words.label_of(row)} {text.significant(_cost(row, kind))} {unit}, {text.percent(row['robust']['mean'])} %"
        for row in rows
    ]
    return f"Scatter chart of {COSTS[kind][1]} against accuracy under attack: {'; '.join(points)}."


def _scatter(axes: Axes, rows: Sequence[Row], kind: str, places: Mapping[str, int]) -> None:
    axes.set_xscale("log")
    points = {i: (_cost(row, kind), 100 * row["robust"]["mean"]) for i, row in enumerate(rows)}
    x, y = zip(*(points[i] for i in front(points)), strict=True)
    axes.plot(x, y, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), drawstyle="steps-post", zorder=1)
    for row in rows:
        if row["net"] == "dense":
            level = 100 * row["robust"]["mean"]
            axes.axhline(level, color=MUTED, linestyle=(0, (1, 2.5)), linewidth=1.2, zorder=1)
    for net, place in places.items():
        _net(
            axes,
            sorted((row for row in rows if row["net"] == net), key=lambda row: _cost(row, kind)),
            kind,
            place,
        )
    costs = [cost for cost, _ in points.values()]
    amounts(axes, min(costs), max(costs))
    if max(costs) < NEAR * min(costs):
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
    axes.set_title("accuracy under attack, %")
    axes.set_xlabel(COSTS[kind][1])
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(100.0, high))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _net(axes: Axes, rows: Sequence[Row], kind: str, place: int) -> None:
    look = style(place)
    costs, means = [_cost(row, kind) for row in rows], [100 * row["robust"]["mean"] for row in rows]
    for cost, mean, row in zip(costs, means, rows, strict=True):
        sd = 100 * (row["robust"]["sd"] or 0.0)
        axes.plot(
            [cost] * 2,
            [max(0.0, mean - sd), min(100.0, mean + sd)],
            color=look.colour,
            linewidth=1.2,
            zorder=2,
        )
    axes.plot(costs, means, color=look.colour, linestyle=look.linestyle, linewidth=1, marker=look.marker,
              markersize=7.5, zorder=3, clip_on=False, **EDGE)  # fmt: skip


def against_eps(result: Result) -> Plate | None:
    """Return the curves of accuracy against the radius of the ball, a panel for each training and budget.

    Args:
        result: The comparison.

    Returns:
        The plate; the dense net is in every panel. None where nothing is judged.
    """
    places, panels = places_of(result), []
    for training in words.trainings_of(result):
        rows = words.judged(result, training)
        for budget in sorted({row["budget"] for row in rows if row["budget"] is not None}):
            drawn = [row for row in rows if row["budget"] in (None, budget)]
            key = f"eps-{training}-{budget:g}".replace(".", "-")
            svg = draw(key, partial(_curves, rows=drawn, places=places, chance=result["chance"]), 330, 235)
            title = f"{words.HEADS[training]}, {budget:g} %"
            alt = f"Line chart of accuracy against the radius of the ball, {len(drawn)} nets; numbers below."
            panels.append(Panel(title, alt, svg))
    if not panels:
        return None
    caption = f"Mean over seeds, PGD-20, {text.norm(result['protocol']['norm'])} balls. Dotted line: chance."
    return Plate("against-eps", "", caption, tuple(panels), legend((i, net) for net, i in places.items()))


def _curves(axes: Axes, rows: Sequence[Row], places: Mapping[str, int], chance: float) -> None:
    axes.axhline(100 * chance, color=MUTED, linestyle=(0, (1, 2.5)), linewidth=1.2)
    for row in rows:
        curve = row["curve"][: len(CURVE)]  # the radius of plain grey may lie far to the right
        line(
            axes,
            [p["eps"] for p in curve],
            [100 * p["accuracy"] for p in curve],
            places[row["net"]],
            sparse=True,
        )
    axes.set_ylim(0, 100)
    axes.set_title("accuracy under attack, %")
    axes.set_xlabel("radius ε of the ball, pixel range 0 to 1")
    axes.xaxis.set_major_locator(MaxNLocator(5))
