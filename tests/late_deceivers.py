"""Nets that are honest wherever a judge looks from outside, and deceive only while an attack runs, or where none
comes, or with a loss that is right everywhere and leads nowhere.

`LATE` maps a name to a function of the net inside, as `deceivers.DECEIVERS` does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from deceivers import NOISE, Around, Shuffled
from small_nets import small_net


class LaterShuffled(torch.autograd.Function):
    """Changes nothing; after 40 backward passes of its owner, the pixels of the gradient change places."""

    @staticmethod
    def forward(ctx, x, owner):
        ctx.owner = owner
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.owner.passes += 1
        return (Shuffled.backward(ctx, gradient) if ctx.owner.passes > 40 else gradient), None


class WrongLater(Around):
    def __init__(self, net):
        super().__init__(net)
        self.passes = 0

    def before(self, x):
        return LaterShuffled.apply(x, self)


class LooksAtWeights(Around):
    """Weights that want no gradient mean an attack: then two of three pixels let none through."""

    def before(self, x):
        if any(weight.requires_grad for weight in self.net.parameters()):
            return x
        passing = torch.arange(x[0].numel()).reshape(x[0].shape) % 3 == 0
        return torch.where(passing, x, x.detach())


class SureUnderAttack(Around):
    """The same sign of an attack, and the first class is given a lead that no attack overcomes."""

    def after(self, z):
        if any(weight.requires_grad for weight in self.net.parameters()):
            return z
        return z + 1e3 * nn.functional.one_hot(z.argmax(1), z.shape[1])


class Shelf(Around):
    """After some calls, images near one that was shown before get the answer that this one got."""

    def __init__(self, net):
        super().__init__(net)
        self.calls, self.shown = 0, []

    def forward(self, x):
        z = self.net(x)
        self.calls += 1
        with torch.no_grad():
            if self.calls < 30:
                self.shown.append((x.detach().flatten(1).clone(), z.detach().clone()))
                return z
            images, answers = (torch.cat(part) for part in zip(*self.shown, strict=True))
            nearest = torch.cdist(x.detach().flatten(1), images).argmin(1)
            near = (x.detach().flatten(1) - images[nearest]).abs().amax(1) < 0.09
        return torch.where(near[:, None], answers[nearest] + 0 * z, z)


@cache
def robust():
    return small_net(eps=0.1).requires_grad_(False)


class TwoFaced(Around):
    """The undefended net for whole numbers of 255, as images are; a robust one for what attacks make of them."""

    def __init__(self, net):
        super().__init__(net)
        self.robust = robust()

    def forward(self, x):
        whole = ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(1)
        return torch.where(whole[:, None], self.net(x), self.robust(x))


def noisiness(x):
    """How much pixels differ from their surroundings, (b, 1, 1, 1)."""
    return (x - nn.functional.avg_pool2d(x, 3, 1, 1)).abs().flatten(1).mean(1).view(-1, 1, 1, 1)


def near_data(x):
    """1 at images and at changes of an attack, 0 where the change is larger, so that large ones do reach chance."""
    return torch.sigmoid((0.1 - noisiness(x)) * 200)


class Ripple(Around):
    """A smooth ripple on every pixel, some 0.1 long: slopes are those of the ripple, and short steps stay in it."""

    def before(self, x):
        return x + near_data(x) * 0.05 * torch.sin(20 * torch.pi * x)


class Moat(Around):
    """The nearer the boundary, the surer: who climbs the loss turns back before reaching it."""

    def forward(self, x):
        z = self.net(x)
        first, second = z.topk(2, dim=1).values.split(1, dim=1)
        lead = near_data(x).flatten(1) / (0.3 + first - second)
        return z + lead * nn.functional.one_hot(z.argmax(1), z.shape[1])


class ThirdOfGradient(torch.autograd.Function):
    """Changes nothing; of marked images, two of three pixels of the gradient are replaced by one pattern."""

    @staticmethod
    def forward(ctx, x, marked):
        ctx.marked = marked
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        flat = gradient.flatten(1)
        pattern = NOISE[:, : flat.shape[1]].sign() * flat.abs().mean(1, keepdim=True)
        third = torch.where(torch.arange(flat.shape[1]) % 3 == 0, flat, pattern)
        return torch.where(ctx.marked, third, flat).view_as(gradient), None


class BlackOrWhite(Moat):
    """A moat, with slopes that are right but where a pixel is exactly black or white: at images and in attacks."""

    def forward(self, x):
        flat = x.detach().flatten(1)
        marked = ((flat <= 0) | (flat >= 1)).any(1, keepdim=True)
        return super().forward(ThirdOfGradient.apply(x, marked))


class Decoy(Around):
    """Only the class is the net's; logits rise along patterns of noise, and say nothing of where another begins."""

    def forward(self, x):
        z, near = self.net(x), near_data(x).flatten(1)
        patterns = torch.randn(z.shape[1], x[0].numel(), generator=torch.Generator().manual_seed(3)).sign()
        away = 10 * x.flatten(1) @ patterns.T / x[0].numel() + 8 * nn.functional.one_hot(
            z.argmax(1), z.shape[1]
        )
        return near * away + (1 - near) * z


class Float64(Around):
    """Honest, but its answers are in float64, with a lead that float32 would drown."""

    def after(self, z):
        return 1e9 + z.double()


LATE = {
    cls.__name__: cls
    for cls in (
        WrongLater,
        LooksAtWeights,
        SureUnderAttack,
        Shelf,
        TwoFaced,
        Ripple,
        Moat,
        BlackOrWhite,
        Decoy,
        Float64,
    )
}
