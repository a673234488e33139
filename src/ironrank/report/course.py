"""The figure of the training curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ironrank.report.drawing import Panel, Plate, legend, line, powers, thin
from ironrank.report.rows import Row
from ironrank.report.svg import draw
from ironrank.report.training import METRICS, Training

EPOCHS = 200  # points of a curve


def training(runs: Sequence[Training], rows: Sequence[Row]) -> Plate | None:
    """Return the figure of all metrics that the runs carry, one panel each; None where there are none.

    Runs that differ in their seed are drawn alike, as the row that they are in.
    """
    place = {net.name: i for i, row in enumerate(rows) for net in (row.members or (row,))}
    for run in runs:
        place.setdefault(run.name, max(place.values(), default=-1) + 1)
    drawn = [(place[run.name], run) for run in runs]
    keys = [key for key in METRICS if any(len(run.series(key)) > 1 for run in runs)]
    if not keys:
        return None
    panels = tuple(_panel(key, drawn) for key in keys)
    caption = "One value for each epoch, as the run recorded it."
    names = {i: rows[i].name if i < len(rows) else run.name for i, run in drawn}
    return Plate("training", "", caption, panels, legend(names.items()))


def _panel(key: str, drawn: list[tuple[int, Training]]) -> Panel:
    metric = METRICS[key]
    title = ", ".join(filter(None, [metric.label, metric.unit]))
    svg = draw(f"training-{key.replace('_', '-')}", partial(_axes, key=key, drawn=drawn), 280, 185)
    return Panel(title, f"Line chart of {metric.label} against the epoch, {len(drawn)} runs.", svg)


def _axes(axes: Axes, key: str, drawn: list[tuple[int, Training]]) -> None:
    metric, values = METRICS[key], [1.0]
    for i, run in drawn:
        series = [(epoch, value) for epoch, value in run.series(key) if value > 0 or not metric.log]
        if series:
            kept = [series[k] for k in thin(len(series), EPOCHS)]
            values += [value for _, value in kept]
            scale = 100 if metric.percent else 1
            line(axes, [epoch for epoch, _ in kept], [scale * value for _, value in kept], i, sparse=True)
    if metric.log:
        axes.set_yscale("log")
        axes.set_ylim(0.7 * min(values), max(1.5 * max(values), 12))
        powers(axes)
    elif metric.percent:
        axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("epoch")
