"""Nets built to deceive a judge: each wraps a trained net, keeps what it says of clean images, and hinders attacks.

None is more robust than the net inside. `DECEIVERS` maps a name to a function of that net.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NOISE = torch.randn(1, 4096, generator=torch.Generator().manual_seed(7))


class Around(nn.Module):
    """Pixels through `before`, the net, logits through `after`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def before(self, x: Tensor) -> Tensor:
        return x

    def after(self, z: Tensor) -> Tensor:
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


class Straight(torch.autograd.Function):
    """Rounds, and passes the gradient on as if it had not."""

    @staticmethod
    def forward(ctx, x, levels):
        return (x * levels).round() / levels

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Shuffled(torch.autograd.Function):
    """Changes nothing, and passes on a gradient whose pixels have changed places."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        order = torch.randperm(gradient[0].numel(), generator=torch.Generator().manual_seed(0))
        return gradient.flatten(1)[:, order].reshape(gradient.shape)


class OnlyAtData(torch.autograd.Function):
    """Changes nothing, and passes on no gradient but at pixels that are whole numbers of 255: those of data."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        on_grid = ((x * 255) - (x * 255).round()).abs() < 1e-3
        return gradient * on_grid


class HugeLogits(Around):
    def after(self, z):
        return 1e4 * z


class TinyLogits(Around):
    def after(self, z):
        return 1e-9 * z


class Overflowing(Around):
    def after(self, z):
        return 1e37 * z


class QuantizedInput(Around):
    def before(self, x):
        return (8 * x).round() / 8


class QuantizedInputStraight(Around):
    def before(self, x):
        return Straight.apply(x, 8)


class FineQuantizedInput(Around):
    def before(self, x):
        return (x * 255).round() / 255


class Halfway(Around):
    """Quantized only near the middle of each step, a third of all pixels; the rest as it is."""

    def before(self, x):
        return torch.where(((16 * x) % 1 < 0.3).detach(), (16 * x).floor() / 16, x)


class QuantizedActivations(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.head, self.tail = net[:-1], net[-1]

    def forward(self, x):
        return self.tail((4 * self.head(x)).round() / 4)


class SaturatedTanh(Around):
    def after(self, z):
        return torch.tanh(100 * (z - z.detach().mean(1, keepdim=True)))


class SaturatedSigmoid(Around):
    def after(self, z):
        return torch.sigmoid(20 * z)


class SharpSoftmax(Around):
    def after(self, z):
        return (50 * z).softmax(1)


class Softmax(Around):
    def after(self, z):
        return z.softmax(1)


class OneHot(Around):
    def after(self, z):
        return torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z) + 0 * z


class RandomLayer(Around):
    def before(self, x):
        return x + 0.1 * torch.randn_like(x)


class RandomResize(Around):
    def before(self, x):
        shift = int(torch.randint(-2, 3, ()))
        return x.roll(shift, dims=-1)


class DropoutAlways(Around):
    def before(self, x):
        return nn.functional.dropout(x, 0.3, training=True)


class SeededNoise(Around):
    """Noise that is a function of the input: the same for the same pixels, another for any others."""

    def before(self, x):
        key = (x.detach().flatten(1).double() * 1e6).sum(1, keepdim=True) % 1
        noise = torch.sin(NOISE[:, : x[0].numel()] * 1e4 * (1 + key))
        return x + 0.15 * noise.reshape(x.shape).to(x)


class Detached(Around):
    def before(self, x):
        return x.detach()


class PartlyDetached(Around):
    """Only every tenth pixel lets a gradient through."""

    def before(self, x):
        passing = torch.arange(x[0].numel()).reshape(x[0].shape) % 10 == 0
        return torch.where(passing, x, x.detach())


class WrongGradient(Around):
    def before(self, x):
        return Shuffled.apply(x)


class GradientOnlyAtData(Around):
    def before(self, x):
        return OnlyAtData.apply(x)


class FlippedByHook(Around):
    def before(self, x):
        if x.requires_grad:
            x = x.clone()
            x.register_hook(lambda g: -g)
        return x


class Sine(Around):
    """A ripple on every pixel, too fine to matter and steep enough to drown the slope."""

    def before(self, x):
        return x + 0.003 * torch.sin(x * 1e4)


class SineOfLogits(Around):
    def after(self, z):
        return z + 0.02 * torch.sin(5000 * z)


class Offset(Around):
    def after(self, z):
        return z + 3e6


class WildThird(Around):
    """A steep ripple of the logits' scale: the margin keeps its sign, its slope is that of the ripple."""

    def after(self, z):
        return z * (3 * torch.sin(1e3 * z.sum(1, keepdim=True))).exp()


class LastInput(Around):
    """Remembers the last images; near ones get the same answer again."""

    def __init__(self, net):
        super().__init__(net)
        self.seen = None

    def forward(self, x):
        with torch.no_grad():
            same = self.seen is not None and self.seen[0].shape == x.shape
            if same and (self.seen[0] - x).abs().max() < 0.35:
                return self.seen[1].clone() + 0 * self.net(x)
        z = self.net(x)
        self.seen = x.detach().clone(), z.detach().clone()
        return z


class Counter(Around):
    """After many calls, logits in steps."""

    def __init__(self, net):
        super().__init__(net)
        self.calls = 0

    def after(self, z):
        self.calls += 1
        return z if self.calls < 250 else (2 * z).round() / 2


class BatchMean(Around):
    def before(self, x):
        return x - x.mean(0, keepdim=True).detach() + 0.3 if len(x) > 1 else x


class LooksWhoAsks(Around):
    """Another net for calls that want a gradient."""

    def after(self, z):
        return z.roll(1, dims=1) if z.requires_grad else z


class Restores(Around):
    """Sets the caller's pixels back to what was first shown."""

    def __init__(self, net):
        super().__init__(net)
        self.first = {}

    def forward(self, x):
        z = self.net(x)
        x.data.copy_((x.data * 4).round() / 4)
        return z


class HalfPrecision(Around):
    """A backward pass in float16 on which gradients underflow."""

    def before(self, x):
        return Underflow.apply(x)


class Underflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return (gradient * 1e-7).half().to(gradient.dtype) * 1e7


class Clipped(Around):
    """Pixels outside the range of the data are cut, and have no gradient."""

    def before(self, x):
        return x.clamp(0.002, 0.998)


class LogitClip(Around):
    def after(self, z):
        return z.clamp(-0.5, 0.5) + 1e-4 * z.detach()


DECEIVERS = {
    cls.__name__: cls
    for cls in (
        HugeLogits, TinyLogits, Overflowing, QuantizedInput, QuantizedInputStraight, FineQuantizedInput, Halfway,
        QuantizedActivations, SaturatedTanh, SaturatedSigmoid, SharpSoftmax, Softmax, OneHot, RandomLayer,
        RandomResize, DropoutAlways, SeededNoise, Detached, PartlyDetached, WrongGradient, GradientOnlyAtData,
        FlippedByHook, Sine, SineOfLogits, Offset, WildThird, LastInput, Counter, BatchMean, LooksWhoAsks, Restores,
        HalfPrecision, Clipped, LogitClip,
    )
}  # fmt: skip
