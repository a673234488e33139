"""Spot checks of an attack while it runs: are the answers it gets, and the gradients, those that anyone would get?

Tests before the attacks look at a net from outside. A net may be honest there and mislead a search: in batches of
another size, after some calls, at places where only searches come, or towards whoever freezes its weights. So a few
calls of every attack are taken down, with what the net answered and with the gradient that came back, and looked at
again when the attack is over: answers and gradients by calling the net anew, in a small batch and with its weights as
they were, and the slopes near by, by the change of the answers over small steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironrank.attacks.threat import steepest
from ironrank.judge.aside import aside
from ironrank.judge.slopes import slope_holds

CALLS, ROWS = 2, 8  # calls of an attack that are taken down, the images of each
ALIKE = 1e-3  # difference of a logit that rounding explains, over the logits' spread
SAME = 1e-2  # the same of a gradient, over its length
ASIDE = 10  # steps to the side: nets trained on a ball may bend right at its surface, where searches end
WHAT = ("answers", "gradients", "slopes")


class Call:
    """One call of a net: pixels (k, ...), logits (k, classes), and what came back through both, where it did.

    Attributes:
        x: The pixels.
        logits: The answer.
        above: Derivative of what is climbed in the logits (k, classes).
        gradient: The same in the pixels (k, ...).
    """

    def __init__(self, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        self.x, self.logits, self.rows = x[rows].detach().clone(), logits[rows].detach().clone(), rows
        self.above: Tensor | None = None
        self.gradient: Tensor | None = None

    def came(self, above: Tensor) -> None:
        """Take down what came back to the logits."""
        self.above = above[self.rows].detach().clone()

    def passed(self, gradient: Tensor) -> None:
        """Take down what came back to the pixels."""
        self.gradient = gradient[self.rows].detach().clone()


class Witness(nn.Module):
    """A net that is watched: it answers as it did, and a few calls, chosen at random among all, are taken down.

    Args:
        net: Maps pixels (b, ...) to logits (b, classes).
        generator: Chooses calls and images.
    """

    def __init__(self, net: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.net, self.generator = net, generator
        self.kept: dict[bool, list[Call]] = {False: [], True: []}  # calls with and without a gradient
        self.count = {False: 0, True: 0}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, classes) of ``x``."""
        wanting = x.requires_grad and torch.is_grad_enabled()
        place = self._place(wanting)
        if place is None or not len(x):
            return self.net(x)
        inner = x.view_as(x)  # the gradient of a leaf would not tell of this call alone
        given = x.detach().clone()
        logits = self.net(inner)
        call = Call(given, logits, self._rows(len(x)))
        if wanting and logits.requires_grad:
            inner.register_hook(call.passed)
            logits.register_hook(call.came)
        self.kept[wanting][place : place + 1] = [call]
        return logits

    def _place(self, wanting: bool) -> int | None:
        """Return where the next call is kept: every call has the same chance (reservoir sampling)."""
        self.count[wanting] += 1
        place = int(torch.randint(self.count[wanting], (), generator=self.generator))
        if self.count[wanting] <= CALLS:
            return self.count[wanting] - 1
        return place if place < CALLS else None

    def _rows(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)[:ROWS]

    def found(self, norm: str, steps: tuple[float, ...]) -> dict[str, int]:
        """Look at the calls again.

        Args:
            norm: ``Linf`` or ``L2``, the norm of steps.
            steps: Their lengths, the longest first.

        Returns:
            For ``answers``, ``gradients`` and ``slopes`` the number of images looked at; with ``other_`` before the
            name, that of those where the net says otherwise than in the attack, or its gradient is not its slope.
        """
        answers = [self._answers(call) for calls in self.kept.values() for call in calls]
        gradients, slopes = [], []
        for call in self.kept[True]:
            if (
                call.above is not None
                and (asked := call.above.isfinite().all(1) & (call.above != 0).any(1)).any()
            ):
                gradients.append(self._gradients(call)[asked])
                slopes.append(self._slopes(call, norm, steps)[asked])
        found = {}
        for name, wrong in zip(WHAT, (answers, gradients, slopes), strict=True):
            found[name] = sum(len(part) for part in wrong)
            found[f"other_{name}"] = sum(int(part.sum()) for part in wrong)
        return found

    @torch.no_grad()
    def _answers(self, call: Call) -> Tensor:
        """Return where the net answers otherwise now, bool (k,)."""
        now, then = self.net(call.x.clone()).double(), call.logits.double()
        apart = (now - then).abs().amax(1)
        return ~((apart <= ALIKE * then.std(1, correction=0)) | (now == then).all(1))

    def _gradients(self, call: Call) -> Tensor:
        """Return where another gradient comes back now, or came none, bool (k,)."""
        then = torch.zeros_like(call.x) if call.gradient is None else call.gradient
        gap, size = ((g.double().flatten(1)).norm(dim=1) for g in (self._back(call.x, call) - then, then))
        return ~((gap <= SAME * size) & (size > 0))

    def _back(self, x: Tensor, call: Call) -> Tensor:
        """Return what comes back to pixels (k, ...) now."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(x), x, call.above, allow_unused=True)
        return torch.zeros_like(x) if gradient is None else gradient.detach()

    def _slopes(self, call: Call, norm: str, steps: tuple[float, ...]) -> Tensor:
        """Return where small steps change the answers by other than the gradient says, bool (k,)."""
        x = aside(call.x, ASIDE * steps[0], steps[0], self.generator)
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        gradient = self._back(x, call)

        def change(way: Tensor, step: float) -> Tensor:
            assert call.above is not None
            answers = self.net(x + step * way).double() - self.net(x - step * way).double()
            return (call.above.double() * answers).sum(1)

        ways = (steepest(way, norm) for way in (gradient, noise))
        return ~torch.stack([slope_holds(change, gradient, way, steps) for way in ways]).all(0)
