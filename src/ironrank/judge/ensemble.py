"""Which attacks an audit runs, at which length, on which images.

Attacks run in order of cost. The first block of images is the probe: there every attack runs on all images that the
net gets right, whatever others have broken, so that attacks can be compared; elsewhere only on those still standing,
which leaves the worst case as it is. Attacks that only serve a comparison, at other radii or of greater length, run on
the probe alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ironrank.attacks import APGD, FGSM, FMN, PGD, LowRankPGD, Noise, SpectralAttack, Square
from ironrank.attacks.base import Attack
from ironrank.judge.aside import AsidePGD
from ironrank.judge.guests import OneForAll, StandardAutoAttack
from ironrank.judge.smoothed import SmoothedPGD
from ironrank.judge.subject import Subject
from ironrank.judge.whole import BYTES, steps_inside
from ironrank.settings import Settings, setting

GRADIENT, FREE, TRANSFER, NOISE, MINIMUM = "gradient", "gradient-free", "transfer", "noise", "minimum-norm"
STANDING, PROBE, SURVIVORS, ALL = "standing", "probe", "survivors", "all"
AUTOATTACK, UNIVERSAL = "autoattack", "universal"
LEAPS = 3  # steps as long as eps
SMOOTH = 20  # fewest steps along averaged gradients
Ball = dict[str, Any]  # norm and eps
MORE_STEPS, MORE_RESTARTS, SINGLE, CURVE = "more-steps", "more-restarts", "fgsm", "curve"


@dataclass(frozen=True, kw_only=True)
class Level(Settings):
    """How long an audit looks.

    Attributes:
        images: Images by default; 0 for all.
    """

    name = "level"
    images: int = setting(1000, "images by default; 0 for all", ge=0)
    probe: int = setting(128, "images on which every attack runs in full", ge=8)
    block: int = setting(250, "images of the other blocks", ge=1)
    steps: int = setting(20, "steps of a gradient attack", ge=2)
    restarts: int = setting(1, "random starts of PGD", ge=1)
    targets: int = setting(3, "wrong classes that targeted attacks try", ge=1)
    directions: int = setting(2, "singular directions of the spectral attack, of each kind", ge=1)
    queries: int = setting(300, "queries of a gradient-free attack", ge=1)
    square: str = setting(STANDING, "where it runs: standing or probe", choices=(STANDING, PROBE))
    draws: int = setting(200, "draws of random noise", ge=1)
    autoattack: bool = setting(False, "whether standard AutoAttack runs as well")
    curve: tuple[float, ...] = setting(
        (0.25, 0.5, 0.75, 1.5, 2.0, 3.0), "radii of the curve, in units of eps"
    )


LEVELS = {
    "quick": Level(square=PROBE),
    "standard": Level(
        steps=50, restarts=2, targets=9, directions=4, queries=2000, draws=2000, autoattack=True
    ),
    "full": Level(
        images=0,
        probe=500,
        steps=100,
        restarts=5,
        targets=9,
        directions=8,
        queries=5000,
        draws=10_000,
        autoattack=True,
    ),
}


@dataclass(frozen=True)
class Trial:
    """One attack of an audit.

    Attributes:
        name: Unique; also the name of its file.
        kind: What it learns from: gradients, answers only, another net, nothing.
        attack: The attack.
        source: Name of the net whose gradients are followed; empty for the audited one.
        where: On which images it runs: those standing, the probe, what survives on the probe, or all.
        cost: Time of one image, in gradient steps, for the estimate of the time left.
        optional: Whether nothing is wrong where it cannot be run: it needs more of a net than gradients.
    """

    name: str
    kind: str
    attack: Attack
    source: str = ""
    where: str = STANDING
    cost: float = 1.0
    optional: bool = False

    def inside(self, subject: Subject) -> bool:
        """Return whether what it finds lies in the ball that the audit is about."""
        return self.attack.radius <= subject.eps


def trials_of(subject: Subject, level: Level, shape: tuple[int, ...]) -> list[Trial]:
    """Return the attacks of an audit, in order.

    Args:
        subject: The net.
        level: How long to look.
        shape: Of one image.

    Returns:
        The attacks; without those that follow gradients, where there are none.
    """
    ball: Ball = {"norm": subject.norm, "eps": subject.eps}
    trials = [
        *([_autoattack(subject, ball)] if level.autoattack else []),
        *_climbs(ball, level, len(shape)),
        *_others(ball, level),
        *_transfers(subject, ball, level),
        *_without_gradients(ball, level),
        *_longer(ball, level),
        *_curve(subject, level, shape),
    ]
    return [trial for trial in trials if not (subject.target.blind and needs_gradient(trial))]


def needs_gradient(trial: Trial) -> bool:
    """Return whether an attack follows gradients of the audited net."""
    return trial.kind in (GRADIENT, MINIMUM)


def _autoattack(subject: Subject, ball: Ball) -> Trial:
    """Return AutoAttack, on all images that are right: its figure is comparable with published ones."""
    return Trial(AUTOATTACK, GRADIENT, StandardAutoAttack(**ball, seed=subject.seed), where=ALL, cost=4000)


def _climbs(ball: Ball, level: Level, dimensions: int) -> list[Trial]:
    pgd = PGD(**ball, loss="margin", steps=level.steps, restarts=level.restarts, stop=True)
    apgd = APGD(**ball, loss="ce-scaled", steps=level.steps, restarts=level.restarts)
    walk = AsidePGD(**ball, loss="margin", steps=level.steps, stop=True)
    leaps = AsidePGD(
        **ball, loss="margin", steps=LEAPS, step_size=ball["eps"], targets=9, random_start=False, stop=True
    )
    climbs = [
        Trial(SINGLE, GRADIENT, FGSM(**ball), where=PROBE),
        _climb("leaps", leaps),  # over dips of the loss, where short steps turn back
        _climb("pgd-ce", replace(pgd, loss="ce")),
        _climb("pgd-margin", pgd),
        _climb("pgd-aside", walk),  # where the tests of slopes have looked
        _climb("pgd-dlr", replace(pgd, loss="dlr")),
        _climb("apgd-ce", apgd),
        _climb("apgd-targeted", replace(apgd, loss="dlr", restarts=1, targets=level.targets)),
    ]
    if (eps := min(steps_inside(**ball), ball["eps"])) > 0:
        climbs.append(replace(_climb("pgd-bytes", replace(pgd, eps=eps)), source=BYTES))
    if dimensions >= 3:  # only images have rows and columns
        climbs.append(_climb("low-rank", LowRankPGD(**ball, loss="margin", steps=level.steps, stop=True)))
    return climbs


def _climb(name: str, attack: PGD | APGD, where: str = STANDING) -> Trial:
    cost = attack.steps * attack.restarts * max(1, attack.targets)
    return Trial(name, GRADIENT, attack, where=where, cost=cost)


def _others(ball: Ball, level: Level) -> list[Trial]:
    """Return searches of another kind.

    They follow averaged gradients, or singular directions, or look for one change for all images, or for the nearest
    point that fools.
    """
    smoothed = SmoothedPGD(**ball, steps=max(SMOOTH, level.steps))
    spectral = SpectralAttack(**ball, loss="margin", steps=level.steps, directions=level.directions)
    universal = OneForAll(**ball, steps=5 * level.steps)
    cost = 2 * level.steps + 8 * level.directions
    return [
        Trial("smoothed", GRADIENT, smoothed, cost=smoothed.steps * smoothed.draws),
        Trial("spectral", GRADIENT, spectral, cost=cost, optional=True),
        Trial(UNIVERSAL, GRADIENT, universal, where=PROBE, cost=universal.steps),
        Trial("fmn", MINIMUM, FMN(**ball, steps=2 * level.steps), cost=2 * level.steps),
    ]


def _without_gradients(ball: Ball, level: Level) -> list[Trial]:
    square, noise = Square(**ball, queries=level.queries), Noise(**ball, draws=level.draws)
    return [
        Trial("square", FREE, square, where=level.square, cost=level.queries / 3),
        Trial("noise", NOISE, noise, where=PROBE, cost=level.draws / 3),
    ]


def _transfers(subject: Subject, ball: Ball, level: Level) -> list[Trial]:
    attack = PGD(**ball, loss="margin", steps=level.steps)
    return [
        Trial(f"transfer-{source.replace(' ', '-')}", TRANSFER, attack, source, cost=level.steps)
        for source in subject.target.sources
    ]


def _longer(ball: Ball, level: Level) -> list[Trial]:
    """Return the strongest attack with twice the steps, and one with more starts, for what survives everything."""
    steps = APGD(**ball, loss="dlr", steps=2 * level.steps, targets=level.targets)
    starts = PGD(**ball, loss="margin", steps=level.steps, restarts=2 * level.restarts + 2, stop=True)
    return [_climb(MORE_STEPS, steps, SURVIVORS), _climb(MORE_RESTARTS, starts, SURVIVORS)]


def _curve(subject: Subject, level: Level, shape: tuple[int, ...]) -> list[Trial]:
    """Return one attack for each radius; the last one is so large that an image can be turned into plain grey."""
    eps, norm = subject.eps, subject.norm
    radii = sorted({factor * eps for factor in (*level.curve, 1.0)} | {grey(norm, eps, math.prod(shape))})
    attack = PGD(norm=norm, loss="margin", steps=2 * level.steps, stop=True)
    return [_climb(f"{CURVE}-{i:02d}", replace(attack, eps=radius), PROBE) for i, radius in enumerate(radii)]


def grey(norm: str, eps: float, side: int) -> float:
    """Return a radius within which every image can become plain grey, where all images are the same one.

    Args:
        norm: ``Linf`` or ``L2``.
        eps: The radius of the audit; at least twice that is returned.
        side: Number of pixels and channels of an image.

    Returns:
        The radius, pixel units.

    Example:
        >>> grey("Linf", 0.1, 784), grey("L2", 0.5, 784)
        (0.5, 14.0)
    """
    return max(0.5 if norm == "Linf" else 0.5 * math.sqrt(side), 2 * eps)
