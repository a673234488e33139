"""A sanity test of boundaries: does the loss rise to them, or does the class change all of a sudden?

Logits may say nothing of where another class begins, with slopes that are right wherever anyone looks. On a line from
an image to one of another class the net has to change its answer somewhere; over a short step across that place the
loss of a net without jumps rises by no more than its gradients, on both sides, allow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironrank.attacks.passes import Loss, loss_and_gradient
from ironrank.attacks.threat import length, per_sample, steepest
from ironrank.judge.aside import NEAR, step_of
from ironrank.judge.check import Check
from ironrank.judge.samples import Samples
from ironrank.judge.subject import Subject

HALVINGS = 20  # until the place is known
JUMP = 2.0  # rise over what gradients allow; up to 0.9 on nets that we trained
JUMPS = 0.1  # share of the lines that may have one


def crossing(subject: Subject, few: Samples) -> list[Check]:
    """Make the test, on lines between images.

    Args:
        subject: The net, in evaluation mode.
        few: Images that the net gets right.

    Returns:
        The outcome; no test where all images are of one class.
    """
    apart = few.y != few.y.flip(0)
    if not apart.any():
        return []
    x, y, way = few.x[apart], few.y[apart], few.x.flip(0)[apart] - few.x[apart]
    share = _place(subject, x, y, way)
    with torch.no_grad():
        new = subject.plain(x + per_sample(share, x) * way).argmax(1)
    half = step_of(subject.norm, subject.eps, NEAR, x) / length(way, subject.norm) / 2
    before, after = (x + (per_sample(share, x) + side * half).clamp(0, 1) * way for side in (-1, 1))
    jumps = ~(_excess(subject, before, after, y, new) <= JUMP)
    text = f"on {int(jumps.sum())} of {len(x)} lines the loss jumps where the class changes, against its gradients"
    return [Check("no jump at the boundary", jumps.double().mean().item(), JUMPS, text)]


@torch.no_grad()
def _place(subject: Subject, x: Tensor, y: Tensor, way: Tensor) -> Tensor:
    """Return the shares (b,) of a way (b, ...) after which the class is no longer ``y``, by bisection."""
    low, high = torch.zeros(len(x)).to(x), torch.ones(len(x)).to(x)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        other = subject.plain(x + per_sample(middle, x) * way).argmax(1) != y
        low, high = torch.where(other, low, middle), torch.where(other, middle, high)
    return high


def _excess(subject: Subject, before: Tensor, after: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Return the rise (b,) of the new class's lead between points, over what the steeper of their gradients allows."""
    loss = Loss(subject.plain, lambda z, _: (z.gather(1, new[:, None]) - z.gather(1, y[:, None]))[:, 0])
    slopes = [loss_and_gradient(loss, point)[1].double() for point in (before, after)]
    steep = [(slope * steepest(slope, subject.norm)).flatten(1).sum(1) for slope in slopes]
    with torch.no_grad():
        rise = (loss(after) - loss(before)).double()
    return rise / (torch.maximum(*steep) * length(after - before, subject.norm).flatten())
