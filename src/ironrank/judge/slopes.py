"""Sanity tests of gradients: are they there, are they the slopes of what the net computes, do they lead uphill?

A gradient that is missing, zero, replaced by another one or drowned in ripples makes every attack that follows it
fail, and the net look robust. Each is told by comparing the gradient with the change of the loss itself. The loss is
the margin, which does not saturate where the logits do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironrank.attacks import PGD
from ironrank.attacks.losses import cross_entropy, margin
from ironrank.attacks.passes import Loss, loss_and_gradient
from ironrank.attacks.threat import random_start, steepest
from ironrank.errors import IronrankError
from ironrank.judge.aside import ASIDE, SMALL, aside, reach_of, step_of
from ironrank.judge.check import Check
from ironrank.judge.crossing import crossing
from ironrank.judge.samples import Samples
from ironrank.judge.subject import Subject

IMAGES = 64  # that are looked at, among those that the net gets right
STEPS = 20  # of the climbs
ZERO = 0.02  # share of images that may have no gradient at all
INSIDE = 0.9  # share of a climb at whose end slopes are looked at
LARGE = 1 / 20, 1 / 8  # steps, in units of eps
MISS = 0.3  # error of a slope over the small steps
MISSING = 0.1  # share of images whose slope may be so wrong
RISE = 0.25  # smallest share of the promised rise that a large step has to bring
SHORT = 0.1  # share of images that may fall short of it
TINY = 1e-300  # in place of a zero that is divided by
FALLS = 0.05  # share of images whose loss may fail to rise
EXISTS, NOT_ZERO, SLOPE, UPHILL, RISES = (
    "gradient exists", "gradient not zero", "gradient is the slope", "gradient leads uphill", "loss rises"
)  # fmt: skip


Change = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, eq=False)
class Place:
    """Points, a smooth loss there, and its gradient.

    The loss is the lead on the true class of the class that is ahead of the others at the points: the margin, without
    the kinks where another class takes the lead, on which climbs end.

    Attributes:
        x: Pixels (b, ...).
        loss: Maps pixels (b, ...) to losses (b,).
        gradient: Of the loss at ``x`` (b, ...).
    """

    x: Tensor
    loss: Loss
    gradient: Tensor

    def change(self, way: Tensor, step: float) -> Tensor:
        """Return by how much the loss (b,) differs between a step along a way (b, ...) and one against it."""
        return self.loss(self.x + step * way) - self.loss(self.x - step * way)


def slopes(subject: Subject, samples: Samples) -> list[Check]:
    """Make the tests.

    Args:
        subject: The net, in evaluation mode.
        samples: Images that the net gets right.

    Returns:
        The outcomes; only the first where there is no gradient, none where there is no image.
    """
    few = samples.part(slice(0, IMAGES))
    if not len(few):
        return []
    if subject.target.blind:
        return [_exists(subject.target.blind)]
    try:
        places = _places(subject, few)
    except (IronrankError, RuntimeError) as error:
        return [_exists(" ".join(str(error).split())[:200])]
    return [
        _exists(""),
        _not_zero(places),
        _slope(subject, places),
        _uphill(subject, places),
        _rises(subject, few, places[-1].x),
        *crossing(subject, few),
    ]


def saturated(subject: Subject, samples: Samples) -> bool:
    """Return whether cross-entropy, unlike the margin, has no gradient at more than a few images."""
    few = samples.part(slice(0, IMAGES))
    if not len(few) or subject.target.blind:
        return False
    loss = Loss(subject.plain, lambda logits, _: cross_entropy(logits, few.y))
    try:
        _, gradient = loss_and_gradient(loss, few.x)
    except (IronrankError, RuntimeError):
        return False
    return _zero_share(gradient) > ZERO


def _places(subject: Subject, few: Samples) -> list[Place]:
    """Return where slopes are looked at: at the images, at random in the ball, and where a climb ends."""
    near = random_start(few.x, subject.eps, subject.norm, subject.generator("slopes"))
    climb = PGD(norm=subject.norm, eps=subject.eps, loss="margin", steps=STEPS, keep="last")
    end = climb(subject.model, few.x, few.y, generator=subject.generator("slopes", "climb"))
    short = few.x + INSIDE * (end - few.x)  # nets trained on this ball may bend right at its surface
    return [_place(subject, few, x, number) for number, x in enumerate((few.x, near, short))]


def _place(subject: Subject, few: Samples, x: Tensor, number: int) -> Place:
    reach, edge = reach_of(subject.norm, subject.eps, ASIDE, x), small_steps(subject, x)[0]
    x = aside(x, reach, edge, subject.generator("slopes", "aside", number))
    truth = few.y[:, None]
    with torch.no_grad():
        ahead = subject.plain(x).scatter(1, truth, -torch.inf).argmax(1, keepdim=True)

    def lead(logits: Tensor, _: Tensor) -> Tensor:
        return (logits.gather(1, ahead) - logits.gather(1, truth))[:, 0]

    loss = Loss(subject.plain, lead)
    return Place(x, loss, loss_and_gradient(loss, x)[1].detach())


def _exists(why: str) -> Check:
    text = why or "autograd follows the logits down to the pixels"
    return Check(EXISTS, 1.0 if why else 0.0, 0.0, text)


def _zero_share(gradient: Tensor) -> float:
    flat = gradient.flatten(1)
    return ((flat == 0).all(1) | ~flat.isfinite().all(1)).double().mean().item()


def _not_zero(places: list[Place]) -> Check:
    share = max(_zero_share(place.gradient) for place in places)
    text = f"{100 * share:.1f} % of the images have no gradient of the margin, or one that is not finite"
    return Check(NOT_ZERO, share, ZERO, text)


def small_steps(subject: Subject, x: Tensor) -> tuple[float, ...]:
    """Return lengths of steps so small that slopes do not change over one of them, and rounding does not show."""
    return tuple(step_of(subject.norm, subject.eps, share, x) for share in SMALL)


def _slope(subject: Subject, places: list[Place]) -> Check:
    """Compare small steps, along the gradient and at random, with what the gradient says; the worst place counts."""
    steps, worst = small_steps(subject, places[0].x), 0.0
    for number, place in enumerate(places):
        noise = torch.randn(place.x.shape, generator=subject.generator("slopes", number)).to(place.x)
        for direction in (place.gradient, noise):
            held = slope_holds(place.change, place.gradient, steepest(direction, subject.norm), steps, TINY)
            worst = max(worst, (~held).double().mean().item())
    text = f"over steps of {steps[0]:.2g} and less the loss of {100 * worst:.1f} % of the images changes by other than "
    return Check(SLOPE, worst, MISSING, text + "its gradient")


@torch.no_grad()
def slope_holds(
    change: Change, gradient: Tensor, way: Tensor, steps: tuple[float, ...], smallest: float = 0.0
) -> Tensor:
    """Return where a gradient says what small steps along a way bring, over one of the steps at least.

    Args:
        change: Maps a way (b, ...) and a length to the difference (b,) between that far along it and against it.
        gradient: (b, ...).
        way: Directions (b, ...).
        steps: Lengths.
        smallest: The usual size of a slope counts as at least this; with 0 no gradient of zero holds.

    Returns:
        bool (b,).
    """
    g, d = gradient.double().flatten(1), way.double().flatten(1)
    promised = (g * d).sum(1)
    typical = g.norm(dim=1) * d.norm(dim=1) / g.shape[1] ** 0.5  # of a direction at random
    size = torch.maximum(promised.abs(), typical).clamp_min(smallest)
    errors = [(change(way, step).double() / (2 * step) - promised).abs() / size for step in steps]
    return (torch.stack(errors) <= MISS).any(0)


def _uphill(subject: Subject, places: list[Place]) -> Check:
    """Compare the rise over steps as long as those of attacks with the rise that the gradient promises."""
    worst, longest = 0.0, 0.0
    for share in LARGE:
        step = step_of(subject.norm, subject.eps, share, places[0].x)
        for place in places[:2]:  # at the end of a climb little is left to rise
            short = _falls_short(place, step, subject.norm)
            if short >= worst:
                worst, longest = short, step
    text = f"a step of {longest:.2g} along the gradient brings {100 * worst:.1f} % of the images no rise as promised"
    return Check(UPHILL, worst, SHORT, text)


@torch.no_grad()
def _falls_short(place: Place, step: float, norm: str) -> float:
    there = (place.x + step * steepest(place.gradient, norm)).clamp(0, 1)
    promised = (place.gradient * (there - place.x)).double().flatten(1).sum(1)
    rise = (place.loss(there) - place.loss(place.x)).double()
    return (~(rise >= RISE * promised)).double().mean().item()


@torch.no_grad()
def _rises(subject: Subject, few: Samples, end: Tensor) -> Check:
    logits = (subject.plain(x) for x in (few.x, end))
    before, after = (margin(there, few.y) for there in logits)
    share = (~(after > before)).double().mean().item()
    text = f"the margin of {100 * share:.1f} % of the images does not rise in a climb of {STEPS} steps"
    return Check(RISES, share, FALLS, text)
