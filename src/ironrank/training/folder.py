"""The run folder while training: whose it is, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ironrank.errors import IronrankError
from ironrank.files import write_text
from ironrank.settings import encode
from ironrank.training.run import Run, read_run

METRICS = "metrics.jsonl"
PLACES = ("device", "folder", "download")  # settings that say where, not what
RUN_FOLDERS = ("start", "teacher")  # settings that name another run's folder


def check_folder(out: Path, run: Run, resume: bool) -> None:
    """Refuse a folder that is a file, holds a run that shall not go on, another run, or a comparison.

    Args:
        out: The folder.
        run: What is to be trained.
        resume: Whether a run that is there may go on.

    Raises:
        IronrankError: If it is refused.
    """
    there = out / "run.json"
    if out.exists() and not out.is_dir():
        raise IronrankError(f"{out} is a file: name a folder for the run")
    if (out / "comparison.json").is_file():
        raise IronrankError(f"{out} holds a comparison: choose another folder for the run")
    if there.is_file():
        if not resume:
            raise IronrankError(f"{out} holds a run already: choose another folder, or resume it (--resume)")
        if names := differences(out, run):
            raise IronrankError(
                f"{out} holds another run (it differs in {', '.join(names)}): choose another folder"
            )


def differences(out: Path, run: Run) -> list[str]:
    """Return the settings in which the run of a folder is another one.

    Args:
        out: The folder.
        run: The run.

    Returns:
        Their names; none where it is the same, wherever its data and other runs lie.

    Raises:
        IronrankError: If the folder holds no run that can be read.
    """
    old, new = (identity(encode(value)) for value in (read_run(out), run))
    return [key for key, value in new.items() if old[key] != value]


def identity(value: Any) -> Any:
    """Return an encoded run without what may differ on another machine: device, data folder, where other runs lie.

    Of the run folder that it starts from, or of its teacher, the name is left.
    """
    if not isinstance(value, dict):
        return value
    names = {key: Path(value[key]).name for key in RUN_FOLDERS if isinstance(value.get(key), str)}
    return {key: identity(item) for key, item in (value | names).items() if key not in PLACES}


def keep_lines(out: Path, count: int) -> None:
    """Make metrics.jsonl, without lines whose steps are taken again.

    Args:
        out: The run folder.
        count: Lines to keep.
    """
    path = out / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    write_text(path, "".join(lines[:count]))


def add_line(out: Path, line: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl.

    Args:
        out: The run folder.
        line: Numbers and text by name.
    """
    with (out / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
