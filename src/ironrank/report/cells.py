"""What tables are made of: columns, cells, and accuracies as cells."""

from __future__ import annotations

from dataclasses import dataclass

from ironrank.report import text
from ironrank.report.score import Score

NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Column:
    """A header cell: what the numbers are, and their unit."""

    label: str
    unit: str = ""
    words: bool = False


@dataclass(frozen=True)
class Cell:
    """A value and, smaller, what belongs to it: an interval, a ratio; ``alarm`` sets it apart."""

    text: str
    detail: str = ""
    alarm: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, header cells and rows of cells; the first cell of a row names it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    pick: int | None = None


def accuracy(score: Score | None) -> Cell:
    """Return an accuracy in percent and its interval, of a mean its deviation; or a dash."""
    if score is None:
        return Cell(text.DASH)
    if score.sd is not None:
        return Cell(text.percent(score.accuracy), f"±{NO_BREAK}{text.percent(score.sd)}")
    limits = score.interval
    return Cell(text.percent(score.accuracy), "" if limits is None else span(*map(text.percent, limits)))


def span(low: str, high: str) -> str:
    """Return two limits in brackets."""
    return f"[{low},{NO_BREAK}{high}]"
