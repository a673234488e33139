"""Two figures: accuracy against the strength of the attack, size against robust accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from ironrank.judge.interval import wilson
from ironrank.report.drawing import Panel, Plate, legend, line
from ironrank.report.judge import chance, scores_of
from ironrank.report.palette import MUTED, PAPER, style
from ironrank.report.rows import Row
from ironrank.report.score import Score, Threat
from ironrank.report.svg import draw
from ironrank.report.tables import curve_attacks
from ironrank.report.text import amount, count, epsilon, is_pixel_step, percent

FEW = 6  # up to so many rows, intervals are drawn as bands


def accuracy_against_eps(rows: Sequence[Row]) -> Plate | None:
    """Return the figure of accuracy against the radius of the ball; None where no row has a curve."""
    drawn = [(i, row) for i, row in enumerate(rows) if row.curve]
    if not drawn:
        return None
    guess = chance(rows)
    banded = len(drawn) <= FEW and any(n for _, row in drawn for _, _, n in row.curve)
    caption = curve_attacks(rows)
    caption += " Bands: 95 % Wilson interval." if banded else ""
    caption += " Mean over seeds." if any(row.members for _, row in drawn) else ""
    caption += "" if guess is None else f" Dotted line: chance, {percent(guess)} %."
    alt = (
        f"Line chart of accuracy against the radius of the ball: {'; '.join(_ends(row) for _, row in drawn)}."
    )
    svg = draw("eps", partial(_curves, drawn=drawn, guess=guess))
    keys = legend((i, row.label) for i, row in drawn)
    return Plate("eps", "Accuracy against the strength of the attack", caption, (Panel("", alt, svg),), keys)


def _ends(row: Row) -> str:
    (start, high, _), (end, low, _) = row.curve[0], row.curve[-1]
    return f"{row.name}: {percent(high)} % at {epsilon(start)}, {percent(low)} % at {epsilon(end)}"


def _curves(axes: Axes, drawn: list[tuple[int, Row]], guess: float | None) -> None:
    radii = [eps for _, row in drawn for eps, _, _ in row.curve]
    in_steps = all(map(is_pixel_step, radii)) and any(eps != round(eps, 3) for eps in radii)
    scale = 255.0 if in_steps else 1.0
    if guess is not None:
        axes.axhline(100 * guess, color=MUTED, linestyle=(0, (1, 2.5)), linewidth=1.2)
    for i, row in drawn:
        eps = [scale * point[0] for point in row.curve]
        line(axes, eps, [100 * point[1] for point in row.curve], i)
        if len(drawn) <= FEW:
            _band(axes, row, eps, i)
    axes.set_ylim(0, 100)
    axes.set_title("accuracy under attack, %")
    axes.set_xlabel(
        "radius ε of the ball, " + ("in 1/255 of the pixel range" if in_steps else "pixel range 0 to 1")
    )
    axes.xaxis.set_major_locator(_ticks(sorted({scale * eps for eps in radii}), in_steps))


def _ticks(radii: list[float], whole: bool) -> Locator:
    apart = min((b - a for a, b in itertools.pairwise(radii)), default=0.0)
    if len(radii) > 1 and apart > 0.07 * (radii[-1] - radii[0]):
        return FixedLocator(radii)
    return MaxNLocator(6, integer=whole)


def _band(axes: Axes, row: Row, eps: list[float], index: int) -> None:
    limits = [wilson(accuracy, n) if n else (accuracy, accuracy) for _, accuracy, n in row.curve]
    low, high = ([100 * pair[side] for pair in limits] for side in (0, 1))
    axes.fill_between(eps, low, high, color=style(index).colour, alpha=0.13, linewidth=0)


def size_against_robustness(rows: Sequence[Row], threat: Threat | None) -> Plate | None:
    """Return the figure of deployed parameters against robust accuracy; None where no attack was run."""
    drawn = [(i, rows[i], score) for i, score in scores_of(rows, threat).items() if rows[i].size > 0]
    if not drawn:
        return None
    points = {i: (float(row.size), 100 * score.accuracy) for i, row, score in drawn}
    best = [points[i] for i in front(points)]
    caption = (
        f"Robust accuracy: the lowest over all attacks inside {drawn[0][2].ball}; bars: {_bars(drawn)}. "
        "Up and to the left is better. Dashed: the front; no net beats those on it in both."
    )
    refused = ", ".join(row.name for row in rows if row.refused)
    caption += (
        f" {len(rows) - len(drawn)} of {len(rows)} rows are not drawn." if len(drawn) < len(rows) else ""
    )
    caption += f" Left out, since nothing is proven: {refused}." if refused else ""
    found = [
        f"{row.name} {count(row.size)} parameters, {percent(score.accuracy)} %" for _, row, score in drawn
    ]
    alt = f"Scatter chart of deployed parameters against robust accuracy: {'; '.join(found)}."
    svg = draw("size", partial(_scatter, drawn=drawn, best=best))
    keys = legend((i, row.name) for i, row, _ in drawn)
    return Plate("size", "Size against robustness", caption, (Panel("", alt, svg),), keys)


def _bars(drawn: Sequence[tuple[int, Row, Score]]) -> str:
    kinds = {score.sd is None for _, _, score in drawn}
    said = {True: "95 % interval", False: "one standard deviation over seeds"}
    return ", of several seeds ".join(said[kind] for kind in sorted(kinds, reverse=True))


def front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Return the points that no other one beats: none is as small and more accurate.

    Args:
        points: (size, accuracy) of each index.

    Returns:
        The indices, the smallest first.

    Example:
        >>> front({0: (10, 0.5), 1: (5, 0.5), 2: (20, 0.6), 3: (30, 0.55)})
        [1, 2]
    """
    best, kept = -math.inf, []
    for i in sorted(points, key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def _scatter(axes: Axes, drawn: list[tuple[int, Row, Score]], best: list[tuple[float, float]]) -> None:
    axes.set_xscale("log")
    front_x, front_y = zip(*best, strict=True)
    axes.plot(
        front_x, front_y, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), drawstyle="steps-post", zorder=1
    )
    for i, row, score in drawn:
        look, (low, high) = style(i), score.interval or (score.accuracy, score.accuracy)
        axes.plot([row.size] * 2, [100 * low, 100 * high], color=look.colour, linewidth=1.2, zorder=2)
        axes.plot([row.size], [100 * score.accuracy], color=look.colour, marker=look.marker, markersize=9,
                  markeredgecolor=PAPER, markeredgewidth=1, linestyle="none", zorder=3)  # fmt: skip
    sizes = [row.size for _, row, _ in drawn]
    amounts(axes, min(sizes), max(sizes))
    axes.set_title("robust accuracy, %")
    axes.set_xlabel("deployed parameters (logarithmic)")
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def amounts(axes: Axes, smallest: float, largest: float) -> None:
    """Give the horizontal axis, logarithmic, round amounts from the smallest to the largest value."""
    axes.set_xlim(smallest / 1.6, largest * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if largest / smallest > 300 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.xaxis.set_minor_locator(NullLocator())
