"""What an audit found, as FOLDER/audit.json holds it: the worst case over many attacks, or why there is none.

An accuracy counts as robust only where the audit says so and every one of its tests was passed; a file that says
one thing and shows another is read as `not proven`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import fields, text
from ironrank.report.score import Score, Threat, rounded

SCHEMA = 1
KINDS = ("robust", "not proven")


@dataclass(frozen=True)
class Line:
    """One attack of an audit: how many images withstood it alone."""

    name: str
    describe: str
    kind: str
    accuracy: float
    n: int | None
    seconds: float | None


@dataclass(frozen=True)
class Check:
    """One test of the audit's own trust in its numbers."""

    name: str
    passed: bool
    value: str
    limit: str
    text: str


@dataclass(frozen=True)
class Audit:
    """One audit of one net.

    Attributes:
        score: The worst case over all attacks; None where nothing was proven.
        said: The verdict in the auditor's words.
        failed: Names of the tests that were not passed.
    """

    level: str
    threat: Threat
    data: str
    n: int | None
    seed: int | None
    clean: float
    score: Score | None
    said: str
    failed: tuple[str, ...]
    attacks: tuple[Line, ...]
    curve: tuple[tuple[float, float, int | None], ...]
    checks: tuple[Check, ...]
    flags: tuple[str, ...]
    universal: Mapping[str, str]
    command: str
    hardware: str

    @property
    def proven(self) -> bool:
        """Whether the net may be shown with a robust accuracy."""
        return self.score is not None

    @property
    def ball(self) -> str:
        """The ball in words, such as ``L∞, ε = 8/255``."""
        return f"{text.norm(self.threat[0])}, ε = {text.epsilon(self.threat[1])}"

    @property
    def reason(self) -> str:
        """Why nothing is proven: the names of the failed tests."""
        return ", ".join(self.failed) or "no accuracy was found"


def read(where: str, value: object) -> Audit | None:
    """Read an audit.

    Args:
        where: What is read, for error messages.
        value: The content of audit.json, or None.

    Returns:
        The audit, or None.

    Raises:
        IronrankError: If it is none, or of a later schema.
    """
    if value is None:
        return None
    raw = fields.versioned(where, value, SCHEMA)
    threat = fields.mapping(f"{where}: threat", raw.get("threat"))
    verdict = fields.mapping(f"{where}: verdict", raw.get("verdict"))
    if verdict.get("kind") not in KINDS:
        raise IronrankError(
            f"{where}: verdict {fields.shown(verdict.get('kind'))}: allowed is {', '.join(KINDS)}"
        )
    checks = tuple(_check(item) for item in fields.dicts(f"{where}: checks", raw.get("checks") or []))
    broken = (check.name for check in checks if not check.passed)
    failed = tuple(dict.fromkeys([*fields.words(f"{where}: failed", verdict.get("failed")), *broken]))
    ball = fields.word(threat.get("norm")), fields.radius(f"{where}: eps", threat.get("eps"))
    n, sound = text.whole(raw.get("n")), verdict["kind"] == "robust" and not failed
    score = _score(where, raw.get("robust"), ball, n) if sound else None
    return Audit(
        level=fields.word(raw.get("level")),
        threat=(ball[0], rounded(ball[1]) or 0.0),
        data=fields.word(raw.get("data")),
        n=n,
        seed=text.whole(raw.get("seed")),
        clean=fields.accuracy(f"{where}: clean", raw.get("clean")),
        score=score,
        said=fields.word(verdict.get("text")) if (score is not None) == (verdict["kind"] == "robust") else "not proven",
        failed=failed,
        attacks=tuple(_line(where, item, n) for item in fields.dicts(f"{where}: attacks", raw.get("attacks") or [])),
        curve=curve(where, raw.get("curve"), n),
        checks=checks,
        flags=fields.words(f"{where}: flags", raw.get("flags")),
        universal=fields.facts(raw.get("universal")),
        command=fields.command(raw.get("command")),
        hardware=_machine(raw.get("hardware")),
    )  # fmt: skip


def curve(where: str, value: object, n: int | None) -> tuple[tuple[float, float, int | None], ...]:
    """Read a curve of accuracy against eps.

    Args:
        where: What is read, for error messages.
        value: A list of dicts with ``eps`` and ``accuracy``; null for none.
        n: Images behind points that do not say so.

    Returns:
        (eps, accuracy, n), the smallest eps first; points whose eps is not finite are left out.
    """
    found = []
    for point in fields.dicts(f"{where}: curve", value or []):
        eps = text.number(point.get("eps"))
        if eps is not None and abs(eps) < float("inf"):
            accuracy = fields.accuracy(f"{where}: curve at eps {eps:g}", point.get("accuracy"))
            found.append((eps, accuracy, text.whole(point.get("n")) or n))
    return tuple(sorted(found, key=lambda point: point[0]))


def _score(where: str, value: object, ball: Threat, n: int | None) -> Score | None:
    if value is None:
        return None
    raw = fields.mapping(f"{where}: robust", value)
    limits = fields.interval(f"{where}: interval", raw.get("interval"))
    accuracy = fields.accuracy(f"{where}: robust accuracy", raw.get("accuracy"))
    return Score("Audit, worst case", ball[0], ball[1], None, None, accuracy, n or None, limits)


def _line(where: str, item: Mapping[str, Any], n: int | None) -> Line:
    name = fields.word(item.get("name"))
    return Line(
        name=name,
        describe=fields.word(item.get("describe")),
        kind=fields.word(item.get("kind")),
        accuracy=fields.accuracy(f"{where}: accuracy under {name[:80]}", item.get("accuracy")),
        n=text.whole(item.get("n")) or n,
        seconds=text.number(item.get("seconds")),
    )


def _check(item: Mapping[str, Any]) -> Check:
    return Check(
        name=fields.word(item.get("name")),
        passed=item.get("passed") is True,  # whatever is no clear yes was not passed
        value=fields.said(item.get("value")),
        limit=fields.said(item.get("limit")),
        text=fields.word(item.get("text")),
    )


def _machine(value: object) -> str:
    return ", ".join(f"{key} {item}" for key, item in fields.facts(value).items()) or fields.word(value)
