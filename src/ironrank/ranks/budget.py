"""A budget for the whole net, read from text: ``params=8x``, ``macs=50M``, ``bytes=2MB``, ``latency=3ms``.

    params=8x       an eighth of what the model costs now
    params=25%      a quarter of it
    params=1.2M     that many stored parameters
    macs=50M        that many multiply-adds for one example
    bytes=2MB       parameters and buffers, without the header of a file; MB is 10^6 bytes, MiB 2^20
    latency=3ms     measured time of one call

What counts is the deployed model as a whole: factored layers as two or three thin ones, and biases, batch norm and
dense layers as they are.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from ironrank.errors import IronrankError, nearest

_COUNT = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
_TIME = {"US": 1e-3, "MS": 1.0, "S": 1e3}
UNITS: dict[str, dict[str, float]] = {"params": _COUNT, "macs": _COUNT, "bytes": _BYTES, "latency": _TIME}
EXAMPLES = {
    "params": "8x, 25% or 1.2M",
    "macs": "4x, 25% or 50M",
    "bytes": "8x, 25% or 2MB",
    "latency": "2x, 50% or 3ms",
}


class Budget(NamedTuple):
    """A limit on one cost of the whole net.

    Attributes:
        cost: "params", "macs", "bytes" or "latency".
        amount: The number; of a relative budget the share of the cost before, of another one numbers, bytes or ms.
        relative: Whether it is a share.
        text: What it was read from.
    """

    cost: str
    amount: float
    relative: bool
    text: str

    def limit(self, before: float) -> float:
        """Return the largest allowed cost.

        Args:
            before: Cost of the model as it is.

        Returns:
            The limit, in the unit of the cost.

        Raises:
            IronrankError: If the model costs less already; but not for a measured time, which varies.
        """
        limit = self.amount * before if self.relative else self.amount
        if limit > before and self.cost != "latency":
            already = shown(self.cost, before)
            raise IronrankError(f"budget={self.text!r}: the net costs only {already} as it is: ask for less")
        return limit


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: ``cost=amount``, as at the top of this file.

    Returns:
        The budget.

    Raises:
        IronrankError: If the cost or the unit is unknown, or the amount is not above zero, or above what there is.

    Example:
        >>> parse_budget("params=8x").limit(800), parse_budget("bytes=2MB").limit(5e6)
        (100.0, 2000000.0)
    """
    cost, equals, amount = (part.strip() for part in text.partition("="))
    if cost not in UNITS:
        hint = "" if equals else " (write it as cost=amount, such as params=8x)"
        raise IronrankError(f"budget={text!r}: {nearest(cost, list(UNITS))}{hint}")
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*([a-z%]*)", amount, re.IGNORECASE)
    units = {"X": 1.0, "%": 0.01} | UNITS[cost]
    if match is None or match[2].upper() not in units:
        raise IronrankError(f"budget={text!r}: '{amount}' is no amount of {cost}; write {EXAMPLES[cost]}")
    value, unit = float(match[1]), match[2].upper()
    if not (0 < value < math.inf):
        raise IronrankError(f"budget={text!r}: the amount must be above 0 and finite; write {EXAMPLES[cost]}")
    if unit == "X":
        value = 1 / value
    amount_of = value * units[unit]
    if unit in ("X", "%") and amount_of > 1:
        raise IronrankError(f"budget={text!r} allows more than the model costs now: half of it is 2x, or 50%")
    return Budget(cost, amount_of, unit in ("X", "%"), text)


def shown(cost: str, value: float) -> str:
    """Return a cost as text with its unit.

    Args:
        cost: "params", "macs", "bytes" or "latency".
        value: The cost; milliseconds for a latency.

    Returns:
        Such as "1,234,567" or "3.21 ms".
    """
    if cost == "latency":
        return f"{value:.3g} ms"
    return f"{value:,.0f}" + (" B" if cost == "bytes" else "")
