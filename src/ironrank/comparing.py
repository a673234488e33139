"""The verb `ironrank compare`, and what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ironrank.options import Data, Device, Json, Overrides, Quiet, path_named


def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="See `ironrank list recipes`.")],
    methods: Annotated[
        str,
        typer.Option("--methods", metavar="all|LIST", help="Names with commas; see `ironrank list methods`."),
    ] = "all",
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="LIST", help="Percent less than the dense net.")
    ] = "50,80,90",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Seeds of each net.")] = 3,
    equal: Annotated[
        str, typer.Option("--equal", metavar="size|latency", help="What a budget is about.")
    ] = "size",
    training: Annotated[
        str, typer.Option("--train", metavar="recipe|clean|adversarial|both", help="How nets are trained.")
    ] = "recipe",
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="Also low rank with and without conditioning, trained both ways."),
    ] = False,
    overrides: Overrides = None,
    data: Data = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=path_named,
            help="Folder of the comparison; goes on if it is there.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", metavar="N", help="Processes of one thread each; 0: one for each processor."),
    ] = 1,
    n: Annotated[int, typer.Option("--n", metavar="N", help="Test images that are attacked.")] = 1000,
    steps: Annotated[int, typer.Option("--steps", metavar="N", help="Steps of the judging PGD.")] = 50,
    restarts: Annotated[int, typer.Option("--restarts", metavar="N", help="Its starts on each loss.")] = 5,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells and estimated time; write nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train many methods on one recipe, at equal size or latency, judge them alike, and write one page.

    By default into runs/compare-RECIPE. What is there already is kept: the same command goes on where it stopped.
    """
    from ironrank import comparison, config, console
    from ironrank.comparison.main import default_folder

    place = out or default_folder(recipe)
    asked = config.parse(budgets, tuple[float, ...], "budgets")
    with console.resumable(place, "the same command"):
        result = comparison.compare(
            recipe, methods, asked, seeds, equal=equal, training=training, ablation=ablation, overrides=overrides or (),
            data=data, device=device, out=place, jobs=jobs, n=n, steps=steps, restarts=restarts, dry_run=dry_run,
            say=_silent if quiet else _say,
        )  # fmt: skip
    console.show(result, plan if dry_run else outcome, as_json)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _silent(text: str) -> None:
    pass


def plan(result: Mapping[str, Any]) -> Any:
    """Show what a comparison would do.

    Args:
        result: What `ironrank.compare` returns for a dry run.

    Returns:
        A table of cells, what is left out, and the estimated time.
    """
    from rich.console import Group
    from rich.text import Text

    from ironrank.console import table

    rows = [(cell["name"], "done" if cell["done"] else duration(cell["seconds"])) for cell in result["cells"]]
    out = [f"{row['net']} {row['budget'] or 0:g} %, {row['training']}: left out. {row['reason']}"
           for row in result["left_out"]]  # fmt: skip
    jobs = result["jobs"]
    total = f"{len(rows)} cells, {duration(result['seconds'])}; with {jobs} process{'es' if jobs > 1 else ''} about "
    total += f"{duration(result['seconds'] / jobs)}. "
    total += "An estimate from a few timed steps of each kind of net, if nothing else runs."
    return Group(table(("cell", "time"), rows), *map(Text, out), Text(total))


def duration(seconds: float) -> str:
    """Return a time for people.

    Example:
        >>> duration(4.2), duration(600), duration(12_000)
        ('4 s', '10 min', '3 h 20 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def outcome(result: Mapping[str, Any]) -> Any:
    """Show what a comparison came to: accuracies and sizes, findings, and where the page is.

    Args:
        result: What `ironrank.compare` returns.

    Returns:
        Tables and lines.
    """
    from rich.console import Group
    from rich.text import Text

    from ironrank.comparison import remarks, words
    from ironrank.console import table

    parts: list[Any] = []
    for training in words.trainings_of(result):
        whole = words.overview(result, training)
        head = [column.label for column in whole.columns[:6]]
        rows = [[f"{cell.text} {cell.detail}".strip() for cell in line[:6]] for line in whole.rows]
        parts.append(table(head, rows, title=words.HEADS[training]))
    lines = [
        *result["findings"],
        *remarks.warnings(result),
        *remarks.missing(result),
        *result["files"].values(),
    ]
    return Group(*parts, *map(Text, lines))
