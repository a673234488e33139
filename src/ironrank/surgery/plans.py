"""A plan: one row for every layer of a type that can be factored."""

from __future__ import annotations

from dataclasses import dataclass

from ironrank.layers import Rank


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
    """

    rows: tuple[Row, ...]
    core: bool = True

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
        head = ("layer", "kind", "shape", "form", "rank", "of", "note")
        body = [
            (r.name, r.kind, "x".join(map(str, r.shape)), "-" if r.rank is None else r.form,
             "-" if r.rank is None else _text(r.rank), _text(r.full_rank), r.reason)
            for r in self.rows
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *body]
        ]
        return "\n".join(lines)


def _text(rank: Rank) -> str:
    return " x ".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)
