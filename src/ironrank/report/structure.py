"""Two figures of the weights: singular values of shared layers, ranks of factored ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ironrank.report import text
from ironrank.report.drawing import EDGE, Panel, Plate, legend, line, powers, thin
from ironrank.report.layer import Layer
from ironrank.report.palette import EARLIER, INK, MUTED, RULE, earlier_key, style
from ironrank.report.rows import Row
from ironrank.report.svg import draw

PANELS = 24  # layers that get a panel of their own
POINTS = 48  # points of a spectrum
SMALLEST = 1e-8  # below this share of the largest, a singular value counts as zero

Spectrum = list[tuple[int, float]]
"""(k, share of the largest) of every singular value that is not zero."""


def spectra(rows: Sequence[Row]) -> Plate | None:
    """Return the figure of singular values of layers that several rows share; None where there are none."""
    shared = _shared(rows)
    drawn, first = list(shared.items())[:PANELS], _first(rows)
    if not drawn:
        return None
    floor = min(values[-1][1] for _, lines in drawn for _, values in lines)
    panels = [
        _spectrum(k, name, shape, lines, floor, [one[1].get((name, shape), []) for one in first])
        for k, ((name, shape), lines) in enumerate(drawn)
    ]
    rest = f" The first {len(drawn)} of {len(shared)} layers; the JSON file has all numbers."
    rest = rest if len(shared) > len(drawn) else ""
    caption = (
        "Singular values σₖ of each layer over the largest one, σ₁; both axes logarithmic. A line that "
        "stays high is well conditioned; a line that ends early has low rank."
    )
    caption += " Grey: the same layer before training." if first else ""
    seen = sorted({i for _, lines in drawn for i, _ in lines})
    keys = legend((i, rows[i].name) for i in seen)
    keys += tuple((said, earlier_key(k)) for k, (said, _) in enumerate(first))
    return Plate("spectra", "Singular values, before and after", caption + rest, tuple(panels), keys)


def _first(rows: Sequence[Row]) -> list[tuple[str, dict[tuple[str, tuple[int, ...]], Spectrum]]]:
    """Return what the trainings began with, each net once: words for the legend, and its spectra."""
    found: dict[str, tuple[list[str], Row]] = {}
    for row in rows:
        if row.before is not None:
            same = repr([[f"{s:.4g}" for s in layer.singular_values[:8]] for layer in row.before.layers])
            found.setdefault(same, ([], row))[0].append(row.name)
    return [
        (f"before {', '.join(map(text.quote, names))}: {row.before.what}",
         {(layer.name, layer.shape): _normal(layer.singular_values) for layer in row.before.layers})
        for names, row in list(found.values())[: len(EARLIER)]
        if row.before is not None
    ]  # fmt: skip


def _shared(rows: Sequence[Row]) -> dict[tuple[str, tuple[int, ...]], list[tuple[int, Spectrum]]]:
    found: dict[tuple[str, tuple[int, ...]], list[tuple[int, Spectrum]]] = {}
    for i, row in enumerate(rows):
        for layer in row.layers:
            if values := _normal(layer.singular_values):
                found.setdefault((layer.name, layer.shape), []).append((i, values))
    return {key: lines for key, lines in found.items() if len(lines) >= min(2, len(rows))}


def _normal(values: tuple[float, ...]) -> Spectrum:
    largest = values[0] if values else 0.0
    return [(k, s / largest) for k, s in enumerate(values, 1) if largest > 0 and s > SMALLEST * largest]


def _spectrum(
    place: int,
    name: str,
    shape: tuple[int, ...],
    lines: list[tuple[int, Spectrum]],
    floor: float,
    first: list[Spectrum],
) -> Panel:
    ends = ", ".join(text.significant(values[-1][1]) for _, values in lines)
    alt = f"Singular values of layer {name}, {len(lines)} lines; smallest over largest: {ends}."
    svg = draw(f"spectrum{place}", partial(_spectrum_axes, lines=lines, floor=floor, first=first), 225, 165)
    return Panel(f"{name}, {text.shape(shape)}" if shape else name, alt, svg)


def _spectrum_axes(
    axes: Axes, lines: list[tuple[int, Spectrum]], floor: float, first: list[Spectrum]
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for k, values in enumerate(first):
        kept = [values[i] for i in thin(len(values), POINTS, geometric=True)] if values else []
        axes.plot([i for i, _ in kept], [share for _, share in kept], color=MUTED, linewidth=1.1,
                  linestyle=(0, EARLIER[k]), zorder=1.5)  # fmt: skip
    for i, values in lines:
        kept = [values[k] for k in thin(len(values), POINTS, geometric=True)]
        line(axes, [k for k, _ in kept], [share for _, share in kept], i, sparse=True)
    longest = max(values[-1][0] for values in [*(v for _, v in lines), *filter(None, first)])
    axes.set_ylim(min(0.08, 0.6 * floor), 1.7)
    axes.set_xlim(0.9, 1.2 * max(2, longest))
    axes.xaxis.set_major_locator(FixedLocator([4**k for k in range(12) if 4**k <= 1.1 * longest]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    powers(axes)
    axes.set_xlabel("index k")
    axes.set_title("σₖ / σ₁")


def ranks(rows: Sequence[Row]) -> Plate | None:
    """Return the figure of ranks of all factored layers; None where nothing is factored."""
    drawn = [(i, row.name, factored) for i, row in enumerate(rows) if (factored := _factored(row))]
    names = list(dict.fromkeys(layer.name for _, _, layers in drawn for layer in layers))
    if not names:
        return None
    height = 52 + len(names) * (12 + 7.5 * len(drawn))
    svg = draw("ranks", partial(_rank_axes, drawn=drawn, names=names), 380, height)
    found = [
        f"{name}: {', '.join(f'{layer.name} {text.counts(layer.rank)}' for layer in layers)}"
        for _, name, layers in drawn
    ]
    panel = Panel("", f"Dot chart of ranks. {'; '.join(found)}.", svg)
    caption = (
        "Rank of every factored layer in percent of its full rank (of two ranks the geometric mean), layers from input "
        "(top) to output."
    )
    return Plate("ranks", "Ranks of the layers", caption, (panel,), legend((i, name) for i, name, _ in drawn))


def _factored(row: Row) -> list[Layer]:
    return [layer for layer in row.layers if layer.factored and layer.share]


def _rank_axes(axes: Axes, drawn: list[tuple[int, str, list[Layer]]], names: list[str]) -> None:
    step = 0.66 / len(drawn)
    for place, (i, _, layers) in enumerate(drawn):
        shares = [100 * (layer.share or 0) for layer in layers]
        heights = [names.index(layer.name) + step * (place - (len(drawn) - 1) / 2) for layer in layers]
        look = style(i)
        axes.hlines(heights, 0, shares, colors=look.colour, linewidth=1.2, alpha=0.5)
        axes.plot(
            shares, heights, color=look.colour, marker=look.marker, linestyle="none", clip_on=False, **EDGE
        )
    for k in range(1, len(names)):
        axes.axhline(k - 0.5, color=RULE, linewidth=0.8)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("rank, % of full rank")


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
