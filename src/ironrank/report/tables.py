"""The tables, once: the page and the Markdown file print the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ironrank.report import proofs, text
from ironrank.report.cells import NO_BREAK, Cell, Column, Table, accuracy, span
from ironrank.report.judge import Verdict
from ironrank.report.layer import Layer
from ironrank.report.rows import Row
from ironrank.report.score import Score
from ironrank.report.training import METRICS, Training


def overview(rows: Sequence[Row], verdict: Verdict) -> Table:
    """Return the one table: a line for each net.

    Args:
        rows: The rows.
        verdict: Its pick is marked.

    Returns:
        Accuracies with 95 % intervals, sizes and operations with ratios, latency, conditioning, n and seed.
    """
    attacks = {score.key: score for row in rows if not row.refused for score in row.robust}
    columns = (
        Column("net", words=True),
        Column("clean accuracy", "%"),
        *(Column(score.label, f"accuracy, %, {score.ball}") for score in attacks.values()),
        proofs.audited_column(rows),
        proofs.certified_column(rows),
        Column("deployed parameters"),
        Column("stored parameters"),
        Column("multiply-accumulates", "10⁶ per image"),
        Column("deployed size", "kB"),
        Column("latency", "ms, median [q1, q3]"),
        Column("largest condition number", "σ₁ / σᵣ"),
        Column("test images", "n"),
        Column("seed", "training, attack" if any("train_seed" in row.raw for row in rows) else ""),
    )
    picked = "" if verdict.pick is None else " The net of the verdict is set in bold."
    spread = " ±: standard deviation over seeds." if any(row.members for row in rows) else ""
    caption = f"In small print: 95 % Wilson interval of an accuracy; ratio to the same net with dense layers.{spread}"
    body = tuple(_line(row, tuple(attacks), proofs.radius_of(rows)) for row in rows)
    return Table(caption + picked, columns, body, verdict.pick)


def _line(row: Row, attacks: tuple[tuple, ...], radius: float | None) -> tuple[Cell, ...]:
    return (
        Cell(row.name),
        accuracy(row.clean_score),
        *(proofs.refusal(row) or accuracy(_worst(row, key)) for key in attacks),
        proofs.audited(row),
        proofs.certified(row, radius),
        Cell(text.count(row.size), _of_dense(row, "params_deployed", "params_dense")),
        Cell(text.count(row.count("params_stored")), _of_dense(row, "params_stored", "params_dense")),
        Cell(_scaled(row.count("macs"), 1e6), _of_dense(row, "macs", "macs_dense")),
        Cell(_scaled(row.count("bytes"), 1e3)),
        latency(row),
        Cell(text.significant(row.max_cond)),
        Cell(text.count(row.count("n")), _subset(row)),
        Cell(_seeds(row)),
    )


def _subset(row: Row) -> str:
    return "first of the test set" if "first" in row.text("data") else ""


def _seeds(row: Row) -> str:
    keys = ("train_seed", "seed") if "train_seed" in row.raw else ("seed",)
    return ", ".join(row.text(key) for key in keys)


def latency(row: Row) -> Cell:
    """Return the median latency in ms and its quartiles."""
    median, q1, q3 = (row.number("latency_ms", part) for part in ("median", "q1", "q3"))
    quartiles = "" if q1 is None or q3 is None else span(text.significant(q1), text.significant(q3))
    return Cell(text.significant(median), quartiles)


def layers(row: Row) -> Table:
    """Return the layers of one net: shape, rank, condition number, distance of its bases from orthonormal."""
    columns = (
        Column("layer", words=True),
        Column("kind", words=True),
        Column("shape", f"out {text.TIMES} in ..."),
        Column("rank", "of full rank"),
        Column("condition number", "σ₁ / σᵣ"),
        *([Column("before training", "σ₁ / σₘᵢₙ")] if row.before else []),
        Column("orthonormality error", "of the bases"),
    )
    first = None if row.before is None else {layer.name: layer.cond for layer in row.before.layers}
    said = f"; before training: {row.before.what}" if row.before else ""
    body = tuple(_layer(layer, first) for layer in row.layers)
    return Table(f"Layers of {text.quote(row.name)}{said}", columns, body)


def _layer(layer: Layer, first: Mapping[str, float | None] | None) -> tuple[Cell, ...]:
    return (
        Cell(layer.name),
        Cell(layer.kind),
        Cell(text.shape(layer.shape)),
        Cell(text.counts(layer.rank), f"of {text.counts(layer.full_rank)}" if layer.full_rank else ""),
        Cell(text.significant(layer.cond)),
        *([] if first is None else [Cell(text.significant(first.get(layer.name)))]),
        Cell(text.significant(layer.orthonormality_error)),
    )


def curves(rows: Sequence[Row]) -> Table | None:
    """Return the curves of accuracy against eps as numbers, or None where no row carries one."""
    drawn = [row for row in rows if row.curve]
    radii = sorted({round(eps, 6) for row in drawn for eps, _, _ in row.curve})
    if not drawn:
        return None
    found = [{round(eps, 6): accuracy for eps, accuracy, _ in row.curve} for row in drawn]
    columns = (Column("ε", "pixel range 0 to 1"), *(Column(row.label, "%") for row in drawn))
    body = tuple(
        (Cell(text.epsilon(eps)), *(Cell(text.percent(one.get(eps))) for one in found)) for eps in radii
    )
    return Table(f"Accuracy against the radius ε of the ball. {curve_attacks(rows)}", columns, body)


def curve_attacks(rows: Sequence[Row]) -> str:
    """Return the attacks behind the curves, as a sentence."""
    names = dict.fromkeys(
        "worst case of the audit" if row.audit and row.audit.curve else row.text("curve_attack")
        for row in rows
        if row.curve
    )
    said = [text.norm(name) if name != text.DASH else "not recorded" for name in names]
    return f"Attack: {'; '.join(said)}."


def training(runs: Sequence[Training]) -> Table | None:
    """Return the last epoch of every run, or None where there are no runs."""
    keys = [key for key in METRICS if any(run.series(key) for run in runs)]
    if not keys:
        return None
    columns = (
        Column("run", words=True),
        Column("epochs"),
        *(Column(METRICS[k].label, METRICS[k].unit) for k in keys),
    )
    body = tuple(
        (
            Cell(run.name),
            Cell(str(sum("epoch" in line for line in run.lines))),
            *(_last(run, key) for key in keys),
        )
        for run in runs
    )
    return Table("Last value of every training curve.", columns, body)


def _last(run: Training, key: str) -> Cell:
    series = run.series(key)
    if not series:
        return Cell(text.DASH)
    return Cell(text.percent(series[-1][1]) if METRICS[key].percent else text.significant(series[-1][1]))


def examples(rows: Sequence[Row]) -> Table | None:
    """Return the adversarial examples in words, or None where no row has any."""
    columns = (Column("net", words=True), Column("test image"), Column("class"), Column("read as"),
               Column("under attack"), Column("largest change", "pixel range 0 to 1"))  # fmt: skip
    body = tuple(
        (Cell(row.name), *map(Cell, line)) for row in rows if row.examples for line in row.examples.lines
    )
    return Table("Adversarial examples in numbers.", columns, body) if body else None


def provenance(rows: Sequence[Row]) -> Table:
    """Return what made every row: data, recipe, method, device and versions."""
    keys = ("data", "recipe", "method", "device")
    packages = list(dict.fromkeys(name for row in rows for name in _versions(row))) or ["software"]
    columns = (Column("net", words=True), *(Column(key, words=True) for key in keys),
               *(Column(name, "version", words=True) for name in packages))  # fmt: skip
    body = tuple(
        (Cell(row.name), *(Cell(row.text(key)) for key in keys),
         *(Cell(_versions(row).get(name, text.DASH)) for name in packages))
        for row in rows
    )  # fmt: skip
    return Table("What was measured, and with what.", columns, body)


def _versions(row: Row) -> dict[str, str]:
    found = row.raw.get("versions")
    return {name: str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def _worst(row: Row, key: tuple) -> Score | None:
    return min((score for score in row.robust if score.key == key), key=lambda s: s.accuracy, default=None)


def _of_dense(row: Row, part: str, whole: str) -> str:
    ratio = row.ratio(part, whole)
    return "" if ratio is None else f"{text.percent(ratio)}{NO_BREAK}% of dense"


def _scaled(value: int | None, unit: float) -> str:
    return text.significant(None if value is None else value / unit)
