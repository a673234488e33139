"""What a person watching an audit sees: a bar on a terminal, else a line now and then, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

EVERY = 5.0  # seconds between two lines, where there is no terminal


class Watch:
    """Shows how much is done; without a console nothing.

    Args:
        console: Where to.
        bar: A bar, where there is a terminal.
    """

    def __init__(self, console: Console | None = None, bar: Progress | None = None) -> None:
        self._console, self._bar, self._task = (
            console,
            bar,
            None if bar is None else bar.add_task("audit", total=1.0),
        )
        self._start = self._said = time.monotonic()
        self._most: float | None = None

    def __call__(self, what: str, left: float) -> None:
        """Say what is through, and how much is left.

        Args:
            what: Name of the attack.
            left: Cost of all that is left, in any unit.
        """
        now = time.monotonic()
        if self._most is None:
            self._most, self._start = left, now
        gone = self._most - left
        share = gone / self._most if self._most else 1.0
        rest = (now - self._start) * left / gone if gone > 0 else None
        note = what if rest is None else f"{what}, {_clock(rest)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=share, description=note)
        elif self._console is not None and now - self._said >= EVERY:
            self._said = now
            self._console.print(f"audit {100 * share:.0f} %: {note}", soft_wrap=True)


def _clock(seconds: float) -> str:
    """Return a time left in words; short ones are not told to the second.

    Example:
        >>> _clock(7), _clock(95), _clock(7400)
        ('10 s', '2 min', '2 h 3 min')
    """
    if seconds < 90:
        return f"{10 * max(1, round(seconds / 10))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def watching(console: Console | None) -> Iterator[Watch]:
    """Show progress while an audit runs.

    Args:
        console: Where to; None for nowhere.

    Yields:
        What is told of each attack that is through.
    """
    if console is None or not console.is_terminal:
        yield Watch(console)
        return
    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        yield Watch(console, bar)
