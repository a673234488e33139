"""Command lines, as results and reports print them: to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from torch import nn


def command_line(verb: str, *words: object, **options: object) -> str:
    """Return a command of ironrank.

    Args:
        verb: Such as ``"evaluate"``.
        *words: Its arguments.
        **options: Its options by name; None, False and modules, which have no name, are left out, True stands alone, a
            list is joined by commas.

    Returns:
        One line, quoted where a shell needs it.

    Example:
        >>> command_line("evaluate", "my runs/net", eps=[0.1, 8 / 255], latency_runs=20, json=True, which=None)
        "ironrank evaluate 'my runs/net' --eps 0.1,8/255 --latency-runs 20 --json"
    """
    parts = ["ironrank", verb, *map(str, words)]
    for name, value in options.items():
        if value is not None and value is not False and not isinstance(value, nn.Module):
            parts.append(f"--{name.replace('_', '-')}")
            parts += [] if value is True else [_written(value)]
    return shlex.join(parts)


def folder_command(
    verb: str, folder: object, *, which: str, data: object, model: object, device: str, **options: object
) -> str:
    """Return a command on a run folder; see `command_line`.

    Args:
        verb: Such as ``"evaluate"``.
        folder: The folder.
        which: Weights; "best" is left out.
        data: Folder with the data, or None.
        model: ``MODULE:FUNCTION``, a module, or None.
        device: Torch device; "cpu" is left out.
        **options: Further options.

    Returns:
        One line.
    """
    common = {"which": None if which == "best" else which, "device": None if device == "cpu" else device}
    return command_line(verb, folder, data=data, model=model, **common, **options)


def _written(value: object) -> str:
    if isinstance(value, float):
        steps = round(255 * value)
        short = f"{value:.6g}"
        return short if float(short) == value else f"{steps}/255" if steps / 255 == value else repr(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_written, value))
    return str(value)
