r"""What an attack drives up, one number per sample, so that no sample depends on its neighbours.

    name        untargeted                                      towards a class t
    ce          cross-entropy of y                              - cross-entropy of t
    ce-scaled   the same of the logits over their spread at x   the same
    margin      (best other) - z_y                              z_t - z_y
    dlr         margin / (z_1 - z_3)                            (z_t - z_y) / (z_1 - (z_3 + z_4) / 2)

:math:`z_1 \ge z_2 \ge \dots` are the logits in falling order, y is the true class. Sources: margin: Carlini and Wagner
2017; DLR: Croce and Hein 2020. The spread of "ce-scaled" is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

DEVIATION, RANGE = 4.0, 30.0  # what "ce-scaled" brings logits to


def predicts(logits: Tensor, y: Tensor) -> Tensor:
    """Return where logits name a class.

    Args:
        logits: Scores (b, classes).
        y: Classes (b,), int64.

    Returns:
        bool (b,); False where the largest logit is not a finite number, whatever the class.

    Example:
        >>> predicts(torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 0, 0])).tolist()
        [True, False, False]
    """
    best, classes = logits.max(1)
    return (classes == y) & best.isfinite()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each sample.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Losses (b,), at least 0. Their gradients fade as a model grows sure of itself.
    """
    return F.cross_entropy(logits, y, reduction="none")


def spread(logits: Tensor) -> Tensor:
    """Return what "ce-scaled" divides each sample's logits by.

    It brings them to a standard deviation of `DEVIATION`, about that of a net trained by cross-entropy, or to a range
    of `RANGE` where that is less. With a deviation of 1 the softmax is so flat that the gradient raises all wrong
    classes together, and the attack is weaker than a single step on plain cross-entropy; where one logit of many
    stands far above the rest, a deviation of 4 alone would leave no gradient in float32.

    Args:
        logits: Scores (b, classes).

    Returns:
        Positive numbers (b, 1), without a gradient; 1 where all logits are equal or one is not finite.

    Example:
        >>> spread(torch.tensor([[12.0, 4.0], [3e4, 1e4], [7.0, 7.0]])).flatten().tolist()
        [1.0, 2500.0, 1.0]
    """
    logits = logits.detach()
    deviation, (low, high) = logits.std(1, correction=0, keepdim=True), logits.aminmax(dim=1, keepdim=True)
    scale = torch.maximum(deviation / DEVIATION, (high - low) / RANGE)
    return torch.where((scale > 0) & scale.isfinite(), scale, 1.0)


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of the logits over their own `spread`.

    An attack does not call this at every point: it divides by the spread at ``x``, one number for each sample, so that
    losses of two points can be compared. What a model multiplies its logits by then changes nothing, and cross-entropy
    has a gradient where a large factor would leave none in float32.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Losses (b,), at least 0.
    """
    return cross_entropy(logits / spread(logits), y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return by how much the best wrong class leads, :math:`\max_{j \ne y} z_j - z_y`.

    Positive means fooled. Scaling all logits by a positive number scales the loss but changes no attack step,
    so it does not fade on models with large logits. Source: Carlini and Wagner 2017.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Margins (b,).

    Example:
        >>> margin(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    truth = y[:, None]
    return logits.scatter(1, truth, -torch.inf).amax(1) - logits.gather(1, truth)[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio: the margin over the lead of the first class on the third.

    It does not change when all logits are shifted or scaled. With two classes there is no third, and margin over
    lead would be 1 or -1 everywhere: there it is the margin.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.

    Returns:
        Losses (b,); positive means fooled.

    Example:
        >>> dlr(torch.tensor([[5.0, 3.0, 1.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    best = logits.topk(3, dim=1).values
    return _ratio(margin(logits, y), best[:, 0] - best[:, 2])


def targeted_cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return minus the cross-entropy of the target (b,); see `targeted_margin` for the arguments."""
    return -cross_entropy(logits, target)


def targeted_margin(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return by how much the target leads the true class.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.
        target: Classes to reach (b,), int64.

    Returns:
        Losses (b,); positive means fooled.
    """
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Return the targeted margin over the lead of the first class on the mean of the third and the fourth.

    With three classes the fourth is left out; with two it is the targeted margin.

    Args:
        logits: Scores (b, classes).
        y: True classes (b,), int64.
        target: Classes to reach (b,), int64.

    Returns:
        Losses (b,); positive means fooled.

    Example:
        >>> targeted_dlr(torch.tensor([[5.0, 3.0, 1.0, 1.0]]), torch.tensor([0]), torch.tensor([2]))
        tensor([-1.])
    """
    if logits.shape[1] < 3:
        return targeted_margin(logits, y, target)
    best = logits.topk(min(4, logits.shape[1]), dim=1).values
    return _ratio(targeted_margin(logits, y, target), best[:, 0] - best[:, 2:].mean(1))


def _ratio(lead: Tensor, scale: Tensor) -> Tensor:
    """Return the quotient; where the best logits are all equal so is the lead zero, and the quotient shall be too."""
    return lead / scale.clamp_min(torch.finfo(scale.dtype).tiny)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "ce-scaled": scaled_cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


@dataclass(frozen=True)
class Aim:
    """A named loss together with the classes it is about; a measure (see `Attack.maximise`) that can lose samples.

    Attributes:
        loss: Key of `LOSSES`.
        y: True classes (b,), int64.
        target: Classes to reach (b,), int64; None where any wrong class will do.
        scale: What logits are divided by (b, 1), where the loss is "ce-scaled" and the attack has begun.

    Example:
        >>> aim = Aim("margin", torch.tensor([0, 1]))
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> aim(logits, logits), aim.fooled(logits)
        (tensor([-1.,  1.]), tensor([False,  True]))
        >>> aim.take(torch.tensor([1]))(logits[1:], logits[1:])
        tensor([1.])
    """

    loss: str
    y: Tensor
    target: Tensor | None = None
    scale: Tensor | None = None

    def __call__(self, logits: Tensor, point: Tensor) -> Tensor:
        """Return the losses (b,) of logits (b, classes); the pixels do not matter."""
        loss = self.loss
        if self.scale is not None:
            loss, logits = "ce", logits / self.scale
        if self.target is None:
            return LOSSES[loss](logits, self.y)
        return TARGETED[loss](logits, self.y, self.target)

    def begun(self, logits: Callable[[], Tensor]) -> Aim:
        """Return the same aim with the scale of a search that begins where the logits are these."""
        return replace(self, scale=spread(logits())) if self.loss == "ce-scaled" else self

    def fooled(self, logits: Tensor) -> Tensor:
        """Return bool (b,): where the logits (b, classes) name another class than the true one, or none."""
        return ~predicts(logits, self.y)

    def take(self, rows: Tensor) -> Aim:
        """Return the aim of the samples at ``rows`` (int64)."""
        target = None if self.target is None else self.target[rows]
        scale = None if self.scale is None else self.scale[rows]
        return replace(self, y=self.y[rows], target=target, scale=scale)

    def towards(self, target: Tensor) -> Aim:
        """Return the aim to reach these classes (b,)."""
        return replace(self, target=target)
