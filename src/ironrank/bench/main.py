"""The entry points of the measurements: restart with the allocator settings, measure, write the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ironrank.bench.allocator import relaunch_if_needed
from ironrank.bench.steps import SHAPES
from ironrank.bench.table import as_markdown
from ironrank.bench.train_step import Maker, bench_train_step
from ironrank.files import write_text


def main_train_step(
    nets: Sequence[str] = tuple(SHAPES),
    nominal: Sequence[int] = (50, 80),
    rounds: int = 15,
    batch: int = 128,
    tau: float = 0.1,
    momentum: float = 0.45,
    threads: int = 2,
    extra: Mapping[str, Maker] | None = None,
    *,
    layout: str = "channels_last",
    peak: bool = False,
    out: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the benchmark of the training step; may restart the process, so call it first thing in a command.

    Args:
        nets: Names of the nets.
        nominal: Compressions in percent.
        rounds: Timed rounds.
        batch: Images per step.
        tau: Bound of the condition number is 1 + tau.
        momentum: Momentum of SGD.
        threads: Threads of torch.
        extra: Further variants; see `bench_train_step`.
        layout: Memory format of our step.
        peak: Also measure peaks of resident memory.
        out: Where to write the result: this path with the endings ``.json`` and ``.md``.
        progress: Is told what starts.

    Returns:
        The result of `bench_train_step`, with the line of the allocator and the command.
    """
    note = relaunch_if_needed(threads)
    tell = progress or (lambda text: None)
    tell(note)
    result = bench_train_step(
        list(nets),
        list(nominal),
        rounds,
        batch,
        tau,
        momentum,
        threads,
        extra,
        layout=layout,
        peak=peak,
        progress=tell,
    )
    result["settings"] |= {"allocator": note, "command": " ".join(["python", *sys.orig_argv[1:]])}
    if out is not None:
        save(result, out)
    return result


def save(result: Mapping[str, Any], out: Path) -> None:
    """Write a result as ``out.json`` and its table as ``out.md``.

    Args:
        result: The result of `bench_train_step`.
        out: Path without ending; its folder is made.
    """
    write_text(out.with_name(out.name + ".json"), json.dumps(result, indent=1) + "\n")
    write_text(out.with_name(out.name + ".md"), as_markdown(result))
