"""From cells to rows: mean and spread over seeds, differences to the dense net, and what is missing and why."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ironrank.comparison.cells import Cell, LeftOut
from ironrank.comparison.difference import Difference, difference
from ironrank.comparison.grid import JUDGED
from ironrank.comparison.judging import fates
from ironrank.comparison.question import DENSE
from ironrank.files import read_json
from ironrank.judge.evaluate import CURVE

FAILED, LATENCY = "failed.json", "latency.json"
Kind = tuple[str, str, float | None]


class Group(NamedTuple):
    """The judged cells of one kind, by seed."""

    kind: Kind
    judged: dict[int, dict[str, Any]]
    folders: dict[int, Path]

    def hits(self, which: str, seeds: Sequence[int]) -> Tensor:
        """Return for each image whether the nets of some seeds were right on it, (seeds, images).

        Args:
            which: "clean", "robust", or "curve": the share of the radii up to five times eps at which they were right.
            seeds: The seeds.

        Returns:
            Numbers from 0 to 1.
        """
        found = [fates(self.folders[seed])[which].double() for seed in seeds]
        return torch.stack([one[: len(CURVE)].mean(0) if which == "curve" else one for one in found])


def groups(out: Path, cells: Sequence[Cell]) -> dict[Kind, Group]:
    """Read what is judged, by training, net and budget; kinds without a judged cell are not among them.

    Args:
        out: Folder of the comparison.
        cells: The cells.

    Returns:
        Groups by kind, in the order of the cells.
    """
    found: dict[Kind, Group] = {}
    for cell in cells:
        folder = out / cell.name
        if (folder / JUDGED).is_file():
            group = found.setdefault(cell.kind, Group(cell.kind, {}, {}))
            group.judged[cell.run.seed] = read_json(folder / JUDGED)
            group.folders[cell.run.seed] = folder
    return found


def compared(a: Group | None, b: Group | None, which: str = "robust") -> Difference | None:
    """Compare two groups on the seeds that both have.

    Args:
        a: The first.
        b: What it is compared with.
        which: "robust", "clean" or "curve"; see `Group.hits`.

    Returns:
        The difference of accuracies a - b; None where they have no seed in common.
    """
    if a is None or b is None:
        return None
    seeds = sorted(a.judged.keys() & b.judged.keys())
    return difference(a.hits(which, seeds), b.hits(which, seeds)) if seeds else None


def rows_of(
    out: Path, cells: Sequence[Cell], left_out: Sequence[LeftOut], found: dict[Kind, Group], whole: int
) -> list[dict[str, Any]]:
    """Return the table: a row for each kind of cell, in the order in which they were asked for.

    Args:
        out: Folder of the comparison.
        cells: The cells.
        left_out: Rows that cannot be.
        found: From `groups`.
        whole: Parameters of the dense net.

    Returns:
        Plain values. Each row has ``training``, ``net``, ``budget`` and ``seeds``; what is judged has ``clean`` and
        ``robust`` (``mean``, ``sd``, ``values``), sizes, ``latency``, ``max_cond``, ``curve``, and the differences to
        the dense net of its training, ``clean_to_dense`` and ``robust_to_dense``; ``failed``, ``pending`` and
        ``left_out`` say why something is missing.
    """
    kinds = dict.fromkeys(cell.kind for cell in cells)
    reasons = {(row.training, row.net, row.budget): row.reason for row in left_out}
    rows = []
    for kind in [*kinds, *(kind for kind in reasons if kind not in kinds)]:
        training, net, budget = kind
        row: dict[str, Any] = {"training": training, "net": net, "budget": budget, "seeds": [],
                               "failed": _failures(out, cells, kind), "pending": _pending(out, cells, kind),
                               "left_out": reasons.get(kind)}  # fmt: skip
        if kind in found:
            row |= _numbers(found[kind], found.get((training, DENSE, None)), whole)
        rows.append(row)
    return rows


def _failures(out: Path, cells: Sequence[Cell], kind: Kind) -> dict[str, str]:
    paths = {cell.run.seed: out / cell.name for cell in cells if cell.kind == kind}
    return {
        str(seed): str(read_json(path / FAILED)["error"])
        for seed, path in paths.items()
        if (path / FAILED).is_file() and not (path / JUDGED).is_file()
    }


def _pending(out: Path, cells: Sequence[Cell], kind: Kind) -> list[int]:
    """Return the seeds that are neither judged nor failed: another process works on them."""
    paths = {cell.run.seed: out / cell.name for cell in cells if cell.kind == kind}
    return [
        seed for seed, path in paths.items() if not any((path / file).is_file() for file in (JUDGED, FAILED))
    ]


def _numbers(group: Group, dense: Group | None, whole: int) -> dict[str, Any]:
    judged = list(group.judged.values())
    first = judged[0]
    pairs = {f"{which}_to_dense": compared(group, dense, which) for which in ("clean", "robust")}
    return {
        "seeds": list(group.judged),
        **{which: _spread([one[which] for one in judged]) for which in ("clean", "robust")},
        **{key: None if value is None else value._asdict() for key, value in pairs.items()},
        **{key: _middle(judged, key) for key in ("params_deployed", "macs", "bytes")},
        "params_range": _range([one["params_deployed"] for one in judged]),
        "smaller": 1 - _middle(judged, "params_deployed") / whole,
        "max_cond": _worst([one["max_cond"] for one in judged]),
        "latency": _latency(group),
        "curve": _curve(judged),
        "n": first["n"], "n_clean": first["n_clean"], "curve_n": first["curve_n"], "weights": first["weights"],
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd, "values": values}


def _middle(judged: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(one[key] for one in judged)


def _range(values: list[int]) -> list[int]:
    return [min(values), max(values)]


def _worst(values: list[float | None]) -> float | None:
    """Return the largest condition number; None, JSON's infinity, where one of them is."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def _latency(group: Group) -> dict[str, float] | None:
    """Return the medians over seeds of what was timed beside the dense net."""
    timed = [read_json(folder / LATENCY) for folder in group.folders.values() if (folder / LATENCY).is_file()]
    if not timed:
        return None
    keys = ("median", "q1", "q3", "dense", "ratio", "ratio_q1", "ratio_q3")
    return {key: statistics.median(one[key] for one in timed) for key in keys}


def _curve(judged: list[dict[str, Any]]) -> list[dict[str, float]]:
    points = zip(*(one["curve"] for one in judged), strict=True)
    return [
        {"eps": same[0]["eps"], "accuracy": statistics.mean(point["accuracy"] for point in same)}
        for same in points
    ]
