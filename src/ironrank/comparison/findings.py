"""What a comparison teaches, in sentences that are computed from its numbers: the ablation, and who beats whom.

A difference counts as shown where its 95 % interval leaves out zero; everything else is called "no difference shown".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ironrank.comparison.difference import Difference
from ironrank.comparison.question import ABLATION, ADVERSARIAL, CLEAN, DENSE, NARROW, Question
from ironrank.comparison.table import Group, Kind, compared
from ironrank.methods import UV
from ironrank.report import text

FLOOR = 0.01  # accuracies below this leave nothing to compare
LEARNT = 1.5  # times chance: below that a net has learnt nothing
MANY = 6  # more nets that are alike are counted, not named
WORDS = {"higher": "it helps", "lower": "it costs", "no difference shown": "no difference shown"}
UNDER = {CLEAN: "Under clean training", ADVERSARIAL: "On top of adversarial training"}
Found = Mapping[Kind, Group]


def ablation_of(question: Question, found: Found) -> list[dict[str, Any]]:
    """Take the parts apart: low rank only, with bounded condition numbers, with adversarial training, with both.

    Args:
        question: What was asked.
        found: What is judged.

    Returns:
        A dict for each budget at which all four are judged: ``budget``; ``nets``, with the accuracies of the four; and
        differences of the accuracy under attack: what conditioning adds under either training, and what adversarial
        training adds to either net.
    """
    plain, bounded = ABLATION
    parts = {"rank only": (CLEAN, plain), "+ conditioning": (CLEAN, bounded),
             "+ adversarial training": (ADVERSARIAL, plain), "+ both": (ADVERSARIAL, bounded)}  # fmt: skip
    rows = []
    for budget in question.budgets:
        four = {name: found.get((training, net, budget)) for name, (training, net) in parts.items()}
        if None in four.values():
            continue
        row: dict[str, Any] = {"budget": budget, "nets": {n: _accuracies(g) for n, g in four.items() if g}}
        row["conditioning"] = {
            CLEAN: _plain(compared(four["+ conditioning"], four["rank only"])),
            ADVERSARIAL: _plain(compared(four["+ both"], four["+ adversarial training"])),
        }
        row["adversarial"] = {
            plain: _plain(compared(four["+ adversarial training"], four["rank only"])),
            bounded: _plain(compared(four["+ both"], four["+ conditioning"])),
        }
        rows.append(row)
    return rows


def _accuracies(group: Group) -> dict[str, float]:
    judged = group.judged.values()
    return {which: sum(one[which] for one in judged) / len(judged) for which in ("clean", "robust")}


def _plain(found: Difference | None) -> dict[str, Any] | None:
    return None if found is None else found._asdict() | {"verdict": found.verdict}


def findings(question: Question, found: Found) -> list[str]:
    """Say what the numbers say.

    Args:
        question: What was asked.
        found: What is judged.

    Returns:
        Sentences; a question that the judged cells do not answer is left out, and so are nets that have learnt nothing.
    """
    chance = 1 / question.base.data.spec.classes
    found = {kind: group for kind, group in found.items() if _accuracies(group)["clean"] >= LEARNT * chance}
    said = [line for training in UNDER for line in _on_conditioning(question, found, training)]
    for training in dict.fromkeys(kind[0] for kind in found):
        said += _against_free_factors(question, found, training) + _best(question, found, training)
        said += _against(question, found, training, NARROW, "narrow dense net of the same budget")
        said += _against(question, found, training, DENSE, "dense net")
    return said + _caution(found) if said else []


def _on_conditioning(question: Question, found: Found, training: str) -> list[str]:
    known = _changes(found, training, question.budgets, ABLATION)
    if not known:
        return []
    plain, bounded = ABLATION
    lines = [
        f"{UNDER[training]}, bounded condition numbers ({bounded} against {plain}, else the same) change the accuracy "
        f"under attack by {_each(known)}."
    ]
    if all(_at_the_floor(found, training, budget) for budget, _ in known):
        curves = _changes(found, training, question.budgets, ABLATION, "curve")
        lines.append(
            f"At this radius both are below {text.percent(FLOOR)} %, so there is little to tell apart; averaged over "
            f"all radii of the curve the change is {_each(curves)}."
        )
    return lines


def _against_free_factors(question: Question, found: Found, training: str) -> list[str]:
    bounded, free = ABLATION[1], UV.name
    known = _changes(found, training, question.budgets, (free, bounded))
    head = f"{UNDER[training]}, {bounded} instead of two free factors ({free}) changes the accuracy under attack by"
    return [f"{head} {_each(known)}."] if known else []


def _changes(
    found: Found, training: str, budgets: Iterable[float], nets: tuple[str, str], which: str = "robust"
) -> list[tuple[float, Difference]]:
    """Return by how much the second of two nets exceeds the first at each budget at which both are judged."""
    first, second = nets
    pairs = (
        (budget, compared(found.get((training, second, budget)), found.get((training, first, budget)), which))
        for budget in budgets
    )
    return [(budget, pair) for budget, pair in pairs if pair is not None]


def _at_the_floor(found: Found, training: str, budget: float) -> bool:
    groups = [found[training, net, budget] for net in ABLATION]
    return all(_accuracies(group)["robust"] < FLOOR for group in groups)


def _each(pairs: Sequence[tuple[float, Difference]]) -> str:
    return "; ".join(f"{points(pair)} at {budget:g} % ({WORDS[pair.verdict]})" for budget, pair in pairs)


def points(found: Difference | Mapping[str, Any]) -> str:
    """Return a difference in percentage points, with its interval.

    Example:
        >>> points(Difference(0.012, -0.004, 0.028, 3, 1000))
        '+1.2 points [-0.4, +2.8]'
    """
    values = found._asdict() if isinstance(found, Difference) else found
    mean, low, high = (text.points(values[key]) for key in ("mean", "low", "high"))
    return f"{mean} points [{low}, {high}]"


def _best(question: Question, found: Found, training: str) -> list[str]:
    """Name the net of highest accuracy under attack of each budget, and those that are not shown to be lower."""
    parts = []
    for budget in question.budgets:
        nets = {net: group for (t, net, b), group in found.items() if (t, b) == (training, budget)}
        most = max((len(group.judged) for group in nets.values()), default=0)
        fewer = [net for net, group in nets.items() if len(group.judged) < most]
        nets = {net: group for net, group in nets.items() if len(group.judged) == most}
        if len(nets) < 2:
            continue
        robust = {net: _accuracies(group)["robust"] for net, group in nets.items()}
        best = max(robust, key=lambda net: robust[net])
        if robust[best] < FLOOR:
            parts.append(f"at {budget:g} % none: all are below {text.percent(FLOOR)} %")
            continue
        pairs = {net: compared(nets[best], group) for net, group in nets.items() if net != best}
        near = [net for net, pair in pairs.items() if pair is None or pair.verdict != "higher"]
        others = (
            f"; no difference shown to {', '.join(near)}" if near else ", shown to be higher than all others"
        )
        others += f"; left out for want of seeds: {', '.join(fewer)}" if fewer else ""
        parts.append(f"at {budget:g} % {best} ({text.percent(robust[best])} %{others})")
    head = f"With {training} training the highest accuracy under attack has, "
    return [f"{head}{'; '.join(parts)}."] if parts else []


def _against(question: Question, found: Found, training: str, rival: str, words: str) -> list[str]:
    """Sort the nets of one training by what is shown about them and a rival."""
    sorted_: dict[str, list[tuple[str, float | None]]] = {
        "higher": [],
        "lower": [],
        "no difference shown": [],
    }
    for (t, net, budget), group in found.items():
        if t != training or net in (DENSE, rival):
            continue
        other = found.get((training, rival, None if rival == DENSE else budget))
        pair = compared(group, other)
        if pair is not None:
            sorted_[pair.verdict].append((net, budget))
    said = {verdict: _names(nets) for verdict, nets in sorted_.items() if nets}
    if not said:
        return []
    alike = len(sorted_["no difference shown"])
    if alike > MANY:
        said["no difference shown"] = f"the other {alike}" if len(said) > 1 else f"all {alike}"
    parts = "; ".join(f"{verdict}: {nets}" for verdict, nets in said.items())
    return [f"Accuracy under attack against the {words}, {training} training: {parts}."]


def _names(nets: Iterable[tuple[str, float | None]]) -> str:
    """Return the names of nets of several budgets.

    Example:
        >>> _names([("svd", 50.0), ("svd", 90.0), ("cayley", None)])
        'svd at 50 and 90 %, cayley'
    """
    budgets: dict[str, list[str]] = {}
    for net, budget in nets:
        budgets.setdefault(net, []).extend([] if budget is None else [f"{budget:g}"])
    return ", ".join(f"{net} at {' and '.join(of)} %" if of else net for net, of in budgets.items())


def _caution(found: Found) -> list[str]:
    counts = sorted({len(group.judged) for group in found.values()})
    many = " or ".join(map(str, counts))
    over = "images alone, since there is one seed" if counts == [1] else f"images and {many} seeds"
    over += " (with one seed images alone)" if 1 in counts[:-1] else ""
    return [f"Intervals are 95 % each, over {over}; among many of them some leave out zero by chance. "
            "An accuracy under attack is an upper bound: a stronger attack can only lower it."]  # fmt: skip
