"""What may be said about the rows, and what must be: the verdict in one sentence, the warnings, the notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ironrank.judge.interval import exceeds
from ironrank.report.rows import Row
from ironrank.report.score import Score, Threat
from ironrank.report.text import count, epsilon, percent, quote

MARGIN = 0.01  # one percentage point: "as robust as the best" in the verdict
BLIND_RISE = 0.02  # a rise that counts where the number of images, and so the noise, is not known


@dataclass(frozen=True)
class Verdict:
    """The headline: the sentence, the ball it speaks about, and the row it picks."""

    sentence: str
    threat: Threat | None = None
    pick: int | None = None


def threat_of(rows: Sequence[Row]) -> Threat | None:
    """Return the ball that most rows were attacked in, the first one in a tie.

    Attacks of several steps decide; single-step attacks count only where nothing else was run.

    Args:
        rows: The rows.

    Returns:
        Norm and eps, or None where no attack was run.
    """
    for single_step_too in (False, True):
        seen: Counter[Threat] = Counter()
        for row in rows:
            balls = [s.threat for s in row.scores if s.threat and (single_step_too or not s.single_step)]
            seen.update(dict.fromkeys(balls, 1))
        if seen:
            return max(seen, key=lambda ball: seen[ball])
    return None


def scores_of(rows: Sequence[Row], threat: Threat | None) -> dict[int, Score]:
    """Return the robust accuracy of the rows in a ball: of each the lowest over its attacks.

    Where one row was audited, rows that were not are left out, and where one met an attack of several steps, rows
    that met single steps only: their number would look better than it is.

    Args:
        rows: The rows.
        threat: Norm and eps, or None.

    Returns:
        The score of each place of a row that has one.
    """
    worst = {i: score for i, row in enumerate(rows) if (score := row.at(threat))}
    audited = {i for i in worst if (audit := rows[i].audit) and audit.threat == threat}
    strong = {i for i in worst if any(s.threat == threat and not s.single_step for s in rows[i].scores)}
    kept = audited or strong or set(worst)
    return {i: score for i, score in worst.items() if i in kept}


def chance(rows: Sequence[Row]) -> float | None:
    """Return the accuracy of guessing, 1 / classes, where all rows agree on the number of classes."""
    classes = {row.classes for row in rows}
    known = next(iter(classes))
    return 1 / known if len(classes) == 1 and known else None


def judge(rows: Sequence[Row]) -> Verdict:
    """Return the smallest net within one point of the best robust accuracy, said in one sentence.

    Args:
        rows: The rows.

    Returns:
        The verdict; it claims nothing that the numbers of the rows do not hold.
    """
    threat = threat_of(rows)
    scores = scores_of(rows, threat)
    if not scores:
        refused = [row for row in rows if row.refused]
        return Verdict(_unproven(refused, len(rows)) if refused else _without_attack(rows))
    best = max(scores, key=lambda i: (scores[i].accuracy, -rows[i].size))
    near = [i for i in scores if scores[i].accuracy >= scores[best].accuracy - MARGIN - 1e-12]
    pick = min(near, key=lambda i: (rows[i].size, -scores[i].accuracy))
    where = f"Under {'a single-step attack' if scores[best].single_step else 'attack'} ({scores[best].ball})"
    floor = chance(rows) or 0.0
    if scores[best].accuracy <= floor:
        return Verdict(f"{where}, {_not_robust(scores[best], floor)}.", threat)
    said = _alone(rows, pick, scores[pick]) if len(scores) == 1 else _among(rows, scores, best, pick)
    doubted = sorted({best, pick} & {i for i, row in enumerate(rows) if _doubts(row)})
    doubt = (
        f"; but see the warnings about {' and '.join(quote(rows[i].name) for i in doubted)}"
        if doubted
        else ""
    )
    return Verdict(f"{where}, {said}{_unlike(scores)}{doubt}.", threat, pick)


def _unproven(refused: Sequence[Row], among: int) -> str:
    said = "; ".join(f"{quote(row.name)} (failed: {row.audit.reason})" for row in refused if row.audit)
    lead = "The net is not proven robust" if among == 1 else "No net is proven robust"
    return f"{lead}, and no accuracy under attack may be claimed: {said}."


def _without_attack(rows: Sequence[Row]) -> str:
    best = max(rows, key=lambda row: row.clean)
    rank = f", the best of {len(rows)} nets" if len(rows) > 1 else ""
    lead = f"{quote(best.name)} has {percent(best.clean)} % clean accuracy{rank}"
    return f"{lead}; no attack was run, so nothing is known about robustness."


def _not_robust(best: Score, floor: float) -> str:
    level = f", not above chance ({percent(floor)} %)" if floor else ""
    return f"no net is robust: the best accuracy is {percent(best.accuracy)} %{level}"


def _alone(rows: Sequence[Row], place: int, score: Score) -> str:
    row, others = rows[place], len(rows) - 1
    kept = f"{percent(score.accuracy)} % accuracy ({percent(row.clean)} % clean)"
    rest = f"; it is the only one of {len(rows)} nets with a number to compare there" if others else ""
    return f"{quote(row.name)} keeps {kept} with {_size(row)}{rest}"


def _unlike(scores: Mapping[int, Score]) -> str:
    """Say that the accuracies compared are over different numbers of images, where they are."""
    sizes = sorted({score.n or 0 for score in scores.values()} - {0})
    if len(sizes) < 2:
        return ""
    return f"; they were attacked on {' and '.join(map(count, sizes))} images: compare with care"


def _among(rows: Sequence[Row], scores: dict[int, Score], best: int, pick: int) -> str:
    attacked = f"the {len(scores)} of {len(rows)} nets attacked so"
    field = f"{len(rows)} nets" if len(scores) == len(rows) else attacked
    name, reached, size = quote(rows[pick].name), f"{percent(scores[pick].accuracy)} %", _size(rows[pick])
    if pick != best:
        rival = f"{percent(scores[best].accuracy)} % of {quote(rows[best].name)}"
        lead = f"{name} is the smallest of {field} within 1 point of the best robust accuracy"
        return f"{lead}: {reached} against {rival}, with {size}"
    smallest = all(rows[i].size >= rows[pick].size for i in scores)
    tail = "and none is smaller" if smallest else "and no smaller one comes within 1 point of it"
    return f"{name} has the best robust accuracy of {field}, {reached}, {tail}: {size}"


def _size(row: Row) -> str:
    ratio = row.ratio("params_deployed", "params_dense")
    of_dense = "" if ratio is None else f" ({percent(ratio)} % of its dense form)"
    return f"{count(row.size)} deployed parameters{of_dense}"


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """Return one line for every sign that a robust accuracy must not be trusted.

    Args:
        rows: The rows.

    Returns:
        Lines that begin with the name of the row; often none.
    """
    return [f"{quote(row.name)}: {line}" for row in rows for line in _doubts(row)]


def _doubts(row: Row) -> list[str]:
    if row.audit is not None and row.refused:
        return [
            f"not proven; its audit failed: {row.audit.reason}. No number of this net counts as robust accuracy."
        ]
    flags = row.audit.flags if row.audit else ()
    return [f"the audit raised a flag: {flag}." for flag in flags] + [
        line for check in (_rises_with_eps, _single_step_stronger, _single_step_only) if (line := check(row))
    ]


def _rises_with_eps(row: Row) -> str | None:
    low = None
    for eps, accuracy, n in row.curve:
        if low is not None and _above(accuracy, low[1], n, low[2]):
            start = f"{percent(low[1])} % at ε = {epsilon(low[0])}"
            rise = f"accuracy rises from {start} to {percent(accuracy)} % at ε = {epsilon(eps)}"
            reason = "the larger ball contains the smaller one, so the attack misses what is there"
            return f"{rise}, more than noise explains; {reason}: a sign of gradient masking."
        low = (eps, accuracy, n) if low is None or accuracy < low[1] else low
    return None


def _above(higher: float, lower: float, n_higher: int | None, n_lower: int | None) -> bool:
    if n_higher and n_lower:
        return exceeds(higher, lower, n_higher, n_lower)
    return higher - lower > BLIND_RISE


def _single_step_stronger(row: Row) -> str | None:
    for one in (score for score in row.robust if score.single_step and score.threat):
        for many in (score for score in row.robust if score.threat == one.threat and not score.single_step):
            if _above(many.accuracy, one.accuracy, many.n, one.n):
                single = f"one step ({one.label}: {percent(one.accuracy)} % left)"
                more = f"many ({many.label}: {percent(many.accuracy)} % left)"
                return f"{single} does more harm than {more} at {one.ball}: a sign of gradient masking."
    return None


def _single_step_only(row: Row) -> str | None:
    if not row.scores:
        return "no attack was run, so nothing is known about its robustness."
    if not all(score.single_step for score in row.scores):
        return None
    names = " and ".join(dict.fromkeys(score.attack.upper() for score in row.robust))
    reason = "nets that withstand a single step often fall to several"
    return f"{names} alone proves nothing: {reason}; run PGD with many steps."


def notes_of(rows: Sequence[Row], threat: Threat | None) -> list[str]:
    """Return what a reader must know to compare the rows.

    Args:
        rows: The rows.
        threat: The ball of the verdict.

    Returns:
        Lines for below the table.
    """
    scored = scores_of(rows, threat)
    weak = [row.name for i, row in enumerate(rows) if threat and i not in scored and not row.refused]
    wanted = "an audit" if any(row.audit for row in rows) else "an attack of several steps"
    left_out, refused = ", ".join(weak), ", ".join(row.name for row in rows if row.refused)
    sizes = ", ".join(map(count, sorted({row.count("n") or 0 for row in rows} - {0})))
    attacks = {
        frozenset(score.key for score in row.scores if score.threat == threat)
        for row in (rows[i] for i in scored)
    }
    curves = {row.text("curve_attack") for row in rows if row.curve and not (row.audit and row.audit.curve)}
    threads = ", ".join(sorted({f"{k:.0f}" for row in rows if (k := row.number("latency_ms", "threads"))}))
    groups, alone = any(row.members for row in rows), any(not row.members for row in rows)
    notes = {
        "Rows of several seeds: mean ± standard deviation over the trained nets, largest condition number; "
        "layers, spectra and pictures are those of the first seed.": groups,
        f"Each {'other ' if groups else ''}row is one trained net: intervals cover the choice of images, not the "
        "luck of training.": alone,
        f"Left out of the verdict, since their audit found nothing proven: {refused}.": bool(refused),
        f"The rows were measured on different numbers of images: {sizes}.": "," in sizes,
        f"Left out of the verdict, for want of {wanted} in its ball: {left_out}.": bool(left_out),
        f"Latency was measured with this number of CPU threads: {threads}.": bool(threads),
        "In the ball of the verdict the rows met different attacks; compare with care.": len(attacks) > 1,
        "The curves over ε come from different attacks.": len(curves) > 1,
    }
    return [line for line, holds in notes.items() if holds]
