"""From a drawing to SVG that may stand inside a page: no foreign ids, no fixed colours, no addresses."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ironrank.report.palette import INK, MUTED, RULE, VARIABLES

LOOK = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 9.5, "axes.labelsize": 9.5,
    "svg.fonttype": "none", "svg.hashsalt": "ironrank", "text.parse_math": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.8,
    "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "axes.titlecolor": MUTED, "axes.linewidth": 0.8,
    "axes.titlelocation": "left", "axes.titlepad": 8, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "ytick.major.size": 0, "xtick.major.size": 3, "lines.linewidth": 1.6, "lines.markersize": 5,
    "figure.constrained_layout.h_pad": 0.03, "figure.constrained_layout.w_pad": 0.03,
}  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"#([\w-]+)")


def draw(key: str, paint: Callable[[Axes], None], width: float = 380, height: float = 255) -> str:
    """Draw one panel.

    Args:
        key: A word that is unique on the page; it begins all ids of this drawing.
        paint: Draws on the axes.
        width: Natural width in CSS pixels; the page scales the drawing.
        height: Natural height in CSS pixels.

    Returns:
        An ``<svg>`` element.
    """
    buffer = io.StringIO()
    with mpl.style.context(["default", LOOK]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # glyphs that the measuring font lacks: the browser has them
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), key)


def inline(source: str, key: str) -> str:
    """Make an SVG document of matplotlib fit for standing inside a page.

    Args:
        source: The document.
        key: The beginning of all ids.

    Returns:
        One ``<svg>`` element: ids only where something refers to them, with the key before them, colours as
        CSS variables, the font of the page, coordinates to a hundredth of a pixel.
    """
    root = ElementTree.fromstring(source)
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.attrib = {name.split("}")[-1]: value for name, value in element.attrib.items()}
        element.text = element.text if element.tag == "text" else None
        element.tail = None
    for parent in list(root.iter()):
        parent[:] = [child for child in parent if child.tag not in ("metadata", "style")]
    wanted = {
        name for element in root.iter() for value in _links(element) for name in _REFERENCE.findall(value)
    }
    for element in root.iter():
        element.attrib = _attributes(element.attrib, key, wanted)
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "focusable": "false"}
    return ElementTree.tostring(root, encoding="unicode")


def _links(element: ElementTree.Element) -> list[str]:
    return [value for name, value in element.attrib.items() if name == "href" or value.startswith("url(#")]


def _attributes(attributes: dict[str, str], key: str, wanted: set[str]) -> dict[str, str]:
    out = {}
    for name, value in attributes.items():
        if name == "id":
            if value in wanted:
                out[name] = f"{key}-{value}"
        elif name == "href" or value.startswith("url(#"):
            out[name] = value.replace("#", f"#{key}-")
        elif name == "style":
            out[name] = _css(value)
        else:
            out[name] = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
    return out


def _css(style: str) -> str:
    parts = [part.strip() for part in style.split(";") if part.strip()]
    parts = [re.sub(r"^font: (?:\w+ )*?([\d.]+px).*", r"font-size: \1", part) for part in parts]
    joined = "; ".join(part for part in parts if not part.startswith("font-family"))
    for colour, variable in VARIABLES.items():
        joined = joined.replace(colour, variable)
    return joined
