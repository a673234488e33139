"""The tables of what was audited and what was certified, and their columns in the one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ironrank.report import text
from ironrank.report.audit import Audit
from ironrank.report.cells import NO_BREAK, Cell, Column, Table, accuracy, span
from ironrank.report.certificate import Certificate, Points
from ironrank.report.rows import Row

NOT_AUDITED, NO_CERTIFICATE, NOT_PROVEN, VACUOUS = "not audited", "no certificate", "not proven", "vacuous"


def audited_column(rows: Sequence[Row]) -> Column:
    """Return the header of the audited accuracy, with the ball where all audits share it."""
    balls = {row.audit.ball for row in rows if row.audit}
    where = f", {balls.pop()}" if len(balls) == 1 else ""
    return Column("audited accuracy", f"worst case, %{where}")


def audited(row: Row) -> Cell:
    """Return the audited accuracy of a net, or that nothing is proven, or that nobody looked."""
    if row.audit is None:
        return Cell(NOT_AUDITED)
    return Cell(NOT_PROVEN, row.audit.reason, alarm=True) if row.refused else accuracy(row.audit.score)


def refusal(row: Row) -> Cell | None:
    """Return what stands in the place of every robust accuracy of a net whose audit refused it; None for others."""
    return Cell(NOT_PROVEN, alarm=True) if row.refused else None


def radius_of(rows: Sequence[Row]) -> float | None:
    """Return the smallest radius that every certificate has, else the smallest of the first one."""
    found = [[radius for radius, _, _ in row.certificate.points] for row in rows if row.certificate]
    shared = set.intersection(*map(set, found)) if found else set()
    return min(shared or {radius for radii in found[:1] for radius in radii}, default=None)


def certified_column(rows: Sequence[Row]) -> Column:
    """Return the header of the certified accuracy, with its radius where there is one."""
    radius = radius_of(rows)
    return Column("certified accuracy", "%" if radius is None else f"%, L2, ε = {text.epsilon(radius)}")


def certified(row: Row, radius: float | None) -> Cell:
    """Return the certified accuracy of a net at a radius, or that the bound says nothing, or that there is none."""
    if row.certificate is None:
        return Cell(NO_CERTIFICATE)
    if row.certificate.vacuous:
        return Cell(VACUOUS)
    return _at(row.certificate.points, radius)


def _at(points: Points, radius: float | None) -> Cell:
    found = next(((accuracy, limits) for r, accuracy, limits in points if r == radius), None)
    if found is None:
        return Cell(text.DASH)
    return Cell(text.percent(found[0]), "" if found[1] is None else span(*map(text.percent, found[1])))


def audits(rows: Sequence[Row]) -> Table | None:
    """Return one line for every audited net, or None where there is none."""
    found = [(row, row.audit) for row in rows if row.audit]
    if not found:
        return None
    columns = (Column("net", words=True), Column("verdict", words=True), Column("clean accuracy", "%"),
               Column("worst case", "%"), Column("threat", words=True), Column("attacks"), Column("images", words=True),
               Column("level", words=True), Column("seed"), Column("flags", words=True))  # fmt: skip
    return Table("Verdicts of the audits.", columns, tuple(_audit(row, audit) for row, audit in found))


def _audit(row: Row, audit: Audit) -> tuple[Cell, ...]:
    return (
        Cell(row.name),
        Cell(audit.said, alarm=not audit.proven),
        Cell(text.percent(audit.clean)),
        Cell(NOT_PROVEN, audit.reason, alarm=True) if audit.score is None else accuracy(audit.score),
        Cell(audit.ball),
        Cell(text.count(len(audit.attacks))),
        Cell(text.count(audit.n), audit.data if audit.data != text.DASH else ""),
        Cell(audit.level),
        Cell(text.count(audit.seed)),
        Cell(", ".join(audit.flags) or "none"),
    )


def checks(row: Row) -> Table | None:
    """Return the tests of an audit, failed ones first, or None where there is none."""
    if row.audit is None or not row.audit.checks:
        return None
    columns = (Column("test", words=True), Column("outcome", words=True), Column("value"), Column("limit"),
               Column("what it says", words=True))  # fmt: skip
    body = tuple(
        (Cell(c.name), Cell("passed" if c.passed else "failed", alarm=not c.passed), Cell(c.value), Cell(c.limit),
         Cell(c.text))
        for c in sorted(row.audit.checks, key=lambda check: check.passed)
    )  # fmt: skip
    return Table(f"Tests of the audit of {text.quote(row.name)}", columns, body)


def attacks(row: Row) -> Table | None:
    """Return the attacks of an audit, the strongest first, or None where there is none."""
    if row.audit is None or not row.audit.attacks:
        return None
    columns = (Column("attack", words=True), Column("settings", words=True), Column("kind", words=True),
               Column("accuracy left", "%, by this attack alone"), Column("images", "n"),
               Column("time", "s"))  # fmt: skip
    body = tuple(
        (Cell(a.name), Cell(a.describe), Cell(a.kind), Cell(text.percent(a.accuracy)), Cell(text.count(a.n)),
         Cell(text.significant(a.seconds)))
        for a in sorted(row.audit.attacks, key=lambda attack: attack.accuracy)
    )  # fmt: skip
    return Table(f"Attacks of the audit of {text.quote(row.name)}", columns, body)


def universal(row: Row) -> Table | None:
    """Return what one perturbation for all images does, or None where it was not sought."""
    if row.audit is None or not row.audit.universal:
        return None
    return _facts(f"Universal perturbation against {text.quote(row.name)}", row.audit.universal)


def certificates(rows: Sequence[Row]) -> Table | None:
    """Return one line for every net with a certificate, or None where there is none."""
    found = [(row, row.certificate) for row in rows if row.certificate]
    if not found:
        return None
    radii = sorted({radius for _, proof in found for radius, _, _ in proof.points + proof.smoothed})
    columns = (Column("net", words=True), Column("by", words=True), Column("verdict", words=True),
               *(Column("certified accuracy", f"%, L2, ε = {text.epsilon(radius)}") for radius in radii),
               Column("Lipschitz bound", "of the logits, L2"), Column("images", "n"))  # fmt: skip
    body = [line for row, proof in found for line in _certificate(row, proof, radii)]
    caption = (
        "Certified accuracy: the share of images that no attack inside the radius can turn; a lower bound."
    )
    return Table(caption, columns, tuple(body))


def _certificate(row: Row, proof: Certificate, radii: Sequence[float]) -> list[tuple[Cell, ...]]:
    n = Cell(text.count(proof.n))
    verdict = Cell(VACUOUS if proof.vacuous else "certified", alarm=proof.vacuous)
    lines = [
        (Cell(row.name), Cell("Lipschitz bound"), verdict, *(_at(proof.points, r) for r in radii),
         Cell(text.significant(proof.lipschitz)), n)
    ]  # fmt: skip
    if proof.smoothing is not None:
        settings = ", ".join(f"{key}{NO_BREAK}{value}" for key, value in proof.smoothing.items())
        lines.append(
            (Cell(row.name), Cell("randomized smoothing", settings), _smoothed_verdict(proof),
             *(_at(proof.smoothed, r) for r in radii), Cell(text.DASH), n)
        )  # fmt: skip
    return lines


def _smoothed_verdict(proof: Certificate) -> Cell:
    nothing = not any(share for radius, share, _ in proof.smoothed if radius > 0)
    return Cell(VACUOUS if nothing else "certified", alarm=nothing)


def bounds(row: Row) -> Table | None:
    """Return the bounds of the layers of one net, or None where there are none."""
    if row.certificate is None or not row.certificate.layers:
        return None
    columns = (Column("layer", words=True), Column("bound", "on its L2 gain"), Column("found by", words=True))
    body = tuple(
        (Cell(b.name), Cell(text.significant(b.bound)), Cell(b.method)) for b in row.certificate.layers
    )
    return Table(f"Lipschitz bounds of the layers of {text.quote(row.name)}", columns, body)


def rounding(row: Row) -> Table | None:
    """Return how the certificate of one net counts rounding errors, or None where it does not say."""
    if row.certificate is None or not row.certificate.rounding:
        return None
    return _facts(f"Rounding in the certificate of {text.quote(row.name)}", row.certificate.rounding)


def _facts(caption: str, items: Mapping[str, str]) -> Table:
    columns = (Column("what", words=True), Column("value"))
    return Table(caption, columns, tuple((Cell(name), Cell(value)) for name, value in items.items()))
