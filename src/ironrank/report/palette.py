"""Colours, dashes and markers of the rows: told apart without colour, readable on light and dark ground.

The colours below are those of the light page; in the drawing each stands for a CSS variable (``--s0`` ...), which
the style sheet sets for light and for dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

INK, MUTED, RULE, PAPER = "#1b1f24", "#5c6670", "#dfe3e8", "#fefefd"
COLOURS = ("#0067a8", "#c2410c", "#0c7f5f", "#9d3c85", "#8a6100", "#4b5563")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (2, 2), (7, 2, 2, 2))
MARKERS = "os^DvPX<>phH"

VARIABLES = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"} | {
    colour: f"var(--s{i})" for i, colour in enumerate(COLOURS)
}
_KEY = (
    '<svg class="key" viewBox="0 0 30 12" aria-hidden="true">'
    '<path d="M1 6H29" fill="none" stroke-width="1.6" stroke-dasharray="{dash}" style="stroke:{colour}"/>'
    '<path d="{outline}" style="fill:{colour}"/></svg>'
)


@dataclass(frozen=True)
class Style:
    """How one row is drawn in every figure."""

    colour: str
    dash: tuple[float, ...]
    marker: str

    @property
    def linestyle(self) -> tuple[float, tuple[float, ...] | None]:
        """The dash pattern in matplotlib's words."""
        return (0, self.dash or None)

    @property
    def key(self) -> str:
        """The sample of this style for a legend, as inline SVG."""
        dash = " ".join(map(str, self.dash)) or "none"
        return _KEY.format(dash=dash, colour=VARIABLES[self.colour], outline=_outline(self.marker))


def style(index: int) -> Style:
    """Return the style of the row at this place; 48 rows pass before one repeats.

    Example:
        >>> len({style(i) for i in range(48)})
        48
    """
    dash = DASHES[(index + index // 12) % len(DASHES)]
    return Style(COLOURS[index % len(COLOURS)], dash, MARKERS[index % len(MARKERS)])


def _outline(marker: str) -> str:
    shape = MarkerStyle(marker)
    place = Affine2D().scale(7, -7).translate(15, 6)
    path = shape.get_path().transformed(shape.get_transform()).transformed(place)
    rings = [np.asarray(ring, dtype=float) for ring in path.to_polygons(closed_only=False)]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in ring) + "Z" for ring in rings)
