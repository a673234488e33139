"""One layer of one net, as the judge saw it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ironrank.report import fields, text


@dataclass(frozen=True)
class Layer:
    """One layer of one net, as the judge saw it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    rank: tuple[int, ...]  # one number, two for a Tucker-2 layer, none where it is not known
    full_rank: tuple[int, ...]
    cond: float | None
    orthonormality_error: float | None
    singular_values: tuple[float, ...]

    @property
    def share(self) -> float | None:
        """The rank as a fraction of the full one, for two ranks their geometric mean; None where it is not known."""
        if not self.rank or len(self.rank) != len(self.full_rank) or not all(self.full_rank):
            return None
        return (math.prod(self.rank) / math.prod(self.full_rank)) ** (1 / len(self.rank))

    @property
    def factored(self) -> bool:
        """Whether the layer holds factors or has lost rank."""
        short = any(r < full for r, full in zip(self.rank, self.full_rank, strict=False))
        return short or self.orthonormality_error is not None or "factored" in self.kind.lower()


def read(item: Mapping[str, Any]) -> Layer:
    """Read a layer; what is missing or of another kind is None or empty from here on."""
    shape = item.get("shape")
    values = item.get("singular_values")
    numbers = [text.number(value) for value in values] if isinstance(values, list) else []
    return Layer(
        name=fields.word(item.get("name")),
        kind=fields.word(item.get("kind")),
        shape=tuple(text.whole(side) or 0 for side in shape) if isinstance(shape, list) else (),
        rank=fields.wholes(item.get("rank")),
        full_rank=fields.wholes(item.get("full_rank")),
        cond=cond(item, "cond"),
        orthonormality_error=text.number(item.get("orthonormality_error")),
        singular_values=tuple(
            sorted((s for s in numbers if s is not None and math.isfinite(s)), reverse=True)
        ),
    )


def cond(item: Mapping[str, Any], key: str) -> float | None:
    """Return a condition number; NaN where it was measured but JSON could not say it, None where it is not there."""
    if key in item and item[key] is None:
        return math.nan  # measured, but not finite: plain JSON writes null
    return text.number(item.get(key))
