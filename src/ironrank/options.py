"""Options that several verbs of the command line share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def path_named(text: str) -> Path:
    """Read the name of a folder or file to write; an empty one, as of a variable that is not set, is refused."""
    if not str(text):
        raise typer.BadParameter("the name is empty: give one, such as runs/mine")
    return Path(text)


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a setting, such as method.tau=0.5; repeat at will."
    ),
]
Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Folder with the data set.")]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", parser=path_named, help="Run folder; made if needed.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="D", help="Torch device, such as cpu or cuda.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the folder's last finished epoch.")]
Until = Annotated[
    int | None,
    typer.Option("--until", metavar="EPOCHS", min=1, help="Stop after so many epochs of the last stage."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Own = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODULE:FUNCTION", help="Returns the dense module of your own that the run is of."
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A run folder.")]
