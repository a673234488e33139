"""The page: the template with the tables and the figures put in."""

from __future__ import annotations

import functools

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ironrank.report import course, proofs, robustness, structure
from ironrank.report.content import Content


def render(content: Content) -> str:
    """Return the whole page.

    Args:
        content: What the report says.

    Returns:
        HTML; everything that came from outside is escaped.
    """
    rows, threat = content.rows, content.verdict.threat
    return environment().get_template("page.html.j2").render(
        content=content,
        eps=robustness.accuracy_against_eps(rows),
        size=robustness.size_against_robustness(rows, threat),
        spectra=structure.spectra(rows),
        ranks=structure.ranks(rows),
        training=course.training(content.runs, rows),
        not_audited=proofs.NOT_AUDITED,
        no_certificate=proofs.NO_CERTIFICATE,
    )  # fmt: skip


@functools.cache
def environment(*packages: str) -> Environment:
    """Return what renders a page: parts and style of the report, and templates of other rooms.

    Args:
        *packages: Packages that have templates of their own.

    Returns:
        The environment; everything that comes from outside is escaped.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in ("ironrank.report", *packages)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["drawing"] = Markup  # our own drawings only: their text went through an XML writer
    return made
