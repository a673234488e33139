"""Training metrics of the runs behind the rows: the lines of ``metrics.jsonl``, read once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import text
from ironrank.report.rows import name_of, unique


@dataclass(frozen=True)
class Metric:
    """A column of ``metrics.jsonl`` that is drawn: its words, its unit, its axis."""

    label: str
    unit: str = ""
    percent: bool = False
    log: bool = False


METRICS = {
    "loss": Metric("training loss"),
    "val_clean": Metric("clean validation accuracy", "%", percent=True),
    "val_robust": Metric("validation accuracy under attack", "%", percent=True),
    "max_cond": Metric("largest condition number", "σ₁ / σᵣ", log=True),
    "rank": Metric("rank"),
    "ratio": Metric("size of the dense net over that of the present ranks", "times"),
    "primal": Metric("primal residual of ADMM", "|W - Z| by |W|"),
    "dual": Metric("dual residual of ADMM"),
    "lr": Metric("learning rate"),
}


@dataclass(frozen=True)
class Training:
    """The lines of one run, in order; those without an epoch stand inside one and are not drawn."""

    name: str
    lines: tuple[Mapping[str, Any], ...]

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of one metric: finite values of lines that close an epoch."""
        pairs = [(text.number(line.get("epoch")), text.number(line.get(key))) for line in self.lines]
        return [(e, v) for e, v in pairs if e is not None and v is not None and math.isfinite(e + v)]


def read(runs: Sequence[Mapping[str, Any]] | None) -> tuple[Training, ...]:
    """Read training metrics.

    Args:
        runs: Dicts with ``name`` (of the row) and ``metrics`` (the lines of its ``metrics.jsonl``), or None.

    Returns:
        One value a run.

    Raises:
        IronrankError: If an item has another shape.
    """
    for i, item in enumerate(runs or [], 1):
        lines = item.get("metrics") if isinstance(item, Mapping) else None
        if not isinstance(lines, list | tuple) or not all(isinstance(line, Mapping) for line in lines):
            raise IronrankError(
                f"run {i}: a dict with 'name' and 'metrics' (list of the lines of metrics.jsonl) is needed"
            )
    names = unique(name_of(item, i) for i, item in enumerate(runs or [], 1))
    return tuple(
        Training(name, tuple(text.plain(item["metrics"])))
        for name, item in zip(names, runs or [], strict=True)
    )
