"""Command lines, as results and reports print them: to be pasted into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable


def command_line(verb: str, *words: object, **options: object) -> str:
    """Return a command of ironrank.

    Args:
        verb: Such as ``"evaluate"``.
        *words: Its arguments.
        **options: Its options by name; None and False are left out, True stands alone, a list is joined by commas.

    Returns:
        One line, quoted where a shell needs it.

    Example:
        >>> command_line("evaluate", "my runs/net", eps=[0.1, 8 / 255], latency_runs=20, json=True, which=None)
        "ironrank evaluate 'my runs/net' --eps 0.1,8/255 --latency-runs 20 --json"
    """
    parts = ["ironrank", verb, *map(str, words)]
    for name, value in options.items():
        if value is not None and value is not False:
            parts.append(f"--{name.replace('_', '-')}")
            parts += [] if value is True else [_written(value)]
    return shlex.join(parts)


def _written(value: object) -> str:
    if isinstance(value, float):
        steps = round(255 * value)
        short = f"{value:.6g}"
        return short if float(short) == value else f"{steps}/255" if steps / 255 == value else repr(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(_written, value))
    return str(value)
