"""Sanity tests that compare attacks with each other, on the probe, where each ran in full.

They follow Carlini et al., "On evaluating adversarial robustness", 2019: where a weaker attack finds what a stronger
one misses, the stronger one was not strong, and what survives it is not shown to be robust.
"""

from __future__ import annotations

from torch import Tensor

from ironrank.judge.autoattack import SQUARE_SHARE
from ironrank.judge.check import Check
from ironrank.judge.ensemble import (
    AUTOATTACK,
    CURVE,
    FREE,
    GRADIENT,
    MINIMUM,
    MORE_RESTARTS,
    MORE_STEPS,
    NOISE,
    SINGLE,
    TRANSFER,
)
from ironrank.judge.interval import wilson
from ironrank.judge.tally import Result, Tally

SAID, BENT = 0.02, 0.1  # share of points met by attacks at which a net may say otherwise afterwards, or bend
SHARE, IMAGES = 0.02, 2  # of the probe may be found by a weaker attack alone: this share, or so many
MOST = 0.25  # but of few images not more than this share


def sanity(tally: Tally, classes: int) -> list[Check]:
    """Make the tests.

    Args:
        tally: What the attacks found.
        classes: Number of classes.

    Returns:
        The outcomes; no test where its attacks did not run.
    """
    return [
        _ran(tally),
        *_autoattack(tally),
        *_held("answers hold under attack", tally, "answers", SAID, "the net answers otherwise afterwards"),
        *_held(
            "gradients hold under attack",
            tally,
            "gradients",
            SAID,
            "another gradient is found afterwards, or none",
        ),
        *_held(
            "slopes hold under attack", tally, "slopes", BENT, "answers change by other than the gradient"
        ),
        *_weaker("noise below gradients", tally, NOISE, "random noise"),
        *_weaker("gradient-free below gradients", tally, FREE, "gradient-free attacks"),
        *_weaker("transfer below gradients", tally, TRANSFER, "images made for another net"),
        *_single(tally),
        *_more("more steps", tally, MORE_STEPS, "twice the steps"),
        *_more("more restarts", tally, MORE_RESTARTS, "more random starts"),
        *_monotone(tally),
        *_chance(tally, classes),
    ]


def _ran(tally: Tally) -> Check:
    failed = [result for result in tally.results if result.error and not result.trial.optional]
    text = f"{len(failed)} of {len(tally.results)} attacks could not be run"
    text += f", the first because: {failed[0].error}" if failed else ""
    return Check("attacks ran", len(failed), 0, text)


def _autoattack(tally: Tally) -> list[Check]:
    """Take AutoAttack's own warnings seriously; Square is counted over all images, as the package does."""
    result = _named(tally, AUTOATTACK)
    if result is None:
        return []
    said = Check(
        "AutoAttack without flags",
        len(result.flags),
        0,
        f"it warns of: {', '.join(result.flags) or 'nothing'}",
    )
    share, n = result.free.double().mean().item(), len(result.free)
    text = f"its Square broke {int(result.free.sum())} of {n} images that its white-box attacks had left"
    return [said, Check("Square below AutoAttack", share, _allowed(n, SQUARE_SHARE), text)]


def _held(name: str, tally: Tally, what: str, limit: float, how: str) -> list[Check]:
    """Add up the spot checks of all attacks."""
    looked, wrong = (sum(result.watched[key] for result in tally.results) for key in (what, f"other_{what}"))
    if not looked:
        return []
    text = f"at {wrong} of {looked} points that attacks have been at {how}"
    return [Check(name, wrong / looked, limit, text)]


def curve_of(tally: Tally) -> list[tuple[float, float]]:
    """Return accuracy against eps, from 0, on the probe: the images that the attack of each radius leaves standing."""
    points = [(r.trial.attack.eps, tally.accuracy(r)) for r in _curve(tally)]
    return [(0.0, tally.right[: tally.probe].double().mean().item()), *points] if points else []


def _curve(tally: Tally) -> list[Result]:
    results = [result for result in tally.results if result.trial.name.startswith(CURVE)]
    return sorted(results, key=lambda result: result.trial.attack.eps)


def _allowed(n: int, share: float = SHARE) -> float:
    return min(max(share, IMAGES / n), MOST)


def _named(tally: Tally, name: str) -> Result | None:
    return next((result for result in tally.results if result.trial.name == name), None)


def _check(name: str, tally: Tally, missed: Tensor, what: str) -> Check:
    share = missed.double().mean().item()
    text = f"{what} broke {int(missed.sum())} of {tally.probe} images that no gradient attack broke"
    return Check(name, share, _allowed(tally.probe), text)


def _weaker(name: str, tally: Tally, kind: str, what: str) -> list[Check]:
    if not any(result.trial.kind == kind for result in tally.results):
        return []
    return [_check(name, tally, tally.broken_by(kind) & ~tally.broken_by(GRADIENT, MINIMUM), what)]


def _single(tally: Tally) -> list[Check]:
    """A single step must not break what attacks of many steps miss."""
    single = _named(tally, SINGLE)
    if single is None:
        return []
    iterated = [r.broken for r in tally.results if r.inside and r.trial.kind == GRADIENT and r is not single]
    missed = single.broken[: tally.probe].clone()
    for broken in iterated:
        missed &= ~broken[: tally.probe]
    share = missed.double().mean().item()
    text = (
        f"a single step broke {int(missed.sum())} of {tally.probe} images that no attack of many steps broke"
    )
    return [Check("single step below many", share, _allowed(tally.probe), text)]


def _more(name: str, tally: Tally, trial: str, what: str) -> list[Check]:
    result = _named(tally, trial)
    if result is None:
        return []
    found, tried = int(result.broken[: tally.probe].sum()), int(result.attacked[: tally.probe].sum())
    text = f"{what} broke {found} of the {tried} images that all else had left of the first {tally.probe}"
    return [Check(name, found / tally.probe, _allowed(tally.probe), text)]


def _monotone(tally: Tally) -> list[Check]:
    curve = curve_of(tally)
    if not curve:
        return []
    lowest, worst, at = 1.0, 0.0, 0.0
    for eps, accuracy in curve:
        if accuracy - lowest > worst:
            worst, at = accuracy - lowest, eps
        lowest = min(lowest, accuracy)
    text = "accuracy never rises with eps" if worst == 0 else (
        f"at eps {at:.3g} accuracy is {100 * worst:.1f} points above that of a smaller eps"
    )  # fmt: skip
    return [Check("bigger eps never helps the net", worst, _allowed(tally.probe), text)]


def _chance(tally: Tally, classes: int) -> list[Check]:
    curve = curve_of(tally)
    if not curve:
        return []
    eps, accuracy = curve[-1]
    limit = wilson(1 / classes, tally.probe)[1]
    text = f"at eps {eps:.3g}, where every image can become plain grey, accuracy is {100 * accuracy:.1f} %"
    return [Check("chance at large eps", accuracy, limit, text)]
