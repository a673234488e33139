"""One kept fraction for a layer: how many directions that is."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

from ironrank.errors import IronrankError


def keep_rank(keep: float, full: int, round_to: int = 1) -> int:
    """Return ``ceil(keep * full)``, rounded up to a multiple on request, between 1 and ``full``.

    In exact decimal arithmetic: 0.3 of 10 is 3, where floating point would say 3.0000000000000004 and thus 4.

    Args:
        keep: Kept fraction of the full rank, in (0, 1].
        full: Full rank, ``min(n, m)`` of the layer's matrix.
        round_to: Multiple to round up to; kernels of many engines like 8 or 16.

    Returns:
        The rank.

    Raises:
        IronrankError: If keep is not in (0, 1] or round_to is not at least 1.

    Example:
        >>> keep_rank(0.3, 10), keep_rank(0.2, 64), keep_rank(0.2, 64, round_to=8), keep_rank(0.01, 20)
        (3, 13, 16, 1)
    """
    if not 0 < keep <= 1:
        raise IronrankError(f"keep={keep}: allowed is above 0 and at most 1 (kept fraction of the full rank)")
    if round_to < 1:
        raise IronrankError(f"round_to={round_to}: allowed is at least 1")
    rank = math.ceil(Fraction(Decimal(str(keep))) * full)
    return min(full, math.ceil(rank / round_to) * round_to)
