"""What a person watching a training sees: a bar with speed and time left, a line for each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Event = dict[str, float | int | str]  # a line of metrics.jsonl that belongs to no step


class Watcher:
    """Shows steps in a bar, where there is a terminal, and a line for each epoch; without a console nothing."""

    def __init__(
        self, console: Console | None = None, bar: Progress | None = None, total: int = 0, done: int = 0
    ) -> None:
        self._console, self._bar = console, bar
        self._task = None if bar is None else bar.add_task("training", total=total, completed=done, note="")

    def step(self, note: str) -> None:
        """Advance by one step.

        Args:
            note: Loss and speed in a few words.
        """
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, note=note)

    def event(self, event: Event, done: int | None = None, total: int | None = None) -> None:
        """Print one line for something unusual.

        Args:
            event: Its name under ``event``, and its numbers.
            done: Steps that count as taken now, where training has gone back.
            total: Steps of the whole training now.
        """
        if self._bar is not None and self._task is not None and done is not None:
            self._bar.update(self._task, completed=done, total=total)
        if self._console is not None:
            parts = (
                f"{key.replace('_', ' ')} {_short(value)}" for key, value in event.items() if key != "event"
            )
            self._console.print(f"{event['event']}: {', '.join(parts)}", soft_wrap=True, style="yellow")

    def epoch(self, line: Mapping[str, float | int | str | None]) -> None:
        """Print one line for a finished epoch.

        Args:
            line: The epoch's metrics.
        """
        if self._console is not None:
            parts = [f"epoch {line['epoch']}", f"loss {line['loss']:.4f}"]
            for key, text in (("val_clean", "validation clean"), ("val_robust", "robust")):
                if line.get(key) is not None:
                    parts.append(f"{text} {100 * float(line[key] or 0):.1f} %")
            if "max_cond" in line:
                parts.append(f"largest cond {line['max_cond']:.4f}")
            self._console.print("  ".join(parts), soft_wrap=True)


def _short(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@contextmanager
def watching(console: Console | None, total: int, done: int = 0) -> Iterator[Watcher]:
    """Show a progress bar while training.

    Args:
        console: Where to; None for nothing.
        total: Steps of the whole training.
        done: Steps already taken.

    Yields:
        The watcher.
    """
    if console is None:
        yield Watcher()
        return
    if not console.is_terminal:
        yield Watcher(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        yield Watcher(console, bar, total, done)
