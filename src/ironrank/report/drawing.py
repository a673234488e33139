"""What all figures share: panels and plates, the line of a row, the legend, axes in powers of ten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ironrank.report import text
from ironrank.report.palette import PAPER, style

EDGE: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.6}


@dataclass(frozen=True)
class Panel:
    """One drawing: its title, what it shows to those who cannot see it, and its SVG."""

    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Plate:
    """A figure of the page: panels under one title, one caption and one legend."""

    key: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[str, str], ...]


def legend(names: Iterable[tuple[int, str]]) -> tuple[tuple[str, str], ...]:
    """Return the name and the drawn sample of every row of a figure, from (place, name)."""
    return tuple((name, style(index).key) for index, name in names)


def line(axes: Axes, x: Sequence[float], y: Sequence[float], index: int, sparse: bool = False) -> None:
    """Draw the line of a row.

    Args:
        axes: Where to.
        x: Horizontal values.
        y: Vertical values.
        index: The place of the row, which fixes its style.
        sparse: Two markers on the line in place of one at every point.
    """
    look = style(index)
    marked = sorted({len(x) // 3 + index % 3, len(x) - 1} & set(range(len(x)))) if sparse else None
    axes.plot(x, y, color=look.colour, linestyle=look.linestyle, marker=look.marker, markevery=marked, **EDGE)


def thin(length: int, most: int, geometric: bool = False) -> list[int]:
    """Return at most so many indices below ``length``, the first and the last among them.

    Example:
        >>> thin(10, 4), thin(100, 4, geometric=True)
        ([0, 3, 6, 9], [0, 4, 21, 99])
    """
    if geometric:
        return [int(k) for k in np.unique(np.geomspace(1, length, most).round().astype(int) - 1)]
    return [int(k) for k in np.unique(np.linspace(0, length - 1, most).round().astype(int))]


def powers(axes: Axes) -> None:
    """Label the vertical axis with powers of ten."""
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.power(value)))
    axes.yaxis.set_minor_locator(NullLocator())
