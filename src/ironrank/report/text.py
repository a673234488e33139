"""How numbers become text: one place, so that page, table and sentence agree to the digit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "\u2013"  # not measured
TIMES = "\u00d7"
_GAP = "\u202f"  # narrow no-break space between groups of three digits
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def clean(value: object) -> str:
    """Return text that any file format can carry: control characters and lone surrogates are replaced."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def plain(value: Any) -> Any:
    """Turn a value into strict JSON: numbers that JSON lacks become the text ``inf``, ``-inf`` or ``nan``.

    Args:
        value: Numbers, text, None, dicts, lists, tuples, or anything with ``tolist`` (arrays, tensors).

    Returns:
        Dicts, lists, text, finite numbers, booleans and None; whatever else is there becomes text.

    Example:
        >>> plain({"cond": float("inf"), "shape": (2, 3)})
        {'cond': 'inf', 'shape': [2, 3]}
    """
    if isinstance(value, Mapping):
        return {clean(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else clean(value)


def count(value: float | None) -> str:
    """Return a whole number in groups of three digits, or a dash."""
    return DASH if value is None else f"{value:,.0f}".replace(",", _GAP)


def counts(values: Sequence[int]) -> str:
    """Return whole numbers with a times sign between them, such as the two ranks of a layer, or a dash for none."""
    return f" {TIMES} ".join(map(count, values)) or DASH


def percent(fraction: float | None) -> str:
    """Return a fraction of one in percent with one decimal, without the sign, or a dash.

    Example:
        >>> percent(0.8314)
        '83.1'
    """
    return DASH if fraction is None else f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """Return a difference of two fractions in percentage points, with its sign.

    Example:
        >>> points(-0.031), points(-0.0001)
        ('-3.1', '+0.0')
    """
    return f"{round(100 * difference, 1) + 0.0:+.1f}"  # + 0.0: no minus before a zero


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent up to a million.

    Example:
        >>> significant(0.041666), significant(313.2), significant(float("inf")), significant(2.5e9)
        ('0.0417', '313', '∞', '2.50·10⁹')
    """
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_RAISED)}"
    decimals = 0 if value == 0 else max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace(",", _GAP)


def epsilon(eps: float | None) -> str:
    """Return the radius of a ball the way the field writes it.

    Example:
        >>> epsilon(8 / 255), epsilon(0.1)
        ('8/255', '0.1')
    """
    if eps is None:
        return DASH
    if abs(eps - round(eps, 3)) < 1e-9 or not is_pixel_step(eps):
        return f"{eps:.3g}"
    return f"{round(255 * eps)}/255"


def is_pixel_step(eps: float) -> bool:
    """Return whether ``eps`` is a whole number of steps of 1/255."""
    return abs(255 * eps - round(255 * eps)) < 1e-3


def quote(name: str) -> str:
    """Return the name of a net in quotation marks."""
    return f"\u2018{name}\u2019"


def shape(sides: tuple[int, ...]) -> str:
    """Return the sides of a tensor, such as 64 by 3 by 3 by 3, or a dash."""
    return f" {TIMES} ".join(map(str, sides)) or DASH


def norm(name: str) -> str:
    """Return the sign of a norm: ``Linf`` is shown as ``L∞``."""
    return name.replace("inf", "∞")


def power(value: float) -> str:
    """Return a power of ten for the tick of an axis.

    Example:
        >>> power(1), power(0.01), power(1e-5)
        ('1', '0.01', '10⁻⁵')
    """
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    return f"10{str(round(math.log10(value))).translate(_RAISED)}"


def amount(value: float) -> str:
    """Return a large number for the tick of an axis.

    Example:
        >>> amount(20_000), amount(1_500_000), amount(50)
        ('20 k', '1.5 M', '50')
    """
    for scale, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:g} {sign}"
    return f"{value:g}"


def number(value: object) -> float | None:
    """Return what stands in an evaluation as a number, or None where there is none.

    Args:
        value: A number, its text (JSON has no infinity), or anything else.

    Returns:
        The number, possibly infinite or NaN.

    Example:
        >>> number("inf"), number(True), number("abc")
        (inf, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def whole(value: object) -> int | None:
    """Return what stands in an evaluation as a whole number that is not negative, or None."""
    found = number(value)
    return int(found) if found is not None and math.isfinite(found) and found >= 0 else None
