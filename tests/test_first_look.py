"""Nets that do not fit, or give no numbers: one line at every door, and never a good mark."""

import pytest
import torch
from torch import nn

from ironrank.attacks import FGSM, PGD, Square
from ironrank.attacks.threat import steepest
from ironrank.certificates import certify, smooth
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge import accuracy, evaluate, withstood
from ironrank.judge.weakness import weakness


class Answers(nn.Module):
    """What a function of the pixels returns."""

    def __init__(self, function, classes=3):
        super().__init__()
        self.function, self.line = function, nn.Linear(16, classes)

    def forward(self, x):
        return self.function(self.line(x.flatten(1)))


def pictures(n=4, classes=3, channels=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, channels, 4, 4), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % classes)


def broken():
    net = Answers(lambda z: z)
    with torch.no_grad():
        net.line.weight.fill_(torch.nan)
    return net


DOORS = {
    "evaluate": lambda net, images: evaluate(net, images, [FGSM(eps=0.1)], latency_runs=1),
    "weakness": lambda net, images: weakness(net, images),
    "smooth": lambda net, images: smooth(net, images, sigma=0.1, n0=2, n=4),
    "certify": certify,
}
UNFIT = {
    "several outputs": (lambda: Answers(lambda z: (z, z)), pictures(), "logits"),
    "other channels": (lambda: Answers(lambda z: z), pictures(channels=4), "images of shape"),
    "one class": (lambda: Answers(lambda z: z, 1), pictures(classes=1), "two classes"),
    "a label too many": (lambda: Answers(lambda z: z), pictures(classes=4), "3 logits, but a label is 3"),
    "a negative label": (
        lambda: Answers(lambda z: z), Images(pictures().x, torch.tensor([0, -1, 2, 1])), "a label is -1"
    ),
    "not a number": (broken, pictures(), "NaN"),
    "no images": (lambda: Answers(lambda z: z), pictures().take(torch.arange(0)), "no images"),
    "float64": (lambda: Answers(lambda z: z).double(), pictures(), "dtype|type"),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_refused_in_one_line(case, door):
    make, images, words = UNFIT[case]
    refusal = {"certify": f"{words}|no bound|cannot be traced", "weakness": f"{words}|at least two"}.get(
        door, words
    )
    with pytest.raises(IronrankError, match=refusal) as error:
        DOORS[door](make(), images)
    assert "\n" not in str(error.value)


def test_what_is_no_number_is_wrong_whatever_the_label():
    images = Images(pictures(6).x, torch.zeros(6, dtype=torch.int64))
    for bad in (torch.nan, torch.inf):
        answer = torch.tensor([bad, 0.0, 0.0])
        module = Calls(lambda x, answer=answer: answer.expand(len(x), 3) + 0 * x.sum((1, 2, 3))[:, None])
        assert accuracy(module, images) == 0
        assert not withstood(module, images, FGSM(eps=0.1), 0).any()
        found = smooth(module, images, sigma=0.1, n0=3, n=20)
        assert found["clean"] == 0 and found["abstained"] == 1
    masked = Calls(lambda x: torch.tensor([1.0, 0.0, -torch.inf]).expand(len(x), 3))
    assert accuracy(masked, images) == 1, "a class that is ruled out is no fault"


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_gradient_that_is_no_number_leaves_pixels_that_are(norm):
    net = Calls(lambda x: torch.stack([(x.flatten(1) - 2).sqrt().sum(1), x.flatten(1).sum(1)], 1))
    x = torch.rand(3, 1, 4, 4)
    for attack in (FGSM(norm=norm, eps=0.1), PGD(norm=norm, eps=0.1, steps=2, keep="last")):
        assert attack(net, x, torch.zeros(3, dtype=torch.int64)).isfinite().all()
    gradient = torch.tensor([[torch.nan, 3.0, 4.0]])
    torch.testing.assert_close(steepest(gradient, "L2"), torch.tensor([[0.0, 0.6, 0.8]]))


@pytest.mark.parametrize("shape", [(1, 20, 3), (3, 40, 7), (1, 15, 2), (1, 2, 15), (1, 1, 1)])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_square_takes_images_of_any_shape(norm, shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))
    x = torch.rand(4, *shape)
    moved = Square(norm=norm, eps=0.3, queries=20)(net, x, net(x).argmax(1))
    assert moved.isfinite().all() and (moved != x).any()
