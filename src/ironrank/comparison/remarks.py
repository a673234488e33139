"""What has to be said beside the tables of a comparison: how they were made, what is missing, what to mistrust."""

from __future__ import annotations

from ironrank.comparison import words
from ironrank.comparison.findings import LEARNT
from ironrank.comparison.question import UNBOUNDED
from ironrank.comparison.words import Result
from ironrank.report import text

SHAKEN = 0.5  # a ratio of times whose quartiles are further apart, by the ratio, tells of a disturbed machine


def notes(result: Result) -> list[str]:
    """Return what is needed to read the tables: how all were trained and judged.

    Args:
        result: The comparison.

    Returns:
        Sentences.
    """
    rows = [row for row in result["rows"] if row["seeds"]]
    counts = rows[0] if rows else {"n": result["protocol"]["n"], "n_clean": 0, "curve_n": 0}
    what = (
        "deployed parameters"
        if result["equal"] == "size"
        else "batch-1 latency, measured beside the dense net"
    )
    unbounded = any(row["net"] == UNBOUNDED for row in rows)
    return [
        f"Every net: {result['epochs']} epochs, all its stages together, with seeds "
        f"{', '.join(map(str, result['seeds']))}; a budget is so many percent less {what}. Methods are in their "
        "default settings, or in the recipe's where it uses them. 'narrow' is a dense net with fewer channels."
        + (f" '{UNBOUNDED}' is condlr without the clamp of its cores." if unbounded else ""),
        f"Under attack: {words.attack_of(result)}; an image counts only if it withstands all of them. White-box, on "
        f"the deployed net, first {counts['n']} test images; clean accuracy on {counts['n_clean']}.",
        "Judged are the weights of the last epoch after clean training, and of the best epoch by robust validation "
        "accuracy after adversarial training.",
        "Latency: single images on one thread, calls of the net and of the dense net in turn. Compare nets by the "
        "share of the dense net's time, which is paired; times in ms were taken at different moments.",
    ]


def missing(result: Result) -> list[str]:
    """Return what is not in the tables, and why.

    Args:
        result: The comparison.

    Returns:
        Sentences.
    """
    lines = []
    for row in result["rows"]:
        where = f"{words.label_of(row)}, {row['training']} training"
        if row["left_out"]:
            lines.append(f"{where}: left out. {row['left_out']}")
        lines += [f"{where}, seed {seed}: failed. {why}" for seed, why in row["failed"].items()]
        if row["pending"]:
            seeds = ", ".join(map(str, row["pending"]))
            lines.append(
                f"{where}, seed {seeds}: not done, another process works on it; the same command goes on."
            )
    return lines


def warnings(result: Result) -> list[str]:
    """Return signs that an accuracy under attack does not mean what it says.

    Args:
        result: The comparison.

    Returns:
        Sentences; often none.
    """
    lines = []
    for row in (row for row in result["rows"] if row["seeds"]):
        where = f"{words.label_of(row)}, {row['training']} training"
        if row["clean"]["mean"] < LEARNT * result["chance"]:
            lines.append(f"{where}: its clean accuracy is near chance. What gives one answer to everything withstands "
                         "every attack.")  # fmt: skip
        elif row["curve"][-1]["accuracy"] > LEARNT * result["chance"]:
            lines.append(f"{where}: still right at ε = {text.epsilon(row['curve'][-1]['eps'])}, where any image can "
                         "become plain grey: its gradient is hidden from these attacks.")  # fmt: skip
    timed = [row["latency"] for row in result["rows"] if row["seeds"] and row["latency"]]
    if shaken := sum(one["ratio_q3"] - one["ratio_q1"] > SHAKEN * one["ratio"] for one in timed):
        lines.append(f"The time of {shaken} of {len(timed)} nets, by that of the dense net, moved by more than "
                     f"{100 * SHAKEN:.0f} % between quartiles: something else ran. Time them again on a quiet machine "
                     "(delete latency.json in their folders, and run the same command).")  # fmt: skip
    return lines
