"""Several seeds of one setting in one row: mean and standard deviation over trained nets.

Two rows are of one setting if their runs are equal but for the seed, down to the earlier stages that they started
from. The mean is over nets, the deviation is that of a sample (divided by k - 1). What is not a mean: the condition
number, which is the largest; the layers, the curves' images and the pictures, which are those of the first seed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ironrank.errors import IronrankError
from ironrank.report import text
from ironrank.report.audit import Audit
from ironrank.report.certificate import Certificate
from ironrank.report.rows import Row, unique
from ironrank.report.score import Score

Curve = tuple[tuple[float, float, int | None], ...]
_SEED = re.compile(r"[\s_.,:=-]*\(?(?:seed|s)?[\s_=-]*\d*\)?$", re.IGNORECASE)


def grouped(rows: Sequence[Row], asked: bool | None = None) -> tuple[Row, ...]:
    """Put rows of one setting together.

    Args:
        rows: The rows; those without a key ``setting`` stay alone.
        asked: True puts all together that have one setting, False none; None those where nothing is ambiguous:
            seeds that differ, the same attacks on as many images, audits and certificates for all or for none.

    Returns:
        The rows, a group at the place of its first one.

    Raises:
        IronrankError: If it is asked for, and two rows of one setting have the same seed or met different attacks.
    """
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(_setting(row), []).append(row)
    found = [
        part
        for members in settings.values()
        for part in ([_merged(members)] if _together(members, asked) else members)
    ]
    names = unique(row.name for row in found)
    return tuple(
        dataclasses.replace(row, name=name) if row.members else row
        for row, name in zip(_in_order(found, rows), names, strict=True)
    )


def _in_order(found: list[Row], rows: Sequence[Row]) -> list[Row]:
    place = {id(row): i for i, row in enumerate(rows)}
    return sorted(found, key=lambda row: place[id(row.members[0] if row.members else row)])


def _setting(row: Row) -> str:
    setting = row.raw.get("setting")
    return json.dumps(setting, sort_keys=True) if isinstance(setting, dict) and setting else f"row {id(row)}"


def _together(rows: Sequence[Row], asked: bool | None) -> bool:
    if len(rows) < 2 or asked is False:
        return False
    reason = _ambiguous(rows)
    if reason and asked:
        names = " and ".join(text.quote(row.name) for row in rows[:4])
        raise IronrankError(f"{names} have one setting but {reason}: leave one out, or do not group")
    return not reason


def _ambiguous(rows: Sequence[Row]) -> str | None:
    seeds = [seed_of(row) for row in rows]
    if len(set(seeds)) < len(seeds):
        return f"seed {next(seed for seed in seeds if seeds.count(seed) > 1)} stands there twice"
    checks: dict[str, Callable[[Row], object]] = {
        "were judged on different images": lambda row: (row.count("n"), row.text("data")),
        "met different attacks": lambda row: sorted(map(str, {score.key for score in row.robust})),
        "were not all audited alike": lambda row: row.audit and (row.audit.threat, row.audit.n),
        "do not all have a certificate": lambda row: row.certificate is None,
    }
    return next((said for said, key in checks.items() if len({str(key(row)) for row in rows}) > 1), None)


def seed_of(row: Row) -> str:
    """Return the seed of the training, else that of the judge."""
    return row.text("train_seed" if "train_seed" in row.raw else "seed")


def _merged(rows: Sequence[Row]) -> Row:
    first = rows[0]
    clean, sd = mean_and_sd([row.clean for row in rows])
    robust = tuple(_score([_same(row.robust, score) for row in rows]) for score in first.robust)
    return dataclasses.replace(
        first, name=_name(rows), clean=clean, clean_sd=sd, robust=robust, curve=_curve(rows), raw=_raw(rows),
        audit=_audit([row.audit for row in rows if row.audit]),
        certificate=_certificate([row.certificate for row in rows if row.certificate]), members=tuple(rows),
    )  # fmt: skip


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and the standard deviation of a sample.

    Example:
        >>> mean_and_sd([0.25, 0.5, 0.75])
        (0.5, 0.25)
    """
    return statistics.fmean(values), statistics.stdev(values)


def _name(rows: Sequence[Row]) -> str:
    names = [row.name for row in rows]
    bare = {"/".join(filter(None, (_SEED.sub("", part) for part in re.sub(r" \(\d+\)$", "", name).split("/"))))
            for name in names}  # fmt: skip
    stem = bare.pop() if len(bare) == 1 else ""
    method = rows[0].text("method")
    return f"{stem or (method if method != text.DASH else names[0])}, {len(rows)} seeds"


def _same(scores: Sequence[Score], wanted: Score) -> Score:
    return min((score for score in scores if score.key == wanted.key), key=lambda score: score.accuracy)


def _score(scores: Sequence[Score]) -> Score:
    mean, sd = mean_and_sd([score.accuracy for score in scores])
    return dataclasses.replace(scores[0], accuracy=mean, sd=sd, limits=None)


def _curve(rows: Sequence[Row]) -> Curve:
    curves = [{round(eps, 6): accuracy for eps, accuracy, _ in row.curve} for row in rows]
    shared = [point for point in rows[0].curve if all(round(point[0], 6) in curve for curve in curves)]
    return tuple(
        (eps, statistics.fmean(curve[round(eps, 6)] for curve in curves), None) for eps, _, _ in shared
    )


def _audit(audits: Sequence[Audit]) -> Audit | None:
    if not audits:
        return None
    first = audits[0]
    bad = [audit for audit in audits if not audit.proven]
    if bad:
        failed = tuple(dict.fromkeys(name for audit in bad for name in audit.failed))
        said = f"not proven: {len(bad)} of {len(audits)} seeds: {', '.join(failed)}"
        return dataclasses.replace(first, score=None, failed=failed, said=said)
    score = _score([audit.score for audit in audits if audit.score])
    said = f"robust accuracy {text.percent(score.accuracy)} ± {text.percent(score.sd)} % over {len(audits)} seeds"
    return dataclasses.replace(first, score=score, said=said)


def _certificate(proofs: Sequence[Certificate]) -> Certificate | None:
    if not proofs or len({tuple(r for r, _, _ in proof.points) for proof in proofs}) > 1:
        return proofs[0] if len(proofs) == 1 else None
    points = []
    for same in zip(*(proof.points for proof in proofs), strict=True):
        mean, sd = mean_and_sd([accuracy for _, accuracy, _ in same])
        points.append((same[0][0], mean, (max(0.0, mean - sd), min(1.0, mean + sd))))
    vacuous = any(proof.vacuous for proof in proofs)
    return dataclasses.replace(proofs[0], points=tuple(points), vacuous=vacuous)


def _raw(rows: Sequence[Row]) -> dict[str, Any]:
    merged = dict(rows[0].raw)
    for key in ("params_deployed", "params_stored", "params_dense", "macs", "macs_dense", "bytes"):
        if all(row.count(key) is not None for row in rows):
            merged[key] = round(statistics.fmean(row.count(key) or 0 for row in rows))
    timings = [row.raw.get("latency_ms") for row in rows]
    if all(isinstance(timing, Mapping) for timing in timings):
        parts = {part: [row.number("latency_ms", part) for row in rows] for part in ("median", "q1", "q3")}
        means = {part: statistics.fmean(values) for part, values in parts.items() if None not in values}  # type: ignore[arg-type]
        merged["latency_ms"] = {**rows[0].raw["latency_ms"], **means}
    conds = [row.max_cond for row in rows if row.max_cond is not None]
    if conds:
        merged["max_cond"] = math.nan if any(map(math.isnan, conds)) else max(conds)
    merged["train_seed"] = ", ".join(seed_of(row) for row in rows)
    return merged
