"""What is proven, as FOLDER/certificate.json holds it: accuracies that no attack inside a radius can lower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import fields, text

SCHEMA = 1
VERDICTS = ("certified", "vacuous")

Points = tuple[tuple[float, float, tuple[float, float] | None], ...]
"""(radius, certified accuracy, its interval) of each radius."""


@dataclass(frozen=True)
class Bound:
    """An upper bound on the Lipschitz constant of one layer."""

    name: str
    bound: float | None
    method: str


@dataclass(frozen=True)
class Certificate:
    """The certificate of one net, in L2.

    Attributes:
        points: Accuracies proven by the Lipschitz bound.
        lipschitz: The bound of the whole net.
        smoothing: What randomized smoothing proved, with its settings; None where it was not done.
        smoothed: Its accuracies.
    """

    points: Points
    vacuous: bool
    lipschitz: float | None
    layers: tuple[Bound, ...]
    clean: float | None
    n: int | None
    smoothing: Mapping[str, str] | None
    smoothed: Points
    rounding: Mapping[str, str]
    command: str


def read(where: str, value: object) -> Certificate | None:
    """Read a certificate.

    Args:
        where: What is read, for error messages.
        value: The content of certificate.json, or None.

    Returns:
        The certificate, or None.

    Raises:
        IronrankError: If it is none, or of a later schema.
    """
    if value is None:
        return None
    raw = fields.versioned(where, value, SCHEMA)
    if raw.get("verdict") not in VERDICTS:
        raise IronrankError(
            f"{where}: verdict {fields.shown(raw.get('verdict'))}: allowed is {', '.join(VERDICTS)}"
        )
    lipschitz = fields.mapping(f"{where}: lipschitz", raw.get("lipschitz"))
    clean = raw.get("clean")
    smoothing = (
        None if raw.get("smoothing") is None else fields.mapping(f"{where}: smoothing", raw["smoothing"])
    )
    kept = {k: v for k, v in (smoothing or {}).items() if k not in ("certified", "interval", "radii")}
    return Certificate(
        points=_points(where, raw.get("radii"), raw.get("certified"), raw.get("interval")),
        vacuous=raw["verdict"] == "vacuous",
        lipschitz=text.number(lipschitz.get("global")),
        layers=tuple(_bound(item) for item in fields.dicts(f"{where}: layers", lipschitz.get("layers") or [])),
        clean=None if clean is None else fields.accuracy(f"{where}: clean", clean),
        n=text.whole(raw.get("n")),
        smoothing=None if smoothing is None else fields.facts(kept),
        smoothed=_smoothed(f"{where}: smoothing", smoothing or {}, raw.get("radii")),
        rounding=fields.facts(raw.get("rounding")),
        command=fields.command(raw.get("command")),
    )  # fmt: skip


def _points(where: str, radii: object, certified: object, intervals: object) -> Points:
    lists = (radii, certified) if intervals is None else (radii, certified, intervals)
    if not all(isinstance(item, list) for item in lists) or len({len(item) for item in lists}) != 1:  # type: ignore[arg-type]
        raise IronrankError(f"{where}: radii, certified and interval must be lists of one length")
    limits = intervals if isinstance(intervals, list) else [None] * len(lists[0])  # type: ignore[arg-type]
    found = [
        (fields.radius(f"{where}: radius", r), fields.accuracy(f"{where}: certified", accuracy),
         fields.interval(f"{where}: interval", limit))
        for r, accuracy, limit in zip(*lists[:2], limits, strict=True)  # type: ignore[call-overload]
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda point: point[0]))


def _smoothed(where: str, raw: Mapping[str, Any], radii: object) -> Points:
    if "certified" not in raw:
        return ()
    return _points(where, raw.get("radii", radii), raw["certified"], raw.get("interval"))


def _bound(item: Mapping[str, Any]) -> Bound:
    return Bound(
        fields.word(item.get("name")), text.number(item.get("bound")), fields.word(item.get("method"))
    )
