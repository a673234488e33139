"""Slopes of an honest net that is bent all over plain areas: what robust training makes of digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironrank.attacks.threat import length
from ironrank.judge import slopes as room
from ironrank.judge.aside import AsidePGD, aside
from ironrank.judge.samples import Samples
from ironrank.judge.slopes import SLOPE, slopes
from ironrank.judge.subject import subject_of
from ironrank.judge.target import Target


def bent_net() -> nn.Module:
    """Filters of one pixel each, then maxima: on plain areas all four of a window tie."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 6, 3, padding=1)
    with torch.no_grad():
        pixel = torch.randint(9, (6,))
        first.weight.zero_().view(6, 9)[torch.arange(6), pixel] = torch.tensor([2.0, -2, 3, -3, 1, -1])
        first.bias.copy_(torch.tensor([-0.5, 1, -1, 1, 0, 0.5]))
    return nn.Sequential(first, nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).eval()


def plain_images(n: int = 48) -> Tensor:
    """A white square of random place and size on black."""
    random, x = torch.Generator().manual_seed(1), torch.zeros(n, 1, 12, 12)
    for image in x:
        top, left, size = torch.randint(1, 5, (3,), generator=random).tolist()
        image[0, top : top + size + 2, left : left + size + 2] = 1
    return x


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 0.5)])
def test_ties_on_plain_areas_are_no_deceit(norm: str, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = bent_net(), plain_images()
    samples = Samples(x, net(x).argmax(1))
    subject = subject_of(Target("net", "net", net), samples, norm, eps, 0)
    found = {check.name: check for check in slopes(subject, samples)}
    assert found[SLOPE].passed, found[SLOPE]
    monkeypatch.setattr(room, "aside", lambda x, reach, edge, generator: x.clamp(edge, 1 - edge))
    found = {check.name: check for check in slopes(subject, samples)}
    assert not found[SLOPE].passed  # at the images themselves it would be called one


def test_points_aside_lie_inside_and_no_two_pixels_are_alike() -> None:
    x = plain_images(4)
    moved = aside(x, 0.01, 0.002, torch.Generator().manual_seed(2))
    assert moved.min() > 0.002 and moved.max() < 0.998 and (moved - x).abs().max() <= 0.012 + 1e-6
    assert all(len(image.unique()) > 0.99 * image.numel() for image in moved)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_attack_that_walks_aside_shows_the_net_no_ties(norm: str) -> None:
    net, x, seen = bent_net(), plain_images(4), []
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    y = net(x).argmax(1)
    seen.clear()
    found = AsidePGD(norm=norm, eps=0.3, steps=5, loss="margin", keep="last")(net, x, y)
    assert len(seen) == 5
    for point in [*seen, found]:
        assert point.min() > 0 and point.max() < 1
        assert length(point - x, norm).max() <= 0.3 + 1e-6
        assert all(len(image.unique()) > 0.98 * image.numel() for image in point)
