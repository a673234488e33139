"""A plan: one row for every layer of a type that can be factored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ironrank.layers import Rank
from ironrank.ranks.choose import Choice, table
from ironrank.ranks.weighting import Moments


@dataclass(frozen=True)
class Row:
    """One layer of a plan.

    Attributes:
        name: Full name in the model.
        kind: Class of the layer as it is.
        shape: Shape of the weight, outputs first.
        full_rank: Largest possible rank in the form it would get: a number, or a pair for Tucker-2.
        rank: Rank it would get, or None where it stays as it is.
        reason: Why it stays; empty where it does not.
        form: Form it would get: "channel", "spatial" or "tucker2".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    full_rank: Rank
    rank: Rank | None
    reason: str
    form: str = "channel"


@dataclass(frozen=True)
class Plan:
    """What `factorize` would do: one row for every layer of a type that can be factored.

    Attributes:
        rows: The layers.
        core: Whether layers held as a matrix get a core; Tucker-2 layers always have one.
        choice: What a budget made of it, or None.
        moments: Second moments of the inputs of layers by name, in whose metric they are projected.
    """

    rows: tuple[Row, ...]
    core: bool = True
    choice: Choice | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, Rank]:
        """The chosen rank of every layer that would be factored."""
        return {row.name: row.rank for row in self.rows if row.rank is not None}

    @property
    def forms(self) -> dict[str, str]:
        """The chosen form of every layer that would be factored."""
        return {row.name: row.form for row in self.rows if row.rank is not None}

    def __str__(self) -> str:
        """The plan as a text table."""
        head, cells = ("layer", "kind", "shape", "form", "rank", "of"), {}
        more: tuple[str, ...] = ()
        if self.choice is not None:
            more, cells = self.choice.columns, self.choice.cells
        body = [(*_cells(row), *cells.get(row.name, ("",) * len(more)), row.reason) for row in self.rows]
        text = table([(*head, *more, "note"), *body])
        return text if self.choice is None else f"{text}\n\n{self.choice.totals}"


def _cells(row: Row) -> tuple[str, ...]:
    stays = row.rank is None
    rank = "-" if row.rank is None else _text(row.rank)
    return (row.name, row.kind, "x".join(map(str, row.shape)), "-" if stays else row.form, rank,
            _text(row.full_rank))  # fmt: skip


def _text(rank: Rank) -> str:
    return " x ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)
