"""A finished comparison in words: its tables, and what they are called.

Everything here is made from the plain values that `ironrank.compare` returns, which are those of table.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ironrank.report import text
from ironrank.report.cells import NO_BREAK, Cell, Column, Table, span

Result = Mapping[str, Any]
HEADS = {"clean": "Clean training", "adversarial": "Adversarial training"}


def title_of(result: Result) -> str:
    """Return the title of the page."""
    return f"Methods compared: {result['recipe']}"


def label_of(row: Mapping[str, Any]) -> str:
    r"""Return the name of a row: its net and its budget.

    Example:
        >>> label_of({"net": "uv", "budget": 80.0}), label_of({"net": "dense", "budget": None})
        ('uv 80\xa0%', 'dense')
    """
    return row["net"] if row["budget"] is None else f"{row['net']} {row['budget']:g}{NO_BREAK}%"


def trainings_of(result: Result) -> list[str]:
    """Return the trainings that have rows, in order."""
    return list(dict.fromkeys(row["training"] for row in result["rows"]))


def judged(result: Result, training: str) -> list[Mapping[str, Any]]:
    """Return the rows of one training of which at least one seed is judged."""
    return [row for row in result["rows"] if row["training"] == training and row["seeds"]]


def attack_of(result: Result) -> str:
    """Return the attack that judges, in a few words."""
    rule = result["protocol"]
    loss = f"{rule['restarts']} random start{'s' if rule['restarts'] > 1 else ''} each"
    return f"PGD-{rule['steps']} on cross-entropy and on the margin, {loss}, {ball_of(result)}"


def ball_of(result: Result) -> str:
    """Return norm and radius of the ball."""
    rule = result["protocol"]
    return f"{text.norm(rule['norm'])} ε = {text.epsilon(rule['eps'])}"


def overview(result: Result, training: str) -> Table:
    """Return the table of one training.

    Args:
        result: The comparison.
        training: "clean" or "adversarial".

    Returns:
        A row for each net and budget, those of equal budgets together.
    """
    columns = (
        Column("net", words=True),
        Column("seeds"),
        Column("clean accuracy", "%"),
        Column("accuracy under attack", "%"),
        Column("to the dense net", "points under attack"),
        Column("deployed parameters"),
        Column("multiply-accumulates", "10⁶ per image"),
        Column("deployed size", "kB"),
        Column("latency", "ms, median [q1, q3]"),
        Column("time of the dense net", "%, paired"),
        Column("largest condition number", "σ₁ / σᵣ"),
    )
    rows = sorted(judged(result, training), key=lambda row: row["budget"] or 0)
    caption = (
        "±: standard deviation over seeds. Brackets at a difference: 95 % interval over images and seeds, over images "
        "alone where there is one seed."
    )
    return Table(caption, columns, tuple(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    failed = f"{len(row['failed'])} failed" if row["failed"] else ""
    timed = row["latency"]
    return (
        Cell(label_of(row)),
        Cell(str(len(row["seeds"])), failed),
        _accuracy(row["clean"]),
        _accuracy(row["robust"]),
        _difference(row["robust_to_dense"] if row["net"] != "dense" else None),
        _size(row),
        Cell(text.significant(row["macs"] / 1e6)),
        Cell(text.significant(row["bytes"] / 1e3)),
        _latency(timed),
        Cell(text.percent(timed["ratio"]) if timed else text.DASH, _ratio_span(timed)),
        Cell("∞" if row["max_cond"] is None else text.significant(row["max_cond"])),
    )


def _accuracy(spread: Mapping[str, Any]) -> Cell:
    sd = spread["sd"]
    return Cell(text.percent(spread["mean"]), "" if sd is None else f"±{NO_BREAK}{text.percent(sd)}")


def _difference(found: Mapping[str, Any] | None) -> Cell:
    if found is None:
        return Cell(text.DASH)
    mean, low, high = (text.points(found[key]) for key in ("mean", "low", "high"))
    return Cell(mean, span(low, high))


def _size(row: Mapping[str, Any]) -> Cell:
    low, high = row["params_range"]
    counted = text.count(low) if low == high else f"{text.count(low)} to {text.count(high)}"
    return Cell(counted, f"{100 * row['smaller']:.1f}{NO_BREAK}% fewer" if row["budget"] is not None else "")


def _latency(timed: Mapping[str, float] | None) -> Cell:
    if timed is None:
        return Cell(text.DASH)
    limits = span(text.significant(timed["q1"]), text.significant(timed["q3"]))
    return Cell(text.significant(timed["median"]), limits)


def _ratio_span(timed: Mapping[str, float] | None) -> str:
    if timed is None:
        return ""
    return span(text.percent(timed["ratio_q1"]), text.percent(timed["ratio_q3"]))


def ablation(result: Result) -> Table | None:
    """Return the ablation, accuracies and what each part adds, or None where it was not made."""
    rows = result["ablation"]
    if not rows:
        return None
    columns = (
        Column("budget", "% less", words=True),
        *(Column(name, "%, under attack") for name in rows[0]["nets"]),
        Column("conditioning adds", "points, clean training"),
        Column("conditioning adds", "points, adversarial training"),
    )
    body = tuple(
        (
            Cell(f"{row['budget']:g}"),
            *(_both(one) for one in row["nets"].values()),
            *(_difference(row["conditioning"][training]) for training in HEADS),
        )
        for row in rows
    )  # fmt: skip
    plain, bounded = rows[0]["adversarial"]
    caption = f"Rank only: {plain}. Conditioning: {bounded}, else the same. Brackets: 95 % interval."
    return Table(caption, columns, body)


def _both(accuracies: Mapping[str, float]) -> Cell:
    return Cell(text.percent(accuracies["robust"]), f"clean{NO_BREAK}{text.percent(accuracies['clean'])}")


def curves(result: Result, training: str) -> Table | None:
    """Return the curves of accuracy against eps as numbers, or None where nothing is judged."""
    rows = judged(result, training)
    if not rows:
        return None
    columns = (
        Column("net", words=True),
        *(Column(f"ε = {text.epsilon(p['eps'])}", "%") for p in rows[0]["curve"]),
    )
    body = tuple(
        (Cell(label_of(row)), *(Cell(text.percent(p["accuracy"])) for p in row["curve"])) for row in rows
    )
    caption = (
        f"{HEADS[training]}. PGD-20 on the first {rows[0]['curve_n']} test images; an image lost stays lost."
    )
    return Table(caption, columns, body)


def software(result: Result) -> str:
    """Return what it was made with: versions and processor."""
    made = result["machine"]
    return f"ironrank {made['ironrank']}, torch {made['torch']}, python {made['python']}, {made['cpu']}."


def summary(result: Result) -> str:
    """Return one line: how many nets, of which kinds, judged by what."""
    count = sum(len(row["seeds"]) for row in result["rows"])
    nets = dict.fromkeys(row["net"] for row in result["rows"] if row["seeds"])
    return f"{count} trainings of {', '.join(nets)}, judged by {attack_of(result)}."
