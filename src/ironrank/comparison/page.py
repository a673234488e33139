"""The page of a comparison: its template with the tables and the figures put in."""

from __future__ import annotations

from ironrank.comparison import figures, words
from ironrank.comparison.words import Result
from ironrank.report.cells import NO_BREAK
from ironrank.report.page import environment


def render(result: Result) -> str:
    """Return one self-contained page: no script, no request, light and dark.

    Args:
        result: What `ironrank.compare` returns.

    Returns:
        HTML; everything that came from outside is escaped.
    """
    judged = [training for training in words.trainings_of(result) if words.judged(result, training)]
    plots = [figures.pareto(result, kind) for kind in figures.COSTS]
    return environment("ironrank.comparison").get_template("comparison.html.j2").render(
        title=words.title_of(result),
        equal=result["equal"],
        verdict=words.summary(result),
        warnings=words.warnings(result),
        findings=[line.replace(" %", f"{NO_BREAK}%") for line in result["findings"]],
        overviews=[(words.HEADS[training], words.overview(result, training)) for training in judged],
        notes=words.notes(result),
        plots=[plot for plot in plots if plot],
        ablation=words.ablation(result),
        curves=figures.against_eps(result),
        curve_tables=[words.curves(result, training) for training in judged],
        missing=words.missing(result),
        software=words.software(result),
        command=result["command"],
    )  # fmt: skip
