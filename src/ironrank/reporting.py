"""The verb `ironrank report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ironrank.options import Data, Own, path_named


def _written(name: str, what: str) -> Any:
    return typer.Option(name, metavar="FILE", parser=path_named, help=what)


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Run folders.")],
    html: Annotated[Path | None, _written("--html", "The page.")] = None,
    markdown: Annotated[Path | None, _written("--markdown", "As text.")] = None,
    as_json: Annotated[Path | None, _written("--json", "The same as data.")] = None,
    card: Annotated[Path | None, _written("--card", "Card of one net.")] = None,
    model: Own = None,
    data: Data = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Title of the page.")] = "Comparison",
    group: Annotated[bool | None, typer.Option("--group/--no-group", help="One row for all seeds.")] = None,
) -> None:
    """Compare trained nets in one report, by default report.html; those not judged yet are judged first."""
    from ironrank import verbs

    files = {"html": html, "markdown": markdown, "json": as_json, "card": card}
    if not any(files.values()):
        files["html"] = Path("report.html")
    made = verbs.report(folders, **files, data=data, title=title, group=group, model=model)
    typer.echo(made.verdict)
    for path in filter(None, files.values()):
        typer.echo(path)
