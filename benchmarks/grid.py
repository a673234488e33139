"""What the tables of trained cells have in common: their options, and the processes that fill them."""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ironrank.comparison.grid import JUDGED, TRAINED, Cell, side_by_side, work
from ironrank.errors import IronrankError
from ironrank.files import read_json, write_json, write_text
from ironrank.training import Run

__all__ = [
    "Cell",
    "mistakes",
    "positive",
    "parser",
    "run_all",
    "judged_runs",
    "mean",
    "spread",
    "markdown_table",
    "fill_table",
    "write_table",
]


@contextmanager
def mistakes() -> Iterator[None]:
    """Let a mistake of the user end in one line and exit code 2."""
    try:
        yield
    except IronrankError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: allowed is a whole number from 1 on")
    return int(text)


def parser(description: str, out: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--seeds", type=positive, default=3)
    made.add_argument("--n", type=positive, default=1000, help="test images that are attacked")
    made.add_argument("--jobs", type=positive, default=2, help="processes side by side")
    made.add_argument("--threads", type=positive, default=1, help="of each process")
    made.add_argument("--no-train", action="store_true", help="judge what is trained, leave the rest out")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def run_all(
    options: argparse.Namespace, cells: Iterable[Cell], judge: Callable[[Path, Run, int], dict[str, Any]]
) -> None:
    """Train and judge all cells; in a worker, those that are free."""
    if options.worker:
        torch.set_num_threads(options.threads)
        chosen = [
            (name, run)
            for name, run in cells
            if not options.no_train or (options.out / name / TRAINED).is_file()
        ]
        work(options.out, chosen, functools.partial(judge, n=options.n), functools.partial(print, flush=True))
        return
    for path in (options.out / name / JUDGED for name, _ in cells):
        found = read_json(path) if path.is_file() else {}
        for key in ("n", "steps", "restarts"):
            if found.get(key, asked := getattr(options, key, None)) != asked:
                raise IronrankError(f"{path} was judged with --{key} {found[key]}: take that, or delete it")
    side_by_side([sys.executable, *sys.argv, "--worker"], options.jobs)


def judged_runs(options: argparse.Namespace, stem: str) -> list[dict[str, Any]]:
    """Return what was kept of a row's cells, seed by seed, as far as they are done."""
    paths = [options.out / f"{stem}_s{seed}" / JUDGED for seed in range(options.seeds)]
    return [read_json(path) for path in paths if path.is_file()]


def mean(hits: torch.Tensor) -> float:
    return hits.double().mean().item()


def spread(values: list[float], scale: float = 100, digits: int = 2) -> str:
    if any(value is None or math.isinf(value) for value in values):
        return "inf"
    text = f"{scale * statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {scale * statistics.stdev(values):.{digits}f}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; columns of numbers are aligned to the right, those named "net" to the left."""
    rule = " | ".join("---" if column == "net" else "---:" for column in columns)
    lines = [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in (" | ".join(columns), rule, *lines)) + "\n"


def fill_table(
    options: argparse.Namespace,
    cells: Iterable[Cell],
    judge: Callable[[Path, Run, int], dict[str, Any]],
    table: Callable[[argparse.Namespace], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> dict[str, Any] | None:
    """Train and judge all cells, then write the table and return it; None in a worker, which does cells only."""
    run_all(options, cells, judge)
    if options.worker:
        return None
    result = table(options)
    write_table(options.out, result, markdown(result))
    return result


def write_table(folder: Path, result: dict[str, Any], text: str) -> None:
    """Write what was measured as ``table.json`` and ``table.md``, and say where."""
    write_json(folder / "table.json", result)
    write_text(folder / "table.md", text)
    print(folder / "table.md")
