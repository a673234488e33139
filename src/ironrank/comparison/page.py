"""The page of a comparison: its template with tables and figures put in; all but the figures as Markdown too."""

from __future__ import annotations

from ironrank.comparison import figures, remarks, words
from ironrank.comparison.words import Result
from ironrank.report import markdown as md
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
        warnings=remarks.warnings(result),
        findings=[line.replace(" %", f"{NO_BREAK}%") for line in result["findings"]],
        overviews=[(words.HEADS[training], words.overview(result, training)) for training in judged],
        notes=remarks.notes(result),
        plots=[plot for plot in plots if plot],
        ablation=words.ablation(result),
        curves=figures.against_eps(result),
        curve_tables=[words.curves(result, training) for training in judged],
        missing=remarks.missing(result),
        software=words.software(result),
        command=result["command"],
    )  # fmt: skip


def markdown(result: Result) -> str:
    """Return the whole comparison as Markdown.

    Args:
        result: What `ironrank.compare` returns.

    Returns:
        Text in GitHub-flavoured Markdown.
    """
    blocks = [f"# {md.escape(words.title_of(result))}", "## What it teaches", md.bullets(result["findings"])]
    blocks += [
        "## Results",
        *(md.table(words.overview(result, t)) for t in words.trainings_of(result) if words.judged(result, t)),
    ]
    blocks += [md.bullets(remarks.notes(result))]
    blocks += [f"> **Warning.** {md.escape(line)}" for line in remarks.warnings(result)]
    taken_apart = words.ablation(result)
    blocks += ["## Ablation", md.table(taken_apart)] if taken_apart else []
    tables = [words.curves(result, training) for training in words.trainings_of(result)]
    blocks += ["## Accuracy against the strength of the attack", *(md.table(t) for t in tables if t)]
    blocks += ["## Versions and command", md.escape(words.software(result)), md.code(result["command"])]
    gone = remarks.missing(result)
    blocks += ["## What is missing", md.bullets(gone)] if gone else []
    return "\n\n".join(filter(None, blocks)) + "\n"
