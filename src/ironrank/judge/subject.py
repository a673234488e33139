"""The net under audit as attacks and tests see it: logits in float32, in evaluation mode, nothing remembered.

Where the net returns probabilities, their logarithms take the place of the logits: the order of the classes is the
same, and losses of logits mean what they should.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ironrank.attacks.base import Attack, evaluation_mode
from ironrank.attacks.losses import predicts
from ironrank.attacks.threat import project
from ironrank.data import mix
from ironrank.errors import IronrankError
from ironrank.judge.first_look import FEW, first_look
from ironrank.judge.guests import StandardAutoAttack
from ironrank.judge.samples import Samples, batches_of
from ironrank.judge.target import Target
from ironrank.judge.whole import BYTES, Bytes, whole

BATCH = 250  # images at a time
_ENDED = 0.05  # share of pixels without a slope
_SUM = 1e-3  # probabilities add up to 1 within this


class Inwards(nn.Module):
    """A net whose slopes are looked up a little nearer to grey; what it says is what it says of the pixels given.

    A net that cuts its pixels at the range of the data has no gradient at pixels that are exactly black or white, and
    steps in the direction of a zero lead nowhere.

    Args:
        net: Maps pixels (b, ...) to logits (b, classes).
        share: How much nearer.
    """

    def __init__(self, net: nn.Module, share: float = 0.02) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, classes) of ``x``, with the gradient of the pixels moved inwards."""
        if not torch.is_grad_enabled():
            return self.net(x)
        inner = self.net(x + self.share * (0.5 - x))
        with torch.no_grad():
            there = self.net(x)
        return inner + (there - inner).detach()


class Logarithm(nn.Module):
    """The logarithms of the probabilities that a net returns.

    Args:
        net: Maps pixels (b, ...) to probabilities (b, classes).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (b, classes)."""
        probabilities = self.net(x)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


class Tried(NamedTuple):
    """What an attack did to samples (b,).

    Attributes:
        broken: On which the net errs, bool (b,) on the CPU.
        free: Which of them were found without a gradient by a part of an attack that has gradients, bool (b,).
        flags: What the attack says about itself.
    """

    broken: Tensor
    free: Tensor
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A net with its threat.

    Attributes:
        target: The net, its other forms, and the sources of transfer.
        norm: ``Linf`` or ``L2``.
        eps: Radius, pixel units.
        seed: Seed of everything random.
        classes: Number of logits.
        probabilities: Whether the net returns probabilities.
        faceless: Whether slopes end where pixels are black or white; they are then looked up nearer to grey.
    """

    target: Target
    norm: str
    eps: float
    seed: int
    classes: int
    probabilities: bool = False
    faceless: bool = False

    @property
    def model(self) -> nn.Module:
        """What is attacked."""
        return Inwards(self.plain) if self.faceless else self.plain

    @property
    def plain(self) -> nn.Module:
        """The net with logits, and with its own gradients."""
        return Logarithm(self.target.model) if self.probabilities else self.target.model

    def generator(self, *what: int | str) -> torch.Generator:
        """Return the random numbers of one purpose, the same whenever they are asked for."""
        return torch.Generator().manual_seed(mix(self.seed, "audit", *what))

    def _followed(self, source: str, net: nn.Module) -> nn.Module:
        if source in self.target.sources:
            return self.target.sources[source]
        net = Bytes(net) if source == BYTES else net
        return Inwards(net) if self.faceless else net

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Put all forms and sources into evaluation mode for a while."""
        with ExitStack() as stack:
            for net in (self.target.model, *self.target.forms.values(), *self.target.sources.values()):
                stack.enter_context(evaluation_mode(net))
            yield

    def right(self, samples: Samples) -> Tensor:
        """Return where the net names the true class, see `predicts`, bool (n,) on the CPU."""
        return torch.cat([right(self.target.model, part.x, part.y) for part in batches_of(samples, BATCH)])

    def tried(
        self, attack: Attack, samples: Samples, source: str, generator: torch.Generator, net: nn.Module
    ) -> Tried:
        """Try an attack on samples.

        What the attack returns is brought into its ball and box first, whatever it promised, and judged anew.

        Args:
            attack: The attack.
            samples: Samples that the net gets right.
            source: Name of the net whose gradients are followed; empty for the net itself.
            generator: Source of randomness.
            net: What the attack calls as the net itself: `plain`, or a module around it that watches.

        Returns:
            What it broke.
        """
        followed = self._followed(source, net)
        if isinstance(attack, StandardAutoAttack):
            found = attack.found(followed, samples)
            broken = ~self.right(Samples(found.changed, samples.y))
            return Tried(broken, broken & found.free, found.flags)
        parts = [torch.zeros(0, dtype=torch.bool)]
        for part in batches_of(samples, BATCH):
            changed = attack(followed, part.x, part.y, generator=generator).to(part.x.dtype)
            changed = whole(changed, part.x, attack.eps, attack.norm) if source == BYTES else changed
            changed = project(changed, part.x, attack.eps, attack.norm)
            parts.append(~right(self.target.model, changed, part.y))
        broken = torch.cat(parts)
        return Tried(broken, torch.zeros_like(broken))


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return where a model names the class ``y``, see `predicts`, bool (b,) on the CPU; pixels are left alone."""
    return predicts(model(x.clone()), y).cpu()


def subject_of(target: Target, samples: Samples, norm: str, eps: float, seed: int) -> Subject:
    """Look at what a net returns for a few images, and say how it is to be attacked.

    Args:
        target: The net.
        samples: The images.
        norm: ``Linf`` or ``L2``.
        eps: Radius, pixel units.
        seed: Seed of everything random.

    Returns:
        The subject.

    Raises:
        IronrankError: If the net does not take such images, or returns no logits for these classes.
    """
    subject = Subject(target, norm, eps, seed, 0)
    with subject.judged():
        few = samples.part(slice(0, FEW))
        logits = first_look(target.model, few.x, samples.y, f"audit of {target.name}")
        faceless = _is_faceless(target.model, few.x)
    return replace(
        subject, classes=logits.shape[1], probabilities=_are_probabilities(logits), faceless=faceless
    )


def _are_probabilities(logits: Tensor) -> bool:
    return bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < _SUM).all())


def _is_faceless(model: nn.Module, x: Tensor) -> bool:
    """Return whether many pixels have no slope where they are, but have one a little nearer to grey."""

    def slopes(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        logits = model(at)
        weights = torch.linspace(1, 2, logits.shape[1]).to(
            logits
        )  # slopes of softmax outputs would add up to 0
        return torch.autograd.grad((logits * weights).sum(), at)[0]

    try:
        with torch.enable_grad():
            ended = (slopes(x) == 0) & (slopes(x + 0.02 * (0.5 - x)) != 0)
    except (RuntimeError, IronrankError):  # no gradient at all: a sanity test says so
        return False
    return ended.double().mean().item() > _ENDED
