"""Sanity tests that need no gradient: is the net a function, the same one for every caller?

An attack searches by calling the net many times, in batches, with gradients on; a user calls it once. A net that
answers the two differently, by chance, by memory or by looking who asks, has no robust accuracy to be stated.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ironrank.attacks.threat import random_start
from ironrank.judge.check import Check
from ironrank.judge.samples import Samples
from ironrank.judge.subject import Subject

IMAGES = 64  # that are looked at
ALONE = 16  # of them one by one
SAME, ALIKE, FORMS = (
    1e-4,
    1e-3,
    1e-2,
)  # differences of a logit that rounding explains, over the logits' spread
FROZEN = 0.02  # share of images whose logits may stand still


def behaviour(subject: Subject, samples: Samples) -> tuple[list[Check], Tensor]:
    """Make the tests, on the last images: those that the net has not been shown yet.

    Args:
        subject: The net, in evaluation mode.
        samples: The images.

    Returns:
        The outcomes, and the logits of the images, for `later`.
    """
    few = _last(samples)
    noisy = random_start(few.x, subject.eps, subject.norm, subject.generator("behaviour"))
    model = subject.target.model
    first = _memory(model, few.x, noisy)  # first of all: nothing may have been shown before
    logits = logits_of(model, few.x)
    checks = [
        first,
        _finite(model, few.x, noisy),
        _kept(model, few.x),
        _repeats(model, few.x, logits),
        _batches(model, few.x, noisy, logits),
        _callers(model, few.x, logits),
        _moves(model, few.x, noisy),
        *_forms(subject, few.x, noisy),
    ]
    return checks, logits


def later(subject: Subject, samples: Samples, logits: Tensor) -> Check:
    """Test whether the net is the same after all attacks as before.

    Args:
        subject: The net, in evaluation mode.
        samples: The images.
        logits: What `behaviour` returned.

    Returns:
        The outcome.
    """
    worst = apart(logits, logits_of(subject.target.model, _last(samples).x).cpu())
    return Check(
        "same after the attacks", worst, ALIKE, f"logits differ by {worst:.2g} of their spread from before"
    )


def _last(samples: Samples) -> Samples:
    return samples.part(slice(max(0, len(samples) - IMAGES), None))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return logits (b, classes) in float64, without a gradient; pixels are left alone."""
    with torch.no_grad():
        return model(x.clone()).detach().double()


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits, over the mean spread of an image's logits; infinite where not finite."""
    scale = one.std(1, correction=0).mean()
    worst = (one - other).abs().max() / scale.clamp_min(torch.finfo(torch.float32).tiny)
    return float(worst) if bool(worst.isfinite()) else float("inf")


def _memory(model: nn.Module, x: Tensor, noisy: Tensor) -> Check:
    """Show near images in different orders, to the net and to a copy that has seen nothing."""
    fresh, half = _copied(model), len(x) // 2
    before = logits_of(model, noisy[half:])
    clean = logits_of(model, x)
    worst = max(
        apart(before, logits_of(model, noisy[half:])),
        apart(logits_of(model, noisy[:half]), logits_of(fresh, noisy[:half])) if half else 0.0,
        apart(clean, logits_of(fresh, x)),
    )
    text = f"logits differ by {worst:.2g} of their spread when near images were shown before"
    return Check("no memory", worst, SAME, text)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception:  # modules of the user's own need not be made for it
        return model


def _finite(model: nn.Module, x: Tensor, noisy: Tensor) -> Check:
    inputs = torch.cat([x, noisy, torch.zeros_like(x[:1]), torch.ones_like(x[:1])])
    bad = int((~logits_of(model, inputs).isfinite().all(1)).sum())
    return Check(
        "finite output", bad, 0, f"{bad} of {len(inputs)} images in [0, 1] give logits that are not finite"
    )


def _kept(model: nn.Module, x: Tensor) -> Check:
    given = x.clone()
    with torch.no_grad():
        model(given)
    worst = float((given - x).abs().max())
    return Check("input left alone", worst, 0.0, f"a call changes its pixels by {worst:.2g}")


def _repeats(model: nn.Module, x: Tensor, logits: Tensor) -> Check:
    worst = max(apart(logits, logits_of(model, x)) for _ in range(3))
    text = f"logits of the same images differ by {worst:.2g} of their spread from call to call"
    return Check("deterministic", worst, SAME, text)


def _batches(model: nn.Module, x: Tensor, noisy: Tensor, logits: Tensor) -> Check:
    """Compare a batch with the same images one by one, backwards, and among others."""
    alone = torch.cat([logits_of(model, one) for one in x[:ALONE].split(1)])
    backwards = logits_of(model, x.flip(0)).flip(0)
    mixed = logits_of(model, torch.cat([noisy.flip(0), x, 1 - x]))[len(x) : 2 * len(x)]
    worst = max(apart(logits[:ALONE], alone), apart(logits, backwards), apart(logits, mixed))
    text = f"logits differ by {worst:.2g} of their spread with the batch that an image is in"
    return Check("independent of the batch", worst, ALIKE, text)


def _callers(model: nn.Module, x: Tensor, logits: Tensor) -> Check:
    """Compare calls that want a gradient, as attacks do, with calls that do not."""
    with torch.enable_grad():
        wanting = model(x.clone().requires_grad_()).detach().double()
        plain = model(x.clone()).detach().double()
    with torch.inference_mode():
        inferred = model(x.clone()).double().clone()
    worst = max(apart(logits, other) for other in (wanting, plain, inferred))
    text = f"logits differ by {worst:.2g} of their spread between calls with and without gradients"
    return Check("same for every caller", worst, ALIKE, text)


def _moves(model: nn.Module, x: Tensor, noisy: Tensor) -> Check:
    still = (logits_of(model, x) == logits_of(model, noisy)).all(1).double().mean().item()
    text = f"{100 * still:.1f} % of the images keep all logits to the last bit under random noise of size eps"
    return Check("answers move with the input", still, FROZEN, text)


def _forms(subject: Subject, x: Tensor, noisy: Tensor) -> list[Check]:
    """Compare the judged form with the other ones; no test where there is no other."""
    model, forms, both = subject.target.model, subject.target.forms, torch.cat([x, noisy])
    if not forms:
        return []
    logits = logits_of(model, both)
    gaps = {name: apart(logits, logits_of(form, both)) for name, form in forms.items()}
    name = max(gaps, key=lambda key: gaps[key])
    text = f"logits of the judged form and of that {name} differ by {gaps[name]:.2g} of their spread"
    return [Check("forms agree", gaps[name], FORMS, text)]
