"""Colours, dashes and markers of the rows: told apart without colour, readable on light and dark ground.

The colours below are those of the light page; in a drawing each stands for a CSS variable (``--s0`` ...) that
the style sheet sets for light and for dark. The six of either kind stay apart, by a CIE 1976 distance above
25, for protan, deutan and tritan eyes too (simulated after Machado et al. 2009, IEEE TVCG 15:1291).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

INK, MUTED, RULE, PAPER = "#1b1f24", "#5c6670", "#dfe3e8", "#fefefd"
COLOURS = ("#2245da", "#961713", "#009562", "#b22ea2", "#af8700", "#4d1831")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (2, 2), (7, 2, 2, 2))
MARKERS = "os^DvPX<>pd"
EARLIER: tuple[tuple[float, ...], ...] = (
    (1.5, 1.8),
    (5, 1.8),
    (5, 1.8, 1.5, 1.8),
)  # grey lines without markers

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


def earlier_key(index: int) -> str:
    """Return the sample of a grey line of what was before, for a legend, as inline SVG."""
    return _KEY.format(dash=" ".join(map(str, EARLIER[index])), colour=VARIABLES[MUTED], outline="")


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
