"""The command that makes a run, found again from the run: its recipe, and what differs from it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ironrank.config import build_run
from ironrank.errors import IronrankError
from ironrank.models import Given
from ironrank.recipes import RECIPES
from ironrank.settings import encode
from ironrank.training import Run


def command_of(run: Run) -> str | None:
    """Return the command that trains a run.

    Args:
        run: The run.

    Returns:
        ``ironrank train`` with the overrides that make this very run of its recipe; None where none do, as for a run
        put together in Python or of a module of somebody's own.

    Example:
        >>> command_of(build_run("condlr/lenet5-mnist", ["method.tau=0.5", "seed=3"]))
        'ironrank train condlr/lenet5-mnist --set method.tau=0.5 --set seed=3'
    """
    if run.recipe not in RECIPES or isinstance(run.model, Given):
        return None
    changes: list[str] = []
    try:
        while (
            change := _difference(encode(build_run(run.recipe, changes)), encode(run))
        ) and change not in changes:
            changes.append(change)
        same = build_run(run.recipe, changes) == run
    except IronrankError:
        return None
    return (
        shlex.join(["ironrank", "train", run.recipe, *(w for c in changes for w in ("--set", c))])
        if same
        else None
    )


def _difference(old: Any, new: Any, path: str = "") -> str | None:
    """Return the first override that brings one encoded value nearer to another; None where they are equal."""
    for key, value in new.items():
        before, here = old.get(key), f"{path}{key}"
        if before == value or (key == "start" and isinstance(value, dict)):
            continue  # what differs in an earlier stage is what differs in this one, or no override makes it
        both = isinstance(before, dict) and isinstance(value, dict)
        if both and before.get("name") == value.get("name") and "name" in value:
            return _difference(before, value, f"{here}.")
        named = isinstance(value, dict) and "name" in value
        return f"{here}={value['name'] if named else _written(value)}"
    return None


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)
